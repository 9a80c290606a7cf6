"""service/roomcast/client/session.py: what the server subscribes a client to,
and channels that are for certain users.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from roomcast.auth.claims import ServerSubscription
from roomcast.client.effects import (
    AskSubscribe,
    Authenticate,
    Authorize,
    Effect,
    Fail,
    Publish,
    ReadHistory,
    ReadPresence,
    Subscribe,
)
from roomcast.client.session import Policy, Session, State
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOptions, ChannelOverride, ChannelRules
from roomcast.wire.codes import Disconnect, Error
from roomcast.wire.commands import (
    Command,
    ConnectRequest,
    HistoryRequest,
    PresenceRequest,
    PublishRequest,
    Request,
    SubscribeRequest,
)
from roomcast.wire.publication import ClientInfo, StreamPosition

HISTORY = ChannelOptions(history_size=10, history_ttl_s=60)
DENIED = Fail(5, Error.PERMISSION_DENIED)
SINCE = StreamPosition("e", 4)
NEWEST = replace(HISTORY, force_recovery=True, force_recovery_mode="cache", auto_cache_recover=True)


def policy(options: ChannelOptions = HISTORY, *, insecure: bool = False, **changes: Any) -> Policy:
    rules = ChannelRules(options, {"ns": options})
    return Policy(rules, insecure, False, 3, message_size_limit=1000, **changes)


def connected(held: Policy, user: str = "ann", **changes: Any) -> Session:
    session = Session("c1", held)
    session.command(Command(1, ConnectRequest("t"), 10))
    session.connected(user, {"name": user}, **changes)
    return session


def say(session: Session, request: Request) -> Effect:
    return session.command(Command(5, request, 10))


def joined(
    session: Session, sub: ServerSubscription | None = None, **since: StreamPosition
) -> list[Subscribe]:
    joins = session.subscribe_at_connect({"a": sub or ServerSubscription()}, since)
    assert isinstance(joins, tuple)
    return list(joins)


# ---- at connect


def test_connect_says_where_to_recover_from() -> None:
    session = Session("c1", policy())
    effect = session.command(Command(1, ConnectRequest("t", since={"a": SINCE}), 10))
    assert effect == Authenticate(1, "t", {"a": SINCE})


def test_what_a_token_names_is_subscribed_to() -> None:
    session = connected(policy())
    [join] = joined(session, ServerSubscription(info="in", data="data"))
    assert join == Subscribe(
        id=0,
        channel="a",
        options=HISTORY,
        positioned=False,
        recoverable=False,
        since=None,
        reject_unrecovered=False,
        join_leave=False,
        info=ClientInfo("ann", "c1", {"name": "ann"}, "in"),
        is_server_side=True,
        data="data",
    )
    assert session.channels == {"a"}
    assert say(session, SubscribeRequest("a")) == Fail(5, Error.ALREADY_SUBSCRIBED)


@pytest.mark.parametrize(
    "options, override, since, expected",
    [
        (HISTORY, {}, None, (False, False, None)),
        # Where it says that it was is history, which not everybody may read.
        (HISTORY, {}, SINCE, (False, False, None)),
        (replace(HISTORY, allow_recovery=True), {}, SINCE, (True, False, SINCE)),
        (replace(HISTORY, allow_history_for_subscriber=True), {}, SINCE, (True, False, SINCE)),
        (replace(HISTORY, force_positioning=True), {}, SINCE, (True, False, None)),
        (replace(HISTORY, force_positioning=True), {}, None, (True, False, None)),
        (replace(HISTORY, force_recovery=True), {}, None, (True, True, None)),
        (replace(HISTORY, force_recovery=True), {}, SINCE, (True, True, SINCE)),
        (HISTORY, {"force_recovery": True}, SINCE, (True, True, SINCE)),
        (
            replace(HISTORY, force_recovery=True),
            {"force_recovery": False},
            None,
            (False, False, None),
        ),
        (ChannelOptions(), {"force_recovery": True}, SINCE, (False, False, None)),
        # Where the newest publication comes by itself, it is behind no position.
        (NEWEST, {}, None, (True, True, StreamPosition("", 0))),
        (NEWEST, {}, SINCE, (True, True, SINCE)),
        (NEWEST, {"force_recovery": False}, None, (False, False, None)),
        (replace(NEWEST, auto_cache_recover=False), {}, None, (True, True, None)),
        (replace(NEWEST, force_recovery_mode="stream"), {}, None, (True, True, None)),
    ],
)
def test_what_a_server_side_subscription_gets(
    options: ChannelOptions,
    override: dict[str, bool],
    since: StreamPosition | None,
    expected: tuple[bool, bool, StreamPosition | None],
) -> None:
    session = connected(policy(options))
    positions = {"a": since} if since else {}
    [join] = joined(session, ServerSubscription(override=ChannelOverride(**override)), **positions)
    assert (join.positioned, join.recoverable, join.since) == expected


@pytest.mark.parametrize("join_leave", [False, True])
@pytest.mark.parametrize("force", [False, True])
def test_joins_are_pushed_to_it_where_they_are_to_everybody(join_leave: bool, force: bool) -> None:
    """It cannot ask for them."""
    session = connected(
        policy(replace(HISTORY, join_leave=join_leave, force_push_join_leave=force))
    )
    [join] = joined(session)
    assert join.join_leave is (join_leave and force)


def test_options_and_permissions_of_clients_do_not_matter() -> None:
    session = connected(policy(ChannelOptions()))
    subs = {"$a": ServerSubscription(), "x#bob": ServerSubscription(), "ns:a": ServerSubscription()}
    joins = session.subscribe_at_connect(subs, {})
    assert isinstance(joins, tuple)
    assert [join.channel for join in joins] == ["$a", "x#bob", "ns:a"]


def test_a_token_with_too_many_or_unknown_channels_is_no_good() -> None:
    many = {name: ServerSubscription() for name in "abcd"}
    session = connected(policy())
    assert session.subscribe_at_connect(many, {}) is Disconnect.CHANNEL_LIMIT
    assert (
        session.subscribe_at_connect({"no:where": ServerSubscription()}, {})
        is Error.UNKNOWN_CHANNEL
    )
    assert session.channels == set()
    del many["d"]
    assert isinstance(session.subscribe_at_connect(many, {}), tuple)
    assert session.channels == set(many)


@pytest.mark.parametrize(
    "user, namespace, channels",
    [
        ("ann", None, []),
        ("ann", "", ["#ann"]),
        ("ann", "ns", ["ns:#ann"]),
        ("", "", []),
        ("a#b", "ns", []),
    ],
)
def test_a_user_may_be_given_a_channel_of_their_own(
    user: str, namespace: str | None, channels: list[str]
) -> None:
    session = connected(policy(personal_namespace=namespace), user)
    joins = session.subscribe_at_connect({}, {})
    assert isinstance(joins, tuple)
    assert [join.channel for join in joins] == channels


def test_what_the_token_says_of_the_personal_channel_counts() -> None:
    session = connected(policy(replace(HISTORY, force_recovery=True), personal_namespace=""))
    joins = session.subscribe_at_connect({"#ann": ServerSubscription(info="in")}, {"#ann": SINCE})
    assert isinstance(joins, tuple)
    [join] = joins
    assert (join.info.chan_info, join.since) == ("in", SINCE)


# ---- at run time


def test_a_subscription_by_order() -> None:
    session = connected(policy())
    join = session.subscribe_by_server("a", ServerSubscription(data=1), SINCE, 77)
    assert join is not None
    assert (join.data, join.since, join.expires_at, join.is_server_side) == (1, SINCE, 77, True)
    assert session.subscribe_by_server("a", ServerSubscription(), None) is None, "it is subscribed"
    session.left("a")
    assert session.subscribe_by_server("a", ServerSubscription(), None) is not None


def test_a_subscription_by_order_that_cannot_be() -> None:
    session = connected(policy())
    assert session.subscribe_by_server("no:where", ServerSubscription(), None) is None
    for name in "abc":
        assert session.subscribe_by_server(name, ServerSubscription(), None) is not None
    assert session.subscribe_by_server("d", ServerSubscription(), None) is None
    session.close(Disconnect.SHUTDOWN)
    assert session.state is State.CLOSED
    session.left("a")
    assert session.subscribe_by_server("a", ServerSubscription(), None) is None


def test_what_others_see_may_be_replaced() -> None:
    session = connected(policy())
    session.refreshed_by_server(None)
    assert session.info.conn_info == {"name": "ann"}
    session.refreshed_by_server("new")
    assert session.info.conn_info == "new"


# ---- channels for certain users

LISTED = replace(HISTORY, allow_user_limited_channels=True)


@pytest.mark.parametrize("channel", ["x#ann,bob", "ns:x#bob,ann", "#ann"])
def test_who_is_listed_may_subscribe_and_nobody_else(channel: str) -> None:
    for options in (LISTED, replace(LISTED, allow_subscribe_for_client=True)):
        assert isinstance(say(connected(policy(options)), SubscribeRequest(channel)), Subscribe)
        assert say(connected(policy(options), "eve"), SubscribeRequest(channel)) == DENIED
        assert say(connected(policy(options), ""), SubscribeRequest(channel)) == DENIED
    everybody = replace(LISTED, allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True)
    assert say(connected(policy(everybody), ""), SubscribeRequest("x#")) == DENIED
    assert isinstance(
        say(connected(policy(insecure=True), "eve"), SubscribeRequest(channel)), Subscribe
    )


@pytest.mark.parametrize("channel", ["x#ann,bob", "ns:x#bob,ann", "#ann"])
@pytest.mark.parametrize("user", ["ann", "eve", ""])
def test_without_the_option_a_list_of_users_means_nothing(channel: str, user: str) -> None:
    """Neither that who is in it may subscribe, nor that others may not."""
    assert say(connected(policy(), user), SubscribeRequest(channel)) == DENIED
    everybody = replace(
        HISTORY, allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True
    )
    assert isinstance(say(connected(policy(everybody), user), SubscribeRequest(channel)), Subscribe)
    hooked = policy(asks_subscribe=True)
    assert isinstance(say(connected(hooked, user), SubscribeRequest(channel)), AskSubscribe)
    assert isinstance(
        say(
            connected(policy(replace(HISTORY, allow_history_for_client=True))),
            HistoryRequest(channel),
        ),
        ReadHistory,
    )


def test_a_token_goes_before_the_list() -> None:
    assert isinstance(
        say(connected(policy(LISTED), "eve"), SubscribeRequest("x#ann", token="t")), Authorize
    )
    caps = [Grant(("x#ann",), frozenset({Capability.SUBSCRIBE}))]
    assert isinstance(
        say(connected(policy(LISTED), "eve", caps=caps), SubscribeRequest("x#ann")), Subscribe
    )
    assert say(connected(policy(LISTED)), SubscribeRequest("$x#ann")) == DENIED, "it needs a token"


@pytest.mark.parametrize(
    "request_, effect",
    [
        (PublishRequest("x#ann", 1), Publish),
        (HistoryRequest("x#ann"), ReadHistory),
        (PresenceRequest("x#ann"), ReadPresence),
    ],
    ids=["publish", "history", "presence"],
)
def test_what_every_client_may_do_is_for_the_listed_there(
    request_: Request, effect: type[Effect]
) -> None:
    options = replace(
        LISTED,
        presence=True,
        allow_publish_for_client=True,
        allow_publish_for_anonymous=True,
        allow_history_for_client=True,
        allow_history_for_anonymous=True,
        allow_presence_for_client=True,
        allow_presence_for_anonymous=True,
    )
    assert isinstance(say(connected(policy(options)), request_), effect)
    assert say(connected(policy(options), "eve"), request_) == DENIED
    assert say(connected(policy(options), ""), request_) == DENIED
