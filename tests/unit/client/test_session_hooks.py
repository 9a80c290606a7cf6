"""service/roomcast/client/session.py: what an application's hooks are asked,
and what follows from what they say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from roomcast.auth.claims import ConnectionClaims, ServerSubscription
from roomcast.client.effects import (
    AskPublish,
    AskSubscribe,
    Authenticate,
    Authorize,
    Call,
    Effect,
    Fail,
    Ignore,
    Publish,
    ReadHistory,
    Subscribe,
)
from roomcast.client.session import Admission, Policy, Session
from roomcast.hooks.events import ConnectReply, PublishReply, SubscribeReply
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOptions, ChannelOverride, ChannelRules
from roomcast.wire.codes import Disconnect, Error
from roomcast.wire.commands import (
    Command,
    ConnectRequest,
    HistoryRequest,
    PublishRequest,
    Request,
    RpcPublishRequest,
    RpcRequest,
    SubRefreshRequest,
    SubscribeRequest,
)
from roomcast.wire.publication import ClientInfo, StreamPosition
from roomcast.wire.versions import Version

HISTORY = ChannelOptions(history_size=10, history_ttl_s=60)
OPEN = replace(HISTORY, allow_subscribe_for_client=True, allow_publish_for_client=True)
LISTED = replace(HISTORY, allow_user_limited_channels=True)
RULES = ChannelRules(HISTORY, {"open": OPEN, "plain": ChannelOptions(), "listed": LISTED})
HOOKED = Policy(
    RULES,
    insecure=False,
    allow_anonymous=False,
    channel_limit=2,
    message_size_limit=1000,
    asks_subscribe=True,
    asks_publish=True,
    has_methods=True,
)
UNHOOKED = replace(HOOKED, asks_subscribe=False, asks_publish=False, has_methods=False)
DENIED = Fail(5, Error.PERMISSION_DENIED)


def say(session: Session, request: Request) -> Effect:
    return session.command(Command(5, request, 10))


def connected(policy: Policy = HOOKED, user: str = "ann", caps: tuple[Grant, ...] = ()) -> Session:
    session = Session("c1", policy)
    say(session, ConnectRequest())
    session.connected(user, {"name": "Ann"}, caps=caps)
    return session


# ---- connect


def test_what_the_client_says_reaches_the_hook() -> None:
    since = {"room": StreamPosition("e", 3)}
    request = ConnectRequest("t", {"cookie": "x"}, "js", "1.0", since)
    assert say(Session("c1", HOOKED), request) == Authenticate(
        5, "t", since, {"cookie": "x"}, "js", "1.0"
    )


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("reply", [None, ConnectReply(), ConnectReply(user="ann")])
def test_who_is_admitted_without_a_token(
    insecure: bool, anonymous: bool, reply: ConnectReply | None
) -> None:
    session = Session("c1", replace(HOOKED, insecure=insecure, allow_anonymous=anonymous))
    user = reply.user if reply else ""
    if insecure or anonymous or user:
        assert session.admitted(None, reply) == Admission(ConnectionClaims(user, None))
    else:
        assert session.admitted(None, reply) is Error.UNAUTHORIZED


def test_a_hook_says_all_of_who_has_no_token() -> None:
    subs = {"room": ServerSubscription(data=1)}
    caps = (Grant(("room",), frozenset({Capability.PUBLISH})),)
    reply = ConnectReply("ann", 2_000_000_000, {"name": "Ann"}, "hello", subs, caps)
    # Nobody can refresh it: what ends is the connection, and not a token.
    assert Session("c1", HOOKED).admitted(None, reply) == Admission(
        ConnectionClaims("ann", None, {"name": "Ann"}, subs=subs, caps=caps), "hello", 2_000_000_000
    )


def test_a_hook_adds_to_a_token() -> None:
    narrow = Grant(("room",), frozenset())
    wide = Grant(("*",), frozenset({Capability.PUBLISH}), is_pattern=True)
    claims = ConnectionClaims(
        "ann",
        2_000_000_000,
        {"name": "Ann"},
        "meta",
        {"room": ServerSubscription(data="token")},
        (narrow,),
    )
    reply = ConnectReply(
        expires_at=1_900_000_000,
        info={"name": "Mallory"},
        data="hello",
        subs={"room": ServerSubscription(data="hook"), "more": ServerSubscription()},
        caps=(wide,),
    )
    admission = Session("c1", HOOKED).admitted(claims, reply)
    assert isinstance(admission, Admission)
    assert admission.data == "hello"
    assert admission.ends_at is None
    assert admission.claims == replace(
        claims,
        subs={"room": ServerSubscription(data="token"), "more": ServerSubscription()},
        caps=(narrow, wide),
    )
    without_info = Session("c1", HOOKED).admitted(replace(claims, info=None), reply)
    assert isinstance(without_info, Admission)
    assert without_info.claims.info == {"name": "Mallory"}
    assert Session("c1", HOOKED).admitted(claims, None) == Admission(claims)


# ---- subscribe


@pytest.mark.parametrize("channel", ["room", "open:room"])
def test_the_hook_is_asked_before_the_rules(channel: str) -> None:
    session = connected()
    request = SubscribeRequest(channel, data={"from": "client"})
    assert say(session, request) == AskSubscribe(5, request)
    assert channel in session.channels


@pytest.mark.parametrize(
    "request_, effect",
    [
        (SubscribeRequest("$room"), DENIED),
        (SubscribeRequest("listed:room#bob"), DENIED),
        (SubscribeRequest("gone:room"), Fail(5, Error.UNKNOWN_CHANNEL)),
        (SubscribeRequest("room", type=1), Fail(5, Error.NOT_AVAILABLE)),
        (
            SubscribeRequest("room", token="t"),
            Authorize(5, "ann", SubscribeRequest("room", token="t")),
        ),
        (
            SubscribeRequest("$room", token="t"),
            Authorize(5, "ann", SubscribeRequest("$room", token="t")),
        ),
    ],
)
def test_what_is_decided_without_the_hook(request_: SubscribeRequest, effect: Effect) -> None:
    assert say(connected(), request_) == effect


def test_who_is_in_the_list_is_not_asked_about() -> None:
    assert isinstance(say(connected(), SubscribeRequest("listed:room#bob,ann")), Subscribe)


@pytest.mark.parametrize("channel", ["room", "$room", "room#bob"])
def test_an_insecure_server_asks_too(channel: str) -> None:
    session = connected(replace(HOOKED, insecure=True))
    request = SubscribeRequest(channel, token="t")
    asked = say(session, request)
    assert asked == AskSubscribe(5, request)
    assert isinstance(session.answered(asked, None), Subscribe)


def asked(session: Session, request: SubscribeRequest) -> AskSubscribe:
    effect = say(session, request)
    assert isinstance(effect, AskSubscribe)
    return effect


def test_without_an_opinion_the_rules_decide() -> None:
    session = connected()
    assert session.answered(asked(session, SubscribeRequest("room")), None) == DENIED
    assert session.channels == set()
    with_hook = session.answered(asked(session, SubscribeRequest("open:room")), None)
    assert with_hook == say(connected(UNHOOKED), SubscribeRequest("open:room"))
    caps = (Grant(("room",), frozenset({Capability.SUBSCRIBE})),)
    session = connected(caps=caps)
    assert isinstance(session.answered(asked(session, SubscribeRequest("room")), None), Subscribe)


def test_the_hook_allows_what_the_rules_do_not() -> None:
    session = connected()
    reply = SubscribeReply(
        {"role": "owner"},
        "welcome",
        2_000_000_000,
        ChannelOverride(presence=True),
        frozenset({Capability.HISTORY}),
    )
    request = SubscribeRequest("room", positioned=True)
    assert session.answered(asked(session, request), reply) == Subscribe(
        id=5,
        channel="room",
        options=replace(HISTORY, presence=True),
        positioned=True,
        recoverable=False,
        since=None,
        reject_unrecovered=False,
        join_leave=False,
        info=ClientInfo("ann", "c1", {"name": "Ann"}, {"role": "owner"}),
        data="welcome",
        ends_at=2_000_000_000,
    )
    assert isinstance(say(session, HistoryRequest("room")), ReadHistory)
    assert say(connected(), HistoryRequest("room")) == DENIED
    # Its client has no token to refresh it with.
    assert say(session, SubRefreshRequest("room", "t")) == session.close(Disconnect.BAD_REQUEST)


def test_a_subscription_that_is_asked_about_counts() -> None:
    session = connected()
    first = asked(session, SubscribeRequest("one"))
    asked(session, SubscribeRequest("two"))
    assert say(session, SubscribeRequest("three")) == Fail(5, Error.LIMIT_EXCEEDED)
    assert say(session, SubscribeRequest("one")) == Fail(5, Error.ALREADY_SUBSCRIBED)
    # The hook said no.
    session.left(first.request.channel)
    asked(session, SubscribeRequest("three"))


def test_an_answer_that_comes_after_the_end() -> None:
    session = connected()
    effect = asked(session, SubscribeRequest("room"))
    session.close(Disconnect.SHUTDOWN)
    assert session.answered(effect, SubscribeReply()) == Ignore()


# ---- publish


PUBLISHED: dict[str, Any] = {
    "id": 5,
    "data": "hi",
    "info": ClientInfo("ann", "c1", {"name": "Ann"}),
}


@pytest.mark.parametrize(
    "channel, options, is_open", [("room", HISTORY, False), ("open:room", OPEN, True)]
)
def test_what_may_be_published(channel: str, options: ChannelOptions, is_open: bool) -> None:
    allowed = Publish(channel=channel, options=options, **PUBLISHED)
    effect = say(connected(), PublishRequest(channel, "hi"))
    assert effect == AskPublish(5, allowed, allowed if is_open else DENIED)
    assert effect.decided(None) == (allowed if is_open else DENIED)
    assert effect.decided(PublishReply()) == allowed
    assert effect.decided(PublishReply("ho")) == replace(allowed, data="ho")
    assert effect.decided(PublishReply(None)) == replace(allowed, data=None)
    versioned = replace(allowed, version=Version(7, "e"))
    assert effect.decided(PublishReply(version=7, version_epoch="e")) == versioned
    assert effect.decided(PublishReply("ho", version=7, version_epoch="e")) == replace(
        versioned, data="ho"
    )
    assert effect.decided(PublishReply(version_epoch="e")) == allowed


def test_a_call_that_publishes_is_a_publication() -> None:
    effect = say(connected(), RpcPublishRequest("room", "hi", "key"))
    allowed = Publish(channel="room", options=HISTORY, rpc=True, key="key", **PUBLISHED)
    assert effect == AskPublish(5, allowed, DENIED)
    assert say(connected(), RpcPublishRequest("plain:room", "hi")) == Fail(5, Error.NOT_AVAILABLE)
    assert say(connected(), RpcPublishRequest("gone:room", "hi")) == Fail(5, Error.UNKNOWN_CHANNEL)
    assert say(connected(UNHOOKED), RpcPublishRequest("plain:room", "hi")) == DENIED


@pytest.mark.parametrize(
    "request_, effect",
    [
        (PublishRequest("é", "hi"), Fail(5, Error.BAD_REQUEST)),
        (PublishRequest("gone:room", "hi"), Fail(5, Error.UNKNOWN_CHANNEL)),
        (PublishRequest("room", "hi", type=1), Fail(5, Error.NOT_AVAILABLE)),
    ],
)
def test_what_nobody_may_publish(request_: PublishRequest, effect: Effect) -> None:
    assert say(connected(), request_) == effect


# ---- calls


def test_calls_need_a_registry() -> None:
    request = RpcRequest("add", [1, 2])
    assert say(connected(), request) == Call(5, "add", [1, 2])
    assert say(connected(UNHOOKED), request) == Fail(5, Error.NOT_AVAILABLE)


# ---- hooks that the options of a channel name


def test_a_channel_asks_where_its_options_say_so() -> None:
    asking = replace(OPEN, subscribe_proxy_enabled=True, publish_proxy_enabled=True)
    rules = ChannelRules(OPEN, {"asked": asking})
    session = connected(replace(UNHOOKED, rules=rules, channel_limit=9))
    for channel, subscribed, published in (
        ("room", Subscribe, Publish),
        ("asked:room", AskSubscribe, AskPublish),
    ):
        assert isinstance(say(session, SubscribeRequest(channel)), subscribed)
        assert isinstance(say(session, PublishRequest(channel, 1)), published)


def test_a_publication_may_leave_no_trace() -> None:
    asked = say(connected(), PublishRequest("room", "a"))
    assert isinstance(asked, AskPublish)
    decided = asked.decided(PublishReply(skip_history=True))
    assert isinstance(decided, Publish)
    assert (decided.data, decided.options.has_history) == ("a", False)
    assert asked.allowed.options.has_history
    # Whoever is to be told its position is told that there is none.
    called = say(connected(), RpcPublishRequest("room", "a"))
    assert isinstance(called, AskPublish)
    assert called.decided(PublishReply(skip_history=True)) == Fail(5, Error.NOT_AVAILABLE)


@pytest.mark.parametrize(
    "by_token, reply, meta",
    [
        (ConnectionClaims("ann", None, meta=1), ConnectReply(meta=2), 1),
        (ConnectionClaims("ann", None), ConnectReply(meta=2), 2),
        (None, ConnectReply("ann", meta=2), 2),
    ],
)
def test_the_meta_of_a_token_goes_before_a_hooks(
    by_token: ConnectionClaims | None, reply: ConnectReply, meta: int
) -> None:
    for keeps in (True, False):
        session = Session("c1", replace(HOOKED, keeps_meta=keeps))
        say(session, ConnectRequest())
        admission = session.admitted(by_token, reply)
        assert isinstance(admission, Admission)
        assert session.meta == (meta if keeps else None)
