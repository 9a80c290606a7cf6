"""service/core/orders.py: an order is the same after its way through the topic, and what is none is known for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.channels import ChannelOverride
from service.core.codes import DisconnectCode
from service.core.envelope import Signal, pack, parse, signal_text
from service.core.orders import (
    ORDER_KINDS,
    DisconnectOrder,
    MalformedOrder,
    Order,
    RefreshOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
    order_of,
    order_signal,
)
from service.core.publication import StreamPosition
from service.core.tokens import ServerSubscription

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
        st.builds(DisconnectCode, st.integers(3000, 4999), TEXT),
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
    st.none() | st.booleans() | st.integers() | TEXT,
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


ANN: dict[str, Any] = {"user": "ann"}


@pytest.mark.parametrize(
    "kind, channel, body",
    [
        ("disconnect", "", None),
        ("disconnect", "", {}),
        ("disconnect", "", {"client": ""}),
        ("disconnect", "", {"session": "s"}),
        ("disconnect", "", ANN | {"code": "3000"}),
        ("disconnect", "", ANN | {"whitelist": [1]}),
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
