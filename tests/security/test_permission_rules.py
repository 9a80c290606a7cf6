"""Who may do what in a channel, decided twice: by a session, and by the rules of docs/protocol.md
as they are read here, from names and options that nobody would think of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from hypothesis import assume, given
from hypothesis import strategies as st

from roomcast.auth.claims import SubscriptionClaims
from roomcast.client.effects import Authorize, Close, Effect, Fail
from roomcast.client.session import Policy, Session
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Error
from roomcast.wire.commands import (
    Command,
    ConnectRequest,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    Request,
    RpcPublishRequest,
    SubscribeRequest,
)

# What names are made of: what has a meaning, what looks like it, and what no name has.
PARTS: Final = (
    *(
        "room",
        "chat",
        "ann",
        "bob",
        "A",
        "a.b",
        "-",
        ":",
        "::",
        "#",
        "##",
        ",",
        "$",
        "$$",
        "*",
        " ",
    ),
    *(
        "",
        "%23",
        "%3A",
        "é",
        "e\u0301",
        "\u212a",
        "\U0001f600",
        "\ud800",
        "\0",
        "\x01",
        "\n",
        "\u202e",
    ),
    *("x" * 200, "x" * 255),
)
NAMESPACES: Final = ("chat", "a.b", "-", "A")
# Names that mean something in one of these namespaces, or in none.
LIKELY: Final = tuple(
    f"{beginning}{name}"
    for beginning in ("", "$", "chat:", "$chat:", "a.b:", "nope:", "A:")
    for name in ("room", "room#ann", "room#ann,bob", "room#", "#ann", "room#ann,", "r:s", "r#x#ann")
)
USERS: Final = ("", "ann", "bob", "ANN", "ann,bob", "#", "*")
PATTERNS: Final = ("*", "chat:*", "$*", "*#ann", "chat:room", "room", "*o*m", "")
# The part of an option's name, and the capability, of what a client may ask for.
ASKS: Final[Mapping[str, tuple[str, str]]] = {
    "publish": ("publish", "pub"),
    "call": ("publish", "pub"),
    "history": ("history", "hst"),
    "presence": ("presence", "prs"),
    "stats": ("presence", "prs"),
}

names = st.sampled_from(LIKELY) | st.lists(st.sampled_from(PARTS), max_size=5).map("".join)
flags: Final = [
    each.name
    for each in fields(ChannelOptions)
    if re.fullmatch(r"allow_\w+_for_\w+|allow_user_limited_channels|presence", each.name)
]
options = st.builds(
    lambda chosen, history, expression: ChannelOptions(
        history_size=history, history_ttl_s=60 * history, channel_regex=expression, **chosen
    ),
    st.fixed_dictionaries({name: st.booleans() for name in flags}),
    st.integers(0, 1),
    st.sampled_from(["", "", "", "^[a-z#,]+$", "room", "^$"]),
)
allowances = st.frozensets(st.sampled_from(Capability))
grants = st.builds(
    Grant, st.lists(st.sampled_from(PATTERNS), max_size=2).map(tuple), allowances, st.booleans()
)


@dataclass(frozen=True)
class Client:
    """Who asks. `allow`: by subscription tokens, by channel: to these it is subscribed."""

    rules: ChannelRules
    user: str
    caps: tuple[Grant, ...]
    insecure: bool
    allow: dict[str, frozenset[Capability]]


# ---- the rules


def rule_of_name(rules: ChannelRules, channel: str) -> ChannelOptions | Error | None:
    """The options of a channel, or why there is none. None: the name is empty, which closes."""
    if not channel:
        return None
    if not re.fullmatch(r"[ -~]{1,255}", channel):
        return Error.BAD_REQUEST
    found = re.fullmatch(r"\$?(?:([^:]*):)?(.*)", channel)
    assert found is not None, "anything matches"
    namespace, rest = found.groups()
    held = rules.without_namespace if namespace is None else rules.namespaces.get(namespace)
    if held is None:
        return Error.UNKNOWN_CHANNEL
    asked = channel if namespace is None else rest
    return held if re.search(held.channel_regex, asked) else Error.BAD_REQUEST


def listed(held: ChannelOptions, channel: str) -> list[str] | None:
    found = re.fullmatch(r".*#([^#]*)", channel) if held.allow_user_limited_channels else None
    return None if found is None else [user for user in found[1].split(",") if user]


def has(client: Client, channel: str, name: str) -> bool:
    """Whether the first grant that covers `channel` has the capability."""
    for grant in client.caps:
        for each in grant.channels:
            expression = (
                re.escape(each).replace(r"\*", ".*") if grant.is_pattern else re.escape(each)
            )
            if re.fullmatch(expression, channel):
                return name in {capability.value for capability in grant.allow}
    return False


def may_subscribe(client: Client, held: ChannelOptions, channel: str) -> bool:
    if client.insecure:
        return True
    if channel.startswith("$"):
        return False
    users = listed(held, channel)
    if users is None:
        is_let_in = held.allow_subscribe_for_client and (
            client.user != "" or held.allow_subscribe_for_anonymous
        )
    else:
        is_let_in = client.user in users
    return is_let_in or has(client, channel, "sub")


def may(client: Client, held: ChannelOptions, channel: str, what: str) -> bool:
    option, capability = ASKS[what]
    allowed = {
        who: getattr(held, f"allow_{option}_for_{who}")
        for who in ("client", "subscriber", "anonymous")
    }
    users, is_somebody = listed(held, channel), client.user != "" or allowed["anonymous"]
    return (
        client.insecure
        or (allowed["client"] and (is_somebody if users is None else client.user in users))
        or (allowed["subscriber"] and is_somebody and channel in client.allow)
        or capability in {each.value for each in client.allow.get(channel, ())}
        or has(client, channel, capability)
    )


def expected(client: Client, channel: str, what: str) -> str | Error:
    """What comes of it: an error, or one of "close", "token" and "done"."""
    held = rule_of_name(client.rules, channel)
    if held is None:
        return "close"
    if isinstance(held, Error):
        return held
    if what in ("subscribe", "token"):
        if channel in client.allow:
            return Error.ALREADY_SUBSCRIBED
        if what == "token" and not client.insecure:
            return "token"
        return "done" if may_subscribe(client, held, channel) else Error.PERMISSION_DENIED
    if (what == "history" and not held.history_size) or (
        what in ("presence", "stats") and not held.presence
    ):
        return Error.NOT_AVAILABLE
    if not may(client, held, channel, what):
        return Error.PERMISSION_DENIED
    return Error.NOT_AVAILABLE if what == "call" and not held.history_size else "done"


# ---- what the session does


def request(channel: str, what: str) -> Request:
    made: dict[str, Any] = {
        "subscribe": SubscribeRequest(channel),
        "token": SubscribeRequest(channel, token="a token"),
        "publish": PublishRequest(channel, 1),
        "call": RpcPublishRequest(channel, 1),
        "history": HistoryRequest(channel),
        "presence": PresenceRequest(channel),
        "stats": PresenceStatsRequest(channel),
    }
    answer: Request = made[what]
    return answer


def told(effect: Effect) -> object:
    match effect:
        case Close():
            return "close"
        case Fail(_, error):
            return error
        case Authorize():
            return "token"
    return "done"


@given(
    st.builds(ChannelRules, options, st.fixed_dictionaries(dict.fromkeys(NAMESPACES, options))),
    st.sampled_from(USERS),
    st.lists(grants, max_size=2).map(tuple),
    st.integers(0, 9).map(lambda chance: chance == 0),
    st.lists(
        st.tuples(names, st.sampled_from(["subscribe", "token", *ASKS]), allowances),
        min_size=1,
        max_size=12,
    ),
)
def test_a_session_decides_as_the_rules_say(
    rules: ChannelRules,
    user: str,
    caps: tuple[Grant, ...],
    insecure: bool,
    asked: list[tuple[str, str, frozenset[Capability]]],
) -> None:
    client = Client(rules, user, caps, insecure, {})
    session = Session("c1", Policy(rules, insecure, True, 100, 1000))
    session.command(Command(1, ConnectRequest(), 10))
    session.connected(user, None, caps=caps)
    for number, (channel, what, allow) in enumerate(asked, start=2):
        effect = session.command(Command(number, request(channel, what), 10))
        assert told(effect) == expected(client, channel, what), (channel, what, client)
        if told(effect) == "close":
            return
        if isinstance(effect, Authorize):
            claims = SubscriptionClaims(user, channel, None, allow=allow)
            assert told(session.authorized(effect, claims)) == "done"
            client.allow[channel] = allow
        elif told(effect) == "done" and what in ("subscribe", "token"):
            client.allow[channel] = frozenset()


@given(
    names, names, st.sampled_from(USERS), st.sampled_from(USERS), st.sampled_from(["", "c1", "c2"])
)
def test_a_subscription_token_opens_its_channel_for_its_user_and_client(
    channel: str, other: str, user: str, whose: str, of_client: str
) -> None:
    rules = ChannelRules(ChannelOptions(), dict.fromkeys(NAMESPACES, ChannelOptions()))
    assume(isinstance(rule_of_name(rules, channel), ChannelOptions))
    for named in {channel, other}:
        session = Session("c1", Policy(rules, False, True, 100, 1000))
        session.command(Command(1, ConnectRequest(), 10))
        session.connected(user, None)
        effect = session.command(Command(2, SubscribeRequest(channel, token="a token"), 10))
        assert isinstance(effect, Authorize)
        claims = SubscriptionClaims(whose, named, None, client=of_client)
        is_ours = (named, whose) == (channel, user) and of_client in ("", "c1")
        assert told(session.authorized(effect, claims)) == ("done" if is_ours else "close")
