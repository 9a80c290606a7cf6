"""service/roomcast/fleet/order_signals.py: an order is the same after its way through the topic,
and what is none is known for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.auth.claims import INFO_DEPTH_MAX, TOKEN_TIME_MAX, ServerSubscription
from roomcast.delivery.envelope import EPOCH_CHARS_MAX, Signal, pack, parse, signal_text
from roomcast.fleet.order_signals import (
    ID_CHARS_MAX,
    ORDER_KINDS,
    USER_CHARS_MAX,
    WHITELIST_MAX,
    DisconnectOrder,
    MalformedOrder,
    Order,
    RefreshOrder,
    ReplaceOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
    order_of,
    order_signal,
)
from roomcast.gateway.writer import close_frame
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.codes import CLOSE_CODE_MAX, CLOSE_CODE_MIN, DisconnectCode, is_reason
from roomcast.wire.encoding import sent_of
from roomcast.wire.names import is_valid_name
from roomcast.wire.publication import ClientInfo, Publication, StreamPosition

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
CHANNELS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=6)
TARGETS = st.builds(Target, TEXT, TEXT, TEXT) | st.builds(
    Target, st.none(), st.text("abc", min_size=1, max_size=4), TEXT
)
INFOS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-5, 5) | TEXT | st.just({}) | st.just([])
)
TIMES = st.none() | st.integers(1, 2**53 - 1)
OVERRIDES = st.builds(ChannelOverride, *[st.none() | st.booleans()] * 5)
ORDERS: st.SearchStrategy[Order] = st.one_of(
    st.builds(
        DisconnectOrder,
        TARGETS,
        st.builds(DisconnectCode, st.integers(3000, 4999), TEXT.filter(is_reason)),
        st.frozensets(TEXT, max_size=3),
    ),
    st.builds(UnsubscribeOrder, TARGETS, st.just("") | CHANNELS),
    st.builds(RefreshOrder, TARGETS, st.booleans(), TIMES, INFOS),
    st.builds(
        SubscribeOrder,
        TARGETS,
        CHANNELS,
        st.builds(ServerSubscription, INFOS, INFOS, OVERRIDES),
        st.none() | st.builds(StreamPosition, TEXT, st.integers(0, 2**53 - 1)),
        TIMES,
    ),
    st.builds(
        ReplaceOrder,
        st.builds(Target, TEXT.filter(bool), TEXT, TEXT),
        TEXT,
        st.integers(0, 2**53 - 1),
    ),
)


@given(ORDERS)
def test_an_order_arrives_as_it_was_given(order: Order) -> None:
    [(body, _)] = pack([signal_text(order_signal(order, "n", "1"))], signals=True)
    [signal] = parse(body).signals
    assert (signal.node, signal.id) == ("n", "1")
    assert signal.kind in ORDER_KINDS
    assert order_of(signal) == order


@given(ORDERS)
def test_what_a_later_release_adds_is_passed_over(order: Order) -> None:
    signal = order_signal(order, "n", "1")
    assert order_of(replace(signal, body=signal.body | {"added": 1})) == order


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 999, 2999, 3000, 4999, 5000, 2**53 - 1, 2**53, 2**64, 10**400])
    | st.sampled_from(["x" * 124, "{}", "\ud800"])
    | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(
    [
        "user",
        "client",
        "session",
        "code",
        "reason",
        "whitelist",
        "expired",
        "expires_at",
        "info",
        "data",
        "override",
        "since",
    ]
)


@given(
    st.sampled_from([*sorted(ORDER_KINDS), "another"]),
    CHANNELS | TEXT,
    JSON | st.dictionaries(NAMES, JSON | TEXT, max_size=6),
)
def test_whatever_comes_is_an_order_or_malformed(kind: str, channel: str, body: Any) -> None:
    try:
        order = order_of(Signal(kind, "1", "n", channel, body))
    except MalformedOrder:
        return
    assert kind in ORDER_KINDS
    assert order.target.user is not None or order.target.client
    match order:
        case DisconnectOrder(_, why):
            assert CLOSE_CODE_MIN <= why.code <= CLOSE_CODE_MAX
            assert close_frame(why)[4:].decode() == why.reason
        case UnsubscribeOrder():
            assert order.channel == "" or is_valid_name(order.channel)
        case RefreshOrder() | SubscribeOrder():
            assert order.expires_at is None or 0 < order.expires_at <= TOKEN_TIME_MAX
            info = order.info if isinstance(order, RefreshOrder) else order.sub.info
            sent_of(Publication(1, info=ClientInfo("u", "c", info, info)), 0)


ANN: dict[str, Any] = {"user": "ann"}
DEEP: Any = None
for _ in range(INFO_DEPTH_MAX + 1):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "kind, channel, body",
    [
        ("disconnect", "", None),
        ("disconnect", "", {}),
        ("disconnect", "", {"client": ""}),
        ("disconnect", "", {"session": "s"}),
        ("disconnect", "", ANN),
        ("disconnect", "", ANN | {"code": None, "reason": "bye"}),
        *(
            ("disconnect", "", ANN | {"code": code})
            for code in ("3000", 0, -1, 999, 1000, 2999, 5000, 65535, 2**40, True)
        ),
        *(
            ("disconnect", "", ANN | {"code": 4000, "reason": reason})
            for reason in ("x" * 124, "é" * 62, "\ud800", '{"reconnect":true}', 7, None)
        ),
        ("disconnect", "", ANN | {"code": 4000, "whitelist": [1]}),
        ("disconnect", "", ANN | {"code": 4000, "whitelist": ["x" * (ID_CHARS_MAX + 1)]}),
        ("disconnect", "", ANN | {"code": 4000, "whitelist": ["x"] * (WHITELIST_MAX + 1)}),
        ("unsubscribe", "x" * 256, ANN),
        ("unsubscribe", "\n", ANN),
        ("unsubscribe", "", {"user": "x" * (USER_CHARS_MAX + 1)}),
        ("unsubscribe", "", ANN | {"client": "x" * (ID_CHARS_MAX + 1)}),
        ("unsubscribe", "", ANN | {"session": "x" * (ID_CHARS_MAX + 1)}),
        *(("refresh", "", ANN | {"expires_at": at}) for at in (-1, TOKEN_TIME_MAX + 1, 10**400)),
        ("refresh", "", ANN | {"info": DEEP}),
        *(("subscribe", "c", ANN | {name: DEEP}) for name in ("info", "data")),
        ("subscribe", "c", ANN | {"expires_at": -1}),
        ("subscribe", "c", ANN | {"since": {"offset": 2**53}}),
        ("subscribe", "c", ANN | {"since": {"offset": 1, "epoch": "e" * (EPOCH_CHARS_MAX + 1)}}),
        ("refresh", "", ANN | {"expired": 1}),
        ("refresh", "", ANN | {"expires_at": 1.5}),
        ("refresh", "", ANN | {"expires_at": True}),
        ("subscribe", "", ANN),
        ("subscribe", "c", ANN | {"override": {"presence": 1}}),
        ("subscribe", "c", ANN | {"override": []}),
        ("subscribe", "c", ANN | {"since": 4}),
        ("subscribe", "c", ANN | {"since": {"offset": -1}}),
        ("another", "c", ANN),
    ],
)
def test_what_is_no_order(kind: str, channel: str, body: Any) -> None:
    with pytest.raises(MalformedOrder):
        order_of(Signal(kind, "1", "n", channel, body))


def test_no_order_is_for_everybody() -> None:
    with pytest.raises(AssertionError, match="everybody"):
        Target()
    with pytest.raises(AssertionError, match="everybody"):
        Target(None, "", "s")
    assert Target("") == Target("", "", "")
