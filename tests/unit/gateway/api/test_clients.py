"""subscribe, unsubscribe, disconnect and refresh: which order they become, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import jwt
import pytest

from roomcast.auth.claims import ServerSubscription
from roomcast.delivery import broadcaster as broadcaster_module
from roomcast.fleet import order_post as order_post_module
from roomcast.fleet.order_signals import (
    WHITELIST_MAX,
    DisconnectOrder,
    Order,
    RefreshOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
)
from roomcast.gateway.api import clients as clients_module
from roomcast.ports import Rejected
from roomcast.wire.channels import ChannelOverride
from roomcast.wire.codes import Disconnect, DisconnectCode
from roomcast.wire.publication import StreamPosition
from tests.unit.binary import binary
from tests.unit.gateway.api.conftest import SIZE_LIMIT, Caller, Serve
from tests.unit.worlds import SECRET, Fleet, until

FORCE = Disconnect.FORCE_NO_RECONNECT.value
ANN = Target("ann")


@pytest.fixture
def given(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """The orders that are given, and carried out by nobody."""
    orders: list[Order] = []

    def give(order: Order) -> asyncio.Future[None]:
        orders.append(order)
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        given.set_result(None)
        return given

    monkeypatch.setattr(caller.node.assembly.node.orders, "give", give)
    return orders


def encoded(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "method, params, order",
    [
        ("disconnect", {"user": "ann"}, DisconnectOrder(ANN, FORCE)),
        ("disconnect", {"user": ""}, DisconnectOrder(Target(""), FORCE)),
        ("disconnect", {"client": "c"}, DisconnectOrder(Target(None, "c"), FORCE)),
        (
            "disconnect",
            {"user": "ann", "client": "c", "session": "s", "whitelist": ["x", "y"]},
            DisconnectOrder(Target("ann", "c", "s"), FORCE, frozenset("xy")),
        ),
        (
            "disconnect",
            {"user": "ann", "disconnect": {"code": 4500, "reason": "banned"}},
            DisconnectOrder(ANN, DisconnectCode(4500, "banned")),
        ),
        ("disconnect", {"user": "ann", "disconnect": {}}, DisconnectOrder(ANN, FORCE)),
        (
            "disconnect",
            {"user": "ann", "disconnect": {"code": 0, "reason": ""}},
            DisconnectOrder(ANN, FORCE),
        ),
        (
            "disconnect",
            {"user": "ann", "disconnect": {"reason": "why not"}},
            DisconnectOrder(ANN, DisconnectCode(3503, "why not")),
        ),
        (
            "disconnect",
            {"user": "ann", "disconnect": {"code": 3000}},
            DisconnectOrder(ANN, DisconnectCode(3000, "")),
        ),
        ("unsubscribe", {"user": "ann", "channel": "lobby"}, UnsubscribeOrder(ANN, "lobby")),
        ("unsubscribe", {"user": "ann", "channel": ""}, UnsubscribeOrder(ANN, "")),
        ("refresh", {"user": "ann"}, RefreshOrder(ANN)),
        ("refresh", {"user": "ann", "expire_at": 0, "expired": None}, RefreshOrder(ANN)),
        ("refresh", {"user": "ann", "expired": True}, RefreshOrder(ANN, expired=True)),
        (
            "refresh",
            {"user": "ann", "expire_at": 7, "info": {"a": 1}},
            RefreshOrder(ANN, expires_at=7, info={"a": 1}),
        ),
        ("subscribe", {"user": "ann", "channel": "lobby"}, SubscribeOrder(ANN, "lobby")),
        ("subscribe", {"user": "ann", "channel": "$lobby#bob"}, SubscribeOrder(ANN, "$lobby#bob")),
        (
            "subscribe",
            {
                "user": "ann",
                "client": "c",
                "channel": "lobby",
                "info": [1],
                "data": "d",
                "recover_since": {"offset": 5, "epoch": "e"},
                "override": {
                    "presence": {"value": True},
                    "join_leave": {"value": False},
                    "force_recovery": None,
                },
                "expire_at": 9,
            },
            SubscribeOrder(
                Target("ann", "c"),
                "lobby",
                ServerSubscription([1], "d", ChannelOverride(presence=True, join_leave=False)),
                StreamPosition("e", 5),
                9,
            ),
        ),
        (
            "subscribe",
            {
                "user": "ann",
                "channel": "lobby",
                "info": 1,
                "b64info": encoded("i"),
                "data": 1,
                "b64data": encoded(None),
                "recover_since": {},
            },
            SubscribeOrder(ANN, "lobby", ServerSubscription("i", None), StreamPosition("", 0)),
        ),
    ],
)
async def test_a_request_becomes_an_order(
    caller: Caller, given: list[Order], method: str, params: dict[str, Any], order: Order
) -> None:
    assert await caller.result(method, **params) == {}
    assert given == [order]


WHOM = "user is required, unless there is a client"
CHANNEL = "channel must be 1 to 255 printable ASCII characters"
EXPIRE_AT = "expire_at must be a whole number from 0 to 9007199254740991"
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "method, params, code, message",
    [
        ("disconnect", {}, 107, WHOM),
        ("disconnect", {"session": "s"}, 107, WHOM),
        ("disconnect", {"user": None, "client": ""}, 107, WHOM),
        ("disconnect", {"user": 42}, 107, "user must be a string of at most 8192 characters"),
        (
            "disconnect",
            {"user": "a", "client": "x" * 65},
            107,
            "client must be a string of at most 64 characters",
        ),
        (
            "disconnect",
            {"user": "a", "session": 1},
            107,
            "session must be a string of at most 64 characters",
        ),
        (
            "disconnect",
            {"user": "a", "whitelist": "c"},
            107,
            "whitelist must be an array of 0 to 1000 values",
        ),
        (
            "disconnect",
            {"user": "a", "whitelist": ["c", None]},
            107,
            "whitelist[1] must be a string of at most 64 characters",
        ),
        ("disconnect", {"user": "a", "disconnect": 3000}, 107, "disconnect must be an object"),
        (
            "disconnect",
            {"user": "a", "disconnect": {"code": 2999}},
            107,
            "disconnect.code must be from 3000 to 4999",
        ),
        (
            "disconnect",
            {"user": "a", "disconnect": {"code": 5000}},
            107,
            "disconnect.code must be a whole number from 0 to 4999",
        ),
        (
            "disconnect",
            {"user": "a", "disconnect": {"code": True}},
            107,
            "disconnect.code must be a whole number from 0 to 4999",
        ),
        (
            "disconnect",
            {"user": "a", "disconnect": {"reason": "é" * 62}},
            107,
            "disconnect.reason must be at most 123 bytes of text, and no JSON",
        ),
        (
            "disconnect",
            {"user": "a", "disconnect": {"reason": '{"reconnect":true}'}},
            107,
            "disconnect.reason must be at most 123 bytes of text, and no JSON",
        ),
        ("unsubscribe", {"user": "a"}, 107, "channel is required"),
        ("unsubscribe", {"channel": "c"}, 107, WHOM),
        ("unsubscribe", {"user": "a", "channel": "é"}, 107, CHANNEL),
        ("unsubscribe", {"user": "a", "channel": "no:where"}, 102, ""),
        ("refresh", {}, 107, WHOM),
        ("refresh", {"user": "a", "expired": "yes"}, 107, "expired must be true or false"),
        ("refresh", {"user": "a", "expire_at": -1}, 107, EXPIRE_AT),
        ("refresh", {"user": "a", "expire_at": 1.5}, 107, EXPIRE_AT),
        ("refresh", {"user": "a", "expire_at": "7"}, 107, EXPIRE_AT),
        ("refresh", {"user": "a", "info": DEEP}, 107, "info is nested too deeply"),
        ("subscribe", {"channel": "c"}, 107, WHOM),
        ("subscribe", {"user": "a"}, 107, "channel is required"),
        ("subscribe", {"user": "a", "channel": ""}, 107, CHANNEL),
        ("subscribe", {"user": "a", "channel": "no:where"}, 102, ""),
        (
            "subscribe",
            {"user": "a", "channel": "c", "data": DEEP},
            107,
            "data is nested too deeply",
        ),
        (
            "subscribe",
            {"user": "a", "channel": "c", "b64info": encoded(DEEP)},
            107,
            "b64info is nested too deeply",
        ),
        (
            "subscribe",
            {"user": "a", "channel": "c", "info": "x" * SIZE_LIMIT},
            106,
            f"info is larger than {SIZE_LIMIT} bytes",
        ),
        (
            "subscribe",
            {"user": "a", "channel": "c", "recover_since": {"offset": -1}},
            107,
            "recover_since.offset must be a whole number from 0 to 9007199254740991",
        ),
        (
            "subscribe",
            {"user": "a", "channel": "c", "override": {"presence": True}},
            107,
            "override.presence must be an object",
        ),
        (
            "subscribe",
            {"user": "a", "channel": "c", "override": {"presence": {}}},
            107,
            "override.presence.value is required",
        ),
    ],
)
async def test_a_bad_request_is_no_order(
    caller: Caller, given: list[Order], method: str, params: dict[str, Any], code: int, message: str
) -> None:
    names = {102: "unknown channel", 106: "limit exceeded", 107: "bad request"}
    expected = f"{names[code]}: {message}" if message else names[code]
    assert await caller.refusal(method, **params) == (code, expected)
    assert given == []


async def test_the_largest_requests_fit(serve: Serve) -> None:
    caller = await serve(size_limit=64 * 1024)
    whitelist = [f"{number:064d}" for number in range(WHITELIST_MAX)]
    half = "x" * (60 * 1024)
    async with caller.node.sending():
        assert await caller.result("disconnect", user="ann", whitelist=whitelist) == {}
        assert await caller.result("subscribe", user="ann", channel="c", info=half, data=half) == {}


async def test_an_order_that_cannot_be_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await serve(size_limit=96 * 1024)
    large = "x" * (90 * 1024)
    code, _ = await caller.refusal("subscribe", user="ann", channel="c", info=large, data=large)
    assert code == 106
    monkeypatch.setattr(broadcaster_module, "WAITING_BYTES_MAX", 0)
    assert await caller.refusal("disconnect", user="ann") == (111, "too many requests")


async def test_an_order_that_was_not_sent(
    commander: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = (100, "internal server error: the order may not have reached everybody")
    commander.node.world.fail_next("publish", Rejected("simulated"))
    assert await commander.refusal("disconnect", user="ann") == refused
    monkeypatch.setattr(order_post_module, "SEND_S", 0.0)
    assert await commander.refusal("refresh", user="ann") == refused


async def test_an_order_of_a_back_end_that_hangs_up_is_given_all_the_same(
    commander: Caller, fleet: Fleet
) -> None:
    held, before = fleet.traffic.hold("publish"), len(fleet.world.published)
    begun = clients_module._Given(commander.node.assembly.node.orders.give(RefreshOrder(ANN)))
    asking = asyncio.create_task(begun.result())
    await held.arrived()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    held.release()
    await begun.future
    assert len(fleet.world.published) == before + 1


async def test_orders_of_a_batch_are_given_together_and_answered_each(commander: Caller) -> None:
    commands = [{"refresh": {"user": f"user-{number}"}} for number in range(50)]
    commander.node.world.fail_next("publish", Rejected("simulated"))
    for codes in ({100, None}, {None}):
        status, answer = await commander.post({"commands": commands}, to="batch")
        assert status == 200
        assert {reply.get("error", {}).get("code") for reply in answer["replies"]} == codes
    assert len(commander.node.world.published) < len(commands), "they share messages"


async def test_clients_of_this_node_and_of_another_obey(serve: Serve) -> None:
    here = await serve(secret=SECRET)
    there = await serve(name="b", secret=SECRET)
    async with here.node.running(), there.node.running():
        token = jwt.encode({"sub": "ann"}, SECRET)
        ann = [await each.node.client(token=token) for each in (here, there)]
        await here.result("subscribe", user="ann", channel="all:x", data="hi")
        await until(
            lambda: all(any("subscribe" in push for push in each.socket.pushes) for each in ann)
        )
        for each in ann:
            [push] = [push for push in each.socket.pushes if "subscribe" in push]
            assert push["subscribe"]["data"] == "hi"
        await there.result("unsubscribe", user="ann", channel="all:x")
        await until(lambda: all(each.socket.unsubscribed("all:x") for each in ann))
        await here.result("refresh", user="ann", expire_at=here.node.clock.now_ms() // 1000 + 60)
        await until(
            lambda: all(
                {"refresh": {"expires": True, "ttl": 60}} in each.socket.pushes for each in ann
            )
        )
        await there.result("disconnect", user="ann", whitelist=[ann[0].id])
        await until(lambda: ann[1].socket.closed_with)
        assert ann[1].socket.closed_with == FORCE
        assert ann[0].socket.closed_with is None
        for caller, client in zip((here, there), ann, strict=True):
            caller.node.assembly.node.closed(client.connection)


async def test_a_subscription_to_a_binary_channel_may_come_with_any_bytes(caller: Caller) -> None:
    client = await binary(caller.node)
    params = {"client": client.connection.session.client, "b64data": "/wA="}
    assert (await caller.refusal("subscribe", channel="lobby", **params))[0] == 107
    large = base64.b64encode(bytes(5000)).decode()
    wrong = {**params, "channel": "bin:room", "b64data": large}
    assert (await caller.refusal("subscribe", **wrong))[0] == 106
    await caller.result("subscribe", channel="bin:room", **params)

    def pushed() -> list[bytes]:
        return [
            each.push.subscribe.data
            for each in client.socket.messages
            if each.push.HasField("subscribe")
        ]

    await until(pushed)
    assert pushed() == [b"\xff\x00"]
