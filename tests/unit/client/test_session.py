"""service/roomcast/client/session.py: which command is allowed in which state, and to whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.auth.claims import ConnectionClaims, ServerSubscription, SubscriptionClaims
from roomcast.client.effects import (
    Authenticate,
    Authorize,
    Close,
    Effect,
    Fail,
    Ignore,
    Leave,
    Publish,
    ReadHistory,
    ReadPresence,
    Refresh,
    Renew,
    SubRefresh,
    Subscribe,
)
from roomcast.client.session import (
    CONNECT_BYTES_A_CHANNEL,
    CONNECT_BYTES_MIN,
    Policy,
    Session,
    State,
)
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOptions, ChannelOverride, ChannelRules
from roomcast.wire.codes import Disconnect, Error
from roomcast.wire.commands import (
    Bounds,
    Command,
    ConnectRequest,
    HistoryRequest,
    InvalidRequest,
    OversizedRequest,
    PingRequest,
    Pong,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    Request,
    RpcPublishRequest,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
    decode_command,
)
from roomcast.wire.publication import ClientInfo, StreamPosition

EVERYTHING = ChannelOptions(
    history_size=10,
    history_ttl_s=60,
    presence=True,
    join_leave=True,
    allow_subscribe_for_client=True,
    allow_publish_for_client=True,
    allow_presence_for_client=True,
    allow_history_for_client=True,
)
SIZE_MAX = 1000
BAD = Close(Disconnect.BAD_REQUEST)


def policy(
    options: ChannelOptions = EVERYTHING,
    *,
    insecure: bool = False,
    allow_anonymous: bool = False,
    channel_limit: int = 3,
) -> Policy:
    rules = ChannelRules(options, {"ns": options})
    return Policy(rules, insecure, allow_anonymous, channel_limit, message_size_limit=SIZE_MAX)


def connected(held: Policy, user: str = "ann", *channels: str) -> Session:
    session = Session("c1", held)
    assert session.command(Command(1, ConnectRequest("t"), 10)) == Authenticate(1, "t")
    session.connected(user, {"name": user} if user else None)
    for channel in channels:
        session.channels.add(channel)
    return session


def in_state(state: State, held: Policy) -> Session:
    session = Session("c1", held)
    if state is not State.NEW:
        session.command(Command(1, ConnectRequest("t"), 10))
    if state is State.CONNECTED:
        session.connected("ann", None)
    if state is State.CLOSED:
        session.refused()
    assert session.state is state
    return session


def say(session: Session, request: Request, *, command_id: int = 5, size: int = 10) -> Effect:
    return session.command(Command(command_id, request, size))


# ---- all states, all commands

REQUESTS: dict[str, Request] = {
    "connect": ConnectRequest("t"),
    "subscribe": SubscribeRequest("a"),
    "unsubscribe": UnsubscribeRequest("a"),
    "publish": PublishRequest("a", 1),
    "presence": PresenceRequest("a"),
    "presence_stats": PresenceStatsRequest("a"),
    "history": HistoryRequest("a"),
    "rpc": RpcRequest("m", 1),
    "rpc publish": RpcPublishRequest("a", 1, "k"),
    "send": SendRequest(1),
    "refresh": RefreshRequest("t"),
    "sub_refresh": SubRefreshRequest("a", "t"),
    "ping": PingRequest(),
    "pong": Pong(),
    "invalid connect": InvalidRequest("connect"),
    "invalid subscribe": InvalidRequest("subscribe"),
    "invalid history": InvalidRequest("history"),
}
NOT_AVAILABLE = Fail(5, Error.NOT_AVAILABLE)
ANN = ClientInfo("ann", "c1")
WHEN_CONNECTED: dict[str, Effect] = {
    "connect": BAD,
    "subscribe": Subscribe(5, "a", EVERYTHING, False, False, None, False, False, ANN),
    "unsubscribe": Leave(5, "a"),
    "publish": Publish(5, "a", EVERYTHING, 1, ANN),
    "presence": ReadPresence(5, "a", stats=False),
    "presence_stats": ReadPresence(5, "a", stats=True),
    "history": ReadHistory(5, EVERYTHING, HistoryRequest("a")),
    "rpc": NOT_AVAILABLE,
    "rpc publish": Publish(5, "a", EVERYTHING, 1, ANN, rpc=True, key="k"),
    "send": Close(Disconnect.NOT_AVAILABLE),
    "refresh": BAD,
    "sub_refresh": Fail(5, Error.PERMISSION_DENIED),
    "ping": NOT_AVAILABLE,
    "pong": Ignore(),
    "invalid connect": BAD,
    "invalid subscribe": Fail(5, Error.BAD_REQUEST),
    "invalid history": Fail(5, Error.BAD_REQUEST),
}


@pytest.mark.parametrize("state, name", list(product(State, REQUESTS)), ids=str)
def test_what_each_command_does_in_each_state(state: State, name: str) -> None:
    session = in_state(state, policy())
    effect = say(session, REQUESTS[name])
    if state is State.CONNECTED:
        assert effect == WHEN_CONNECTED[name]
        after = State.CLOSED if isinstance(effect, Close) else State.CONNECTED
    elif state is State.NEW and name == "connect":
        assert effect == Authenticate(5, "t")
        after = State.CONNECTING
    else:
        assert effect == BAD
        after = State.CLOSED
    assert session.state is after


@given(st.lists(st.sampled_from([*sorted(REQUESTS), "too large"]), max_size=12))
def test_nothing_is_done_for_a_closed_connection(names: list[str]) -> None:
    session = Session("c1", policy())
    closed = False
    for name in names:
        effect = say(session, REQUESTS.get(name, OversizedRequest()))
        if closed:
            assert effect == BAD
        if isinstance(effect, Authenticate):
            session.connected("ann", None)
        if isinstance(effect, Subscribe):
            assert effect.channel in session.channels
        closed = isinstance(effect, Close)
        assert (session.state is State.CLOSED) == closed


# ---- connecting


def test_a_connection_takes_on_who_the_token_says_it_is() -> None:
    session = Session("c1", policy())
    assert session.user == ""
    assert say(session, ConnectRequest("t"), command_id=1) == Authenticate(1, "t")
    session.connected("ann", {"name": "Ann"})
    assert session.info == ClientInfo("ann", "c1", {"name": "Ann"})
    effect = say(session, PublishRequest("a", 1))
    assert isinstance(effect, Publish)
    assert effect.info == session.info


def test_connect_is_answered_once() -> None:
    for state in (State.NEW, State.CONNECTED, State.CLOSED):
        with pytest.raises(AssertionError, match="once"):
            in_state(state, policy()).connected("ann", None)


def test_after_a_refusal_every_command_closes() -> None:
    session = Session("c1", policy())
    say(session, ConnectRequest("t"))
    session.refused()
    assert say(session, ConnectRequest("another")) == BAD
    assert say(session, SubscribeRequest("a")) == BAD


@pytest.mark.parametrize("insecure, anonymous", list(product([False, True], repeat=2)))
def test_who_may_connect_without_a_token(insecure: bool, anonymous: bool) -> None:
    session = Session("c1", policy(insecure=insecure, allow_anonymous=anonymous))
    assert say(session, ConnectRequest()) == Authenticate(5, "")
    assert session.may_connect_without_token() == (insecure or anonymous)


# ---- sizes and names


def test_a_command_over_the_limit_fails_and_the_connection_stays() -> None:
    session = in_state(State.CONNECTED, policy())
    assert say(session, OversizedRequest(), size=SIZE_MAX + 1) == Fail(5, Error.LIMIT_EXCEEDED)
    assert session.state is State.CONNECTED
    assert session.channels == set()


def test_what_is_too_large_before_connect_closes() -> None:
    assert say(Session("c1", policy()), OversizedRequest(), size=SIZE_MAX + 1) == BAD


def test_what_is_decoded_grows_with_the_channels_and_no_further_than_any_command() -> None:
    """A token and data, and where the client was in each of its channels."""
    few = replace(policy(channel_limit=100), message_size_limit=64 * 1024)
    many = policy(channel_limit=10_000)
    assert few.connect_bounds == Bounds(CONNECT_BYTES_MIN + 100 * CONNECT_BYTES_A_CHANNEL, 100)
    assert few.bounds == Bounds(64 * 1024, 100)
    assert many.connect_bounds == many.bounds == Bounds(SIZE_MAX, 10_000)


def test_who_was_let_in_can_come_again_with_all_of_its_channels() -> None:
    """Also those that the server subscribed it to, of the longest names:
    3501 would be the end for an SDK.
    """
    few = replace(policy(channel_limit=128), message_size_limit=64 * 1024)
    position = {"recover": True, "epoch": "0." + "f" * 32, "offset": 2**53 - 1}
    subs = {f"{number:03}".ljust(255, "x"): position for number in range(few.channel_limit)}
    connect = {"id": 1, "connect": {"token": "t" * 8192, "subs": subs}}
    command = decode_command(
        json.dumps(connect, separators=(",", ":")).encode(), few.connect_bounds
    )
    assert isinstance(command.request, ConnectRequest)


def on(channel: str) -> list[Request]:
    return [
        SubscribeRequest(channel),
        UnsubscribeRequest(channel),
        PublishRequest(channel, 1),
        PresenceRequest(channel),
        PresenceStatsRequest(channel),
        HistoryRequest(channel),
    ]


@pytest.mark.parametrize("request_", on(""), ids=lambda request: type(request).__name__)
@pytest.mark.parametrize("insecure", [False, True])
def test_a_command_without_channel_closes(request_: Request, insecure: bool) -> None:
    assert say(connected(policy(insecure=insecure)), request_) == BAD


@pytest.mark.parametrize("channel", ["x" * 256, "ä", "a\n", "\u0001hello"])
@pytest.mark.parametrize("insecure", [False, True])
def test_a_name_that_no_channel_can_have_is_a_bad_request(channel: str, insecure: bool) -> None:
    session = connected(policy(insecure=insecure))
    for request in on(channel):
        assert say(session, request) == Fail(5, Error.BAD_REQUEST)
    assert session.channels == set()


@pytest.mark.parametrize("insecure", [False, True])
def test_a_name_that_its_namespace_does_not_take_is_a_bad_request(insecure: bool) -> None:
    options = ChannelOptions(
        history_size=1,
        history_ttl_s=1,
        presence=True,
        allow_subscribe_for_client=True,
        allow_publish_for_client=True,
        allow_history_for_client=True,
        allow_presence_for_client=True,
        channel_regex="^[0-9]+$",
    )
    held = policy(options, insecure=insecure)
    refused = Fail(5, Error.BAD_REQUEST)
    for request_ in (
        SubscribeRequest("x"),
        SubscribeRequest("x", token="t"),
        PublishRequest("x", 1),
        RpcPublishRequest("x", 1),
        HistoryRequest("x"),
        PresenceRequest("x"),
        PresenceStatsRequest("x"),
    ):
        session = connected(held)
        assert say(session, request_) == refused
        assert "x" not in session.channels
        assert say(session, replace(request_, channel="7")) != refused
    by_server = connected(held).subscribe_by_server("x", ServerSubscription(), None)
    assert by_server is not None, "the server's own names are not looked at"


@pytest.mark.parametrize("insecure", [False, True])
def test_an_unknown_namespace_is_an_unknown_channel(insecure: bool) -> None:
    session = connected(policy(insecure=insecure))
    for request in on("other:1"):
        expected = Leave(5, "other:1") if isinstance(request, UnsubscribeRequest) else None
        assert say(session, request) == (expected or Fail(5, Error.UNKNOWN_CHANNEL))
    assert say(session, SubscribeRequest("other:1", token="t")) == Fail(5, Error.UNKNOWN_CHANNEL)
    assert session.channels == set()


@pytest.mark.parametrize(
    "request_", [SubscribeRequest("a", type=1), PublishRequest("a", 1, type=2)]
)
def test_other_kinds_of_channels_are_not_available(request_: Request) -> None:
    assert say(connected(policy()), request_) == NOT_AVAILABLE


def test_what_a_channel_does_not_have_is_not_available_to_anybody() -> None:
    bare = replace(EVERYTHING, history_size=0, presence=False)
    for insecure in (False, True):
        session = connected(policy(bare, insecure=insecure))
        assert say(session, HistoryRequest("a")) == NOT_AVAILABLE
        assert say(session, PresenceRequest("a")) == NOT_AVAILABLE
        assert say(session, PresenceStatsRequest("a")) == NOT_AVAILABLE


# ---- subscribing


def test_a_call_publishes_only_where_there_is_a_position_to_answer() -> None:
    session = connected(policy(replace(EVERYTHING, history_size=0)))
    assert isinstance(say(session, PublishRequest("a", 1)), Publish)
    assert say(session, RpcPublishRequest("a", 1, "k")) == NOT_AVAILABLE
    assert say(session, RpcPublishRequest("other:a", 1)) == Fail(5, Error.UNKNOWN_CHANNEL)
    assert say(session, RpcPublishRequest("x" * 256, 1)) == Fail(5, Error.BAD_REQUEST)
    assert session.state is State.CONNECTED


def test_a_channel_is_subscribed_to_once() -> None:
    session = connected(policy())
    assert isinstance(say(session, SubscribeRequest("a")), Subscribe)
    assert say(session, SubscribeRequest("a")) == Fail(5, Error.ALREADY_SUBSCRIBED)
    assert say(session, SubscribeRequest("a", token="t")) == Fail(5, Error.ALREADY_SUBSCRIBED)
    session.left("a")
    session.left("a")
    assert isinstance(say(session, SubscribeRequest("a")), Subscribe)


def test_channels_of_a_connection_are_bounded() -> None:
    session = connected(policy(channel_limit=2))
    assert isinstance(say(session, SubscribeRequest("a")), Subscribe)
    assert isinstance(say(session, SubscribeRequest("b")), Subscribe)
    assert say(session, SubscribeRequest("c")) == Fail(5, Error.LIMIT_EXCEEDED)
    assert say(session, SubscribeRequest("c", token="t")) == Fail(5, Error.LIMIT_EXCEEDED)
    assert say(session, SubscribeRequest("a")) == Fail(5, Error.ALREADY_SUBSCRIBED)
    session.left("a")
    assert isinstance(say(session, SubscribeRequest("c")), Subscribe)
    assert session.channels == {"b", "c"}


def test_a_refused_subscription_takes_no_place() -> None:
    session = connected(policy(replace(EVERYTHING, allow_subscribe_for_client=False)))
    assert say(session, SubscribeRequest("a")) == Fail(5, Error.PERMISSION_DENIED)
    assert isinstance(say(session, SubscribeRequest("a", token="t")), Authorize)
    assert session.channels == set()


@pytest.mark.parametrize("channel", ["$a", "$ns:a"])
def test_a_private_channel_needs_a_token(channel: str) -> None:
    session = connected(policy())
    assert say(session, SubscribeRequest(channel)) == Fail(5, Error.PERMISSION_DENIED)
    effect = say(session, SubscribeRequest(channel, token="t"))
    assert effect == Authorize(5, "ann", SubscribeRequest(channel, token="t"))
    assert isinstance(effect, Authorize)
    joined = session.authorized(effect, SubscriptionClaims("ann", channel, None, {"role": "admin"}))
    assert isinstance(joined, Subscribe)
    assert joined.info == ClientInfo("ann", "c1", {"name": "ann"}, {"role": "admin"})
    assert session.channels == {channel}
    assert isinstance(say(connected(policy(insecure=True)), SubscribeRequest(channel)), Subscribe)


def test_a_token_opens_what_the_options_do_not() -> None:
    held = policy(replace(EVERYTHING, allow_subscribe_for_client=False))
    session = connected(held, "")
    effect = say(session, SubscribeRequest("a", token="t"))
    assert isinstance(effect, Authorize)
    assert isinstance(session.authorized(effect, SubscriptionClaims("", "a", None)), Subscribe)


ELSEWHERE = [
    SubscriptionClaims("ann", "b", None),
    SubscriptionClaims("bob", "a", None),
    SubscriptionClaims("", "a", None),
    SubscriptionClaims("ann", "a", None, client="c2"),
]


@pytest.mark.parametrize("claims", ELSEWHERE)
def test_somebody_elses_token_closes(claims: SubscriptionClaims) -> None:
    session = connected(policy())
    effect = say(session, SubscribeRequest("a", token="t"))
    assert isinstance(effect, Authorize)
    assert session.authorized(effect, claims) == Close(Disconnect.INVALID_TOKEN)
    assert session.state is State.CLOSED
    assert session.channels == set()


def test_an_insecure_node_looks_at_no_subscription_token() -> None:
    assert isinstance(
        say(connected(policy(insecure=True)), SubscribeRequest("a", token="x")), Subscribe
    )


def test_a_connection_that_closed_meanwhile_joins_nothing() -> None:
    session = connected(policy())
    effect = say(session, SubscribeRequest("a", token="t"))
    assert isinstance(effect, Authorize)
    session.close(Disconnect.CONNECTION_CLOSED)
    assert session.authorized(effect, SubscriptionClaims("ann", "a", None)) == Ignore()
    assert session.channels == set()


def subscribed(session: Session, claims: SubscriptionClaims) -> Subscribe:
    effect = say(session, SubscribeRequest(claims.channel, token="t"))
    assert isinstance(effect, Authorize)
    join = session.authorized(effect, claims)
    assert isinstance(join, Subscribe)
    return join


def test_a_subscription_token_may_change_what_the_subscription_gets() -> None:
    session = connected(policy())
    override = ChannelOverride(presence=False, force_recovery=True, force_push_join_leave=True)
    join = subscribed(session, SubscriptionClaims("ann", "a", 99, client="c1", override=override))
    assert (join.recoverable, join.join_leave, join.options.presence, join.expires_at) == (
        True,
        True,
        False,
        99,
    )
    # And nothing for others, or for other commands.
    plain = say(connected(policy()), SubscribeRequest("a"))
    assert isinstance(plain, Subscribe)
    assert (plain.options, plain.expires_at) == (EVERYTHING, None)


# ---- refreshes


def expiring(user: str = "ann") -> Session:
    session = Session("c1", policy())
    session.command(Command(1, ConnectRequest("t"), 10))
    session.connected(user, {"name": "old"}, expires=True)
    return session


def test_a_connection_that_expires_is_refreshed() -> None:
    session = expiring()
    effect = say(session, RefreshRequest("t"))
    assert effect == Refresh(5, "t")
    assert isinstance(effect, Refresh)
    assert session.refreshed(effect, ConnectionClaims("ann", 77, {"name": "new"})) == Renew(
        5, None, 77
    )
    assert session.info == ClientInfo("ann", "c1", {"name": "new"})
    # Also when the new token lasts for ever: another may be on its way.
    assert session.refreshed(effect, ConnectionClaims("ann", None)) == Renew(5, None, None)
    assert say(session, RefreshRequest("t")) == Refresh(5, "t")


@pytest.mark.parametrize("user", ["bob", "", "Ann", "ann "])
def test_a_connection_stays_with_its_user(user: str) -> None:
    session = expiring()
    effect = say(session, RefreshRequest("t"))
    assert isinstance(effect, Refresh)
    assert session.refreshed(effect, ConnectionClaims(user, 77)) == Close(Disconnect.INVALID_TOKEN)
    assert session.state is State.CLOSED
    assert session.refreshed(effect, ConnectionClaims("ann", 77)) == Ignore()
    assert session.user == "ann"


def test_what_never_expires_is_not_refreshed() -> None:
    session = connected(policy(), "ann", "a")
    assert say(session, SubRefreshRequest("a", "t")) == BAD
    assert say(connected(policy()), RefreshRequest("t")) == BAD
    session = connected(policy())
    subscribed(session, SubscriptionClaims("ann", "a", None))
    assert say(session, SubRefreshRequest("a", "t")) == BAD


def test_a_subscription_that_expires_is_refreshed() -> None:
    session = connected(policy())
    subscribed(session, SubscriptionClaims("ann", "a", 50))
    for request, wanted in (
        (SubRefreshRequest("a", "t"), SubRefresh(5, "a", "t")),
        (SubRefreshRequest("", "t"), SubRefresh(5, "", "t")),
    ):
        effect = say(session, request)
        assert effect == wanted
        assert isinstance(effect, SubRefresh)
        assert session.sub_refreshed(effect, SubscriptionClaims("ann", "a", 77)) == Renew(
            5, "a", 77
        )
        assert session.sub_refreshed(effect, SubscriptionClaims("ann", "a", None)) == Renew(
            5, "a", None
        )


@pytest.mark.parametrize(
    "request_, error",
    [
        (SubRefreshRequest("a", ""), Error.BAD_REQUEST),
        (SubRefreshRequest("", ""), Error.BAD_REQUEST),
        (SubRefreshRequest("x" * 256, "t"), Error.BAD_REQUEST),
        (SubRefreshRequest("b", "t"), Error.PERMISSION_DENIED),
    ],
)
def test_refreshes_that_make_no_sense(request_: SubRefreshRequest, error: Error) -> None:
    session = connected(policy())
    subscribed(session, SubscriptionClaims("ann", "a", 50))
    assert say(session, request_) == Fail(5, error)
    assert session.state is State.CONNECTED


@pytest.mark.parametrize("claims", ELSEWHERE)
def test_a_refresh_with_somebody_elses_token_closes(claims: SubscriptionClaims) -> None:
    session = connected(policy(), "ann", "b")
    subscribed(session, SubscriptionClaims("ann", "a", 50))
    effect = say(session, SubRefreshRequest("a", "t"))
    assert isinstance(effect, SubRefresh)
    assert session.sub_refreshed(effect, claims) == Close(Disconnect.INVALID_TOKEN)
    assert session.sub_refreshed(effect, SubscriptionClaims("ann", "a", 50)) == Ignore()


def test_a_subscription_that_ended_meanwhile_is_not_refreshed() -> None:
    session = connected(policy())
    subscribed(session, SubscriptionClaims("ann", "a", 50))
    effect = say(session, SubRefreshRequest("a", "t"))
    assert isinstance(effect, SubRefresh)
    session.left("a")
    assert session.sub_refreshed(effect, SubscriptionClaims("ann", "a", 77)) == Fail(
        5, Error.PERMISSION_DENIED
    )


# ---- capabilities

SHUT = ChannelOptions(history_size=10, history_ttl_s=60, presence=True)
BY_CAPABILITY: dict[Capability, Request] = {
    Capability.SUBSCRIBE: SubscribeRequest("a"),
    Capability.PUBLISH: PublishRequest("a", 1),
    Capability.HISTORY: HistoryRequest("a"),
    Capability.PRESENCE: PresenceRequest("a"),
}


def bearer(user: str, *caps: Grant) -> Session:
    session = Session("c1", policy(SHUT))
    session.command(Command(1, ConnectRequest("t"), 10))
    session.connected(user, None, caps=caps, expires=True)
    return session


@pytest.mark.parametrize("user", ["", "ann"])
@pytest.mark.parametrize("granted, asked", list(product(Capability, repeat=2)))
def test_a_connection_token_allows_what_it_says_where_it_says(
    user: str, granted: Capability, asked: Capability
) -> None:
    def refused(*caps: Grant) -> bool:
        return say(bearer(user, *caps), BY_CAPABILITY[asked]) == Fail(5, Error.PERMISSION_DENIED)

    allow = frozenset({granted})
    assert refused()
    assert refused(Grant(("a",), allow)) == (granted is not asked)
    assert refused(Grant(("*",), allow, is_pattern=True)) == (granted is not asked)
    assert refused(Grant(("b",), allow))
    assert refused(Grant(("a",), frozenset()), Grant(("a",), allow))


def test_what_a_connection_token_allows_is_replaced_with_it() -> None:
    session = bearer("ann", Grant(("a",), frozenset({Capability.PUBLISH})))
    assert isinstance(say(session, PublishRequest("a", 1)), Publish)
    effect = say(session, RefreshRequest("t"))
    assert isinstance(effect, Refresh)
    session.refreshed(effect, ConnectionClaims("ann", 77))
    assert say(session, PublishRequest("a", 1)) == Fail(5, Error.PERMISSION_DENIED)


def test_a_private_channel_needs_a_token_of_its_own() -> None:
    session = bearer("ann", Grant(("*",), frozenset(Capability), is_pattern=True))
    assert say(session, SubscribeRequest("$a")) == Fail(5, Error.PERMISSION_DENIED)


@pytest.mark.parametrize("asked", [each for each in Capability if each is not Capability.SUBSCRIBE])
def test_a_subscription_token_allows_more_while_the_subscription_lasts(asked: Capability) -> None:
    session = bearer("ann")

    def refused() -> bool:
        return say(session, BY_CAPABILITY[asked]) == Fail(5, Error.PERMISSION_DENIED)

    subscribed(session, SubscriptionClaims("ann", "a", 50, allow=frozenset({asked})))
    assert not refused()
    effect = say(session, SubRefreshRequest("a", "t"))
    assert isinstance(effect, SubRefresh)
    session.sub_refreshed(effect, SubscriptionClaims("ann", "a", 77))
    assert refused()
    session.sub_refreshed(effect, SubscriptionClaims("ann", "a", 77, allow=frozenset({asked})))
    assert not refused()
    session.left("a")
    assert refused()
    assert isinstance(say(session, SubscribeRequest("a", token="t")), Authorize)


FLAGS = ["force_recovery", "force_positioning", "join_leave", "force_push_join_leave"]


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("flags", list(product([False, True], repeat=len(FLAGS))), ids=str)
def test_what_a_subscription_gets(history: bool, flags: tuple[bool, ...]) -> None:
    force_recovery, force_positioning, join_leave, force_push = flags
    said: dict[str, Any] = dict(zip(FLAGS, flags, strict=True))
    options = replace(EVERYTHING, history_size=10 if history else 0, **said)
    for positioned, recoverable, wants_joins, recover in product([False, True], repeat=4):
        since = StreamPosition("e", 3) if recover else None
        request = SubscribeRequest("a", "", positioned, recoverable, wants_joins, since, True)
        join = say(connected(policy(options)), request)
        assert isinstance(join, Subscribe)
        assert join.recoverable == (history and (force_recovery or recoverable))
        assert join.positioned == (
            history
            and (force_recovery or recoverable or force_positioning or positioned or recover)
        )
        assert join.since == (since if history else None)
        assert join.join_leave == (join_leave and (force_push or wants_joins))
        assert join.reject_unrecovered
        assert join.options == options


# ---- permissions, against what the documentation of the options says


@dataclass(frozen=True)
class Case:
    """One combination of who asks, and what the channel allows."""

    insecure: bool
    user: str
    subscribed: bool
    client: bool
    subscriber: bool
    anonymous: bool


CASES = [
    Case(insecure, user, *rest)
    for insecure in (False, True)
    for user in ("", "ann")
    for rest in product([False, True], repeat=4)
]


def allowed(case: Case) -> bool:
    """Everybody where nothing is secured; else clients or subscribers,
    and those without a user by an option more.
    """
    is_somebody = case.user != "" or case.anonymous
    by_subscription = case.subscriber and case.subscribed
    return case.insecure or (is_somebody and (by_subscription or case.client))


ASK: dict[str, Callable[[str], Request]] = {
    "publish": lambda channel: PublishRequest(channel, 1),
    "history": HistoryRequest,
    "presence": PresenceRequest,
}


@pytest.mark.parametrize("channel", ["a", "ns:a", "$a"])
@pytest.mark.parametrize("operation", ASK)
def test_who_may_publish_and_read(operation: str, channel: str) -> None:
    for case in CASES:
        who: dict[str, Any] = {
            f"allow_{operation}_for_client": case.client,
            f"allow_{operation}_for_subscriber": case.subscriber,
            f"allow_{operation}_for_anonymous": case.anonymous,
        }
        options = ChannelOptions(history_size=1, history_ttl_s=1, presence=True, **who)
        session = connected(
            policy(options, insecure=case.insecure),
            case.user,
            *([channel] if case.subscribed else []),
        )
        effect = say(session, ASK[operation](channel))
        if allowed(case):
            assert isinstance(effect, Publish | ReadHistory | ReadPresence), case
        else:
            assert effect == Fail(5, Error.PERMISSION_DENIED), case
        if operation == "publish":
            call = say(session, RpcPublishRequest(channel, 1))
            assert isinstance(call, Publish) == allowed(case)
        if operation == "presence":
            stats = say(session, PresenceStatsRequest(channel))
            assert isinstance(stats, ReadPresence) == allowed(case)


@pytest.mark.parametrize("operation", ASK)
@pytest.mark.parametrize("channel", ["a#", "a#ann,", "a#,ann", "a#ann,,bob", "#"])
def test_an_empty_place_in_a_list_is_not_that_of_who_has_no_user(
    channel: str, operation: str
) -> None:
    who: dict[str, Any] = {
        "allow_user_limited_channels": True,
        f"allow_{operation}_for_client": True,
        f"allow_{operation}_for_anonymous": True,
    }
    held = policy(ChannelOptions(history_size=1, history_ttl_s=1, presence=True, **who))
    assert say(connected(held, ""), ASK[operation](channel)) == Fail(5, Error.PERMISSION_DENIED)
    is_listed = "ann" in channel
    answer = say(connected(held, "ann"), ASK[operation](channel))
    assert isinstance(answer, Fail) is not is_listed


@pytest.mark.parametrize("operation", ASK)
def test_a_feed_that_anybody_may_read_is_written_by_nobody_without_a_user(operation: str) -> None:
    """Being subscribed is not being somebody."""
    by_subscription: dict[str, Any] = {
        f"allow_{operation}_for_client": False,
        f"allow_{operation}_for_subscriber": True,
    }
    options = replace(EVERYTHING, allow_subscribe_for_anonymous=True, **by_subscription)
    for user, refused in (("", True), ("ann", False)):
        session = connected(policy(options), user)
        assert isinstance(say(session, SubscribeRequest("a")), Subscribe)
        assert (say(session, ASK[operation]("a")) == Fail(5, Error.PERMISSION_DENIED)) == refused
    of_all: dict[str, Any] = {f"allow_{operation}_for_anonymous": True}
    session = connected(policy(replace(options, **of_all)), "", "a")
    assert say(session, ASK[operation]("a")) != Fail(5, Error.PERMISSION_DENIED)


# What a subscriber asks for in its subscribe, and what it gets.
def asked(session: Session) -> tuple[bool, bool, bool, bool]:
    request = SubscribeRequest("a", "", True, True, True, StreamPosition("e", 0), True)
    join = say(session, request)
    assert isinstance(join, Subscribe)
    return join.positioned, join.recoverable, join.since is not None, join.join_leave


NOTHING = (False, False, False, False)
ALL_OF_HISTORY = (True, True, True, False)
READABLE: dict[str, Any] = {
    "history_size": 10,
    "history_ttl_s": 60,
    "presence": True,
    "join_leave": True,
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
}


@pytest.mark.parametrize(
    "user, options, gets",
    [
        ("ann", {}, NOTHING),
        ("ann", {"allow_recovery": True}, (True, True, True, False)),
        ("ann", {"allow_positioning": True}, (True, False, False, False)),
        ("ann", {"force_positioning": True}, (True, False, False, False)),
        ("ann", {"force_recovery": True}, (True, True, True, False)),
        ("ann", {"allow_history_for_client": True}, ALL_OF_HISTORY),
        ("ann", {"allow_history_for_subscriber": True}, ALL_OF_HISTORY),
        ("ann", {"allow_history_for_anonymous": True}, NOTHING),
        ("", {"allow_history_for_client": True}, NOTHING),
        ("", {"allow_history_for_subscriber": True}, NOTHING),
        (
            "",
            {"allow_history_for_subscriber": True, "allow_history_for_anonymous": True},
            ALL_OF_HISTORY,
        ),
        ("ann", {"allow_presence_for_client": True}, (False, False, False, True)),
        ("ann", {"allow_presence_for_subscriber": True}, (False, False, False, True)),
        ("", {"allow_presence_for_subscriber": True}, NOTHING),
        ("", {"force_push_join_leave": True}, (False, False, False, True)),
    ],
)
def test_what_a_subscriber_may_not_read_it_does_not_recover(
    user: str, options: dict[str, Any], gets: tuple[bool, bool, bool, bool]
) -> None:
    """Recovery from offset 0 is the history under another name, and joins are presence."""
    rules = ChannelOptions(**READABLE, **options)
    assert asked(connected(policy(rules), user)) == gets
    assert asked(connected(policy(rules, insecure=True), user)) == (True, True, True, True)


def test_a_token_that_lets_history_be_read_lets_it_be_recovered() -> None:
    grant = Grant(("a",), frozenset({Capability.HISTORY, Capability.PRESENCE}))
    session = Session("c1", policy(ChannelOptions(**READABLE)))
    session.command(Command(1, ConnectRequest("t"), 10))
    session.connected("", None, caps=[grant])
    assert asked(session) == (True, True, True, True)
    session = connected(policy(ChannelOptions(**READABLE)))
    request = SubscribeRequest("a", "t", True, True, True, StreamPosition("e", 0))
    effect = say(session, request)
    assert isinstance(effect, Authorize)
    join = session.authorized(
        effect, SubscriptionClaims("ann", "a", None, allow=frozenset({Capability.HISTORY}))
    )
    assert isinstance(join, Subscribe)
    assert (join.recoverable, join.since, join.join_leave) == (True, StreamPosition("e", 0), False)


def test_one_operations_permission_is_not_anothers() -> None:
    for operation in ASK:
        who: dict[str, Any] = {f"allow_{operation}_for_client": True}
        options = ChannelOptions(history_size=1, history_ttl_s=1, presence=True, **who)
        session = connected(policy(options))
        for other, ask in ASK.items():
            denied = say(session, ask("a")) == Fail(5, Error.PERMISSION_DENIED)
            assert denied == (other != operation)


@pytest.mark.parametrize("channel", ["a", "ns:a", "$a", "$ns:a"])
def test_who_may_subscribe(channel: str) -> None:
    for insecure, user, client, anonymous in product(
        [False, True], ["", "ann"], [False, True], [False, True]
    ):
        options = ChannelOptions(
            allow_subscribe_for_client=client, allow_subscribe_for_anonymous=anonymous
        )
        effect = say(connected(policy(options, insecure=insecure), user), SubscribeRequest(channel))
        may = insecure or (channel[0] != "$" and client and (user == "ann" or anonymous))
        assert isinstance(effect, Subscribe) == may
        assert may or effect == Fail(5, Error.PERMISSION_DENIED)


def test_a_subscriber_of_another_channel_is_none_of_this_one() -> None:
    options = replace(EVERYTHING, allow_publish_for_client=False, allow_publish_for_subscriber=True)
    session = connected(policy(options), "ann", "b")
    assert say(session, PublishRequest("a", 1)) == Fail(5, Error.PERMISSION_DENIED)
    assert isinstance(say(session, PublishRequest("b", 1)), Publish)
    session.left("b")
    assert say(session, PublishRequest("b", 1)) == Fail(5, Error.PERMISSION_DENIED)
