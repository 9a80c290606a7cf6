"""service/roomcast/client/renewing.py: a hook says whether what is over goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.client.renewing import AGAIN_S
from roomcast.fleet.order_signals import RefreshOrder, Target
from roomcast.hooks import (
    ConnectEvent,
    ConnectReply,
    Disconnected,
    RefreshEvent,
    RefreshReply,
    Refused,
    SubRefreshEvent,
    SubRefreshReply,
    SubscribeReply,
)
from roomcast.hooks.calls import Hooks
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Disconnect, DisconnectCode
from tests.unit.worlds import SECRET, Client, Fleet, LocalNode, settled, until

NOW_S: Final = 1_700_000_000
PAST, LATER = 1, NOW_S + 3600


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@asynccontextmanager
async def node(fleet: Fleet, hooks: Hooks, **changes: Any) -> AsyncIterator[LocalNode]:
    secure: dict[str, Any] = {"insecure": False, "secret": SECRET}
    made = fleet.node(hooks=hooks, **secure | changes)
    yield made
    await made.close()
    await until(lambda: made.assembly.hooks.counters.under_way == 0)


class Says:
    """A hook that says one thing after the other, and remembers what it was asked."""

    def __init__(self, *replies: object) -> None:
        self.events: list[Any] = []
        self._replies = list(replies)
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, event: Any) -> Any:
        self.events.append(event)
        await self.gate.wait()
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def late(client: Client, name: str | None) -> float | None:
    """Seconds until the time of `name` is over; None = it never is."""
    ends: float | None = client.connection._lifetime._deadlines._ends.get(name)
    return None if ends is None else ends - asyncio.get_running_loop().time()


async def connect(_event: ConnectEvent) -> ConnectReply:
    return ConnectReply("ann", PAST, info={"n": 1}, meta={"s": "1"})


async def test_a_connection_goes_on(fleet: Fleet) -> None:
    refresh = Says(RefreshReply(LATER, info={"n": 2}, meta={"s": "2"}))
    async with node(fleet, Hooks(connect=connect, refresh=refresh)) as served:
        client = await served.client()
        await until(lambda: refresh.events)
        await settled()
        assert refresh.events == [
            RefreshEvent(client.id, "ann", {"n": 1}, {"s": "1"}, client.connection._peer.carrier)
        ]
        assert client.socket.closed_with is None
        left_s = late(client, None)
        assert left_s is not None
        assert 3590 < left_s <= 3600
        assert client.connection.session.info.conn_info == {"n": 2}
        assert client.connection.session.meta == {"s": "2"}
        # Nothing was said to the client.
        assert [line for line in client.socket.lines if "push" in line] == []


@pytest.mark.parametrize(
    "reply, why",
    [
        (None, Disconnect.EXPIRED),
        (RefreshReply(PAST), Disconnect.EXPIRED),
        (Refused(403, "signed out"), Disconnect.EXPIRED),
        (Disconnected(4501, "banned"), DisconnectCode(4501, "banned")),
    ],
)
async def test_a_connection_does_not_go_on(fleet: Fleet, reply: object, why: object) -> None:
    refresh = Says(reply)
    async with node(fleet, Hooks(connect=connect, refresh=refresh)) as served:
        client = await served.client()
        await until(lambda: client.socket.closed_with)
        assert client.socket.closed_with == why


@pytest.mark.parametrize("reply", [RuntimeError("database"), "yes", RefreshReply(None)])  # type: ignore[arg-type]  # what an application may do
async def test_a_hook_that_fails_is_asked_again(fleet: Fleet, reply: object) -> None:
    refresh = Says(reply)
    async with node(fleet, Hooks(connect=connect, refresh=refresh)) as served:
        client = await served.client()
        await until(lambda: late(client, None) is not None)
        left_s = late(client, None)
        assert left_s is not None
        assert AGAIN_S * 0.5 - 1 < left_s <= AGAIN_S * 1.5
        assert client.socket.closed_with is None


async def test_a_connection_that_ends_meanwhile(fleet: Fleet) -> None:
    refresh = Says(RefreshReply(LATER))
    refresh.gate.clear()
    async with node(fleet, Hooks(connect=connect, refresh=refresh)) as served:
        client = await served.client()
        await until(lambda: refresh.events)
        served.assembly.node.closed(client.connection)
        await until(lambda: served.assembly.hooks.counters.under_way == 0)
        assert late(client, None) is None


async def test_with_a_hook_no_token_is_refreshed_by_its_client(fleet: Fleet) -> None:
    refresh = Says(RefreshReply(LATER))
    token = sign_connection("ann", SECRET, 90, None, now_s=NOW_S, claims={"meta": {"t": 1}})
    async with node(fleet, Hooks(refresh=refresh)) as served:
        client = served.open()
        result = await client.connect(token=token)
        assert "expires" not in result
        assert client.connection.session.meta == {"t": 1}
        left_s = late(client, None)
        assert left_s is not None
        # Without the grace that a client has to fetch another.
        assert left_s <= 90
        client.connection.order_refresh(RefreshOrder(Target("ann"), expires_at=LATER))
        await settled()
        assert client.socket.pushes[-1]["refresh"] == {}
        await client.say({"refresh": {"token": token}})
        assert client.socket.closed_with is Disconnect.BAD_REQUEST


# ---- subscriptions


async def subscribe(_event: object) -> SubscribeReply:
    return SubscribeReply(expires_at=PAST)


@pytest.mark.parametrize("until_s, left", [(LATER, True), (None, False)])
async def test_a_subscription_goes_on(fleet: Fleet, until_s: int | None, left: bool) -> None:
    sub_refresh = Says(SubRefreshReply(until_s))
    hooks = Hooks(connect=no_end, subscribe=subscribe, sub_refresh=sub_refresh)
    async with node(fleet, hooks) as served:
        client = await served.client()
        result = await client.subscribe("room")
        assert "expires" not in result
        await until(lambda: sub_refresh.events)
        await settled()
        [event] = sub_refresh.events
        assert isinstance(event, SubRefreshEvent)
        assert (event.user, event.channel) == ("ann", "room")
        assert client.socket.unsubscribed("room") == []
        assert (late(client, "room") is not None) == left


async def no_end(_event: ConnectEvent) -> ConnectReply:
    return ConnectReply("ann")


@pytest.mark.parametrize("reply", [None, SubRefreshReply(PAST), Refused(403, "no member")])
async def test_a_subscription_does_not_go_on(fleet: Fleet, reply: object) -> None:
    hooks = Hooks(connect=no_end, subscribe=subscribe, sub_refresh=Says(reply))
    async with node(fleet, hooks) as served:
        client = await served.client()
        await client.subscribe("room")
        await until(lambda: client.socket.unsubscribed("room"))
        assert client.socket.unsubscribed("room") == [2501]
        assert client.socket.closed_with is None


async def test_a_subscriptions_hook_that_fails_is_asked_again(fleet: Fleet) -> None:
    hooks = Hooks(connect=no_end, subscribe=subscribe, sub_refresh=Says(RuntimeError()))
    async with node(fleet, hooks) as served:
        client = await served.client()
        await client.subscribe("room")
        await until(lambda: late(client, "room") is not None)
        assert client.socket.unsubscribed("room") == []


async def test_a_subscription_that_is_made_anew_meanwhile_is_another(fleet: Fleet) -> None:
    sub_refresh = Says(None, SubRefreshReply(LATER))
    sub_refresh.gate.clear()
    hooks = Hooks(connect=no_end, subscribe=subscribe, sub_refresh=sub_refresh)
    async with node(fleet, hooks) as served:
        client = await served.client()
        await client.subscribe("room")
        await until(lambda: len(sub_refresh.events) == 1)
        await client.ask("unsubscribe", channel="room")
        await client.subscribe("room")
        await until(lambda: len(sub_refresh.events) == 2)
        sub_refresh.gate.set()
        await until(lambda: late(client, "room") is not None)
        assert client.socket.unsubscribed("room") == []


async def test_by_namespace_a_token_is_not_refreshed_by_its_client(fleet: Fleet) -> None:
    """As with a hook over HTTP, which the options of a channel name."""
    rules = ChannelRules(
        ChannelOptions(allow_subscribe_for_client=True),
        {"kept": ChannelOptions(sub_refresh_proxy_enabled=True)},
    )
    hooks = Hooks(connect=no_end, sub_refresh=Says())
    async with node(fleet, hooks, rules=rules) as served:
        client = await served.client()
        for channel, expires in (("room", True), ("kept:room", False)):
            token = sign_subscription("ann", channel, SECRET, 90, None, now_s=NOW_S)
            result = await client.subscribe(channel, token=token)
            assert result.get("expires", False) is expires
            left_s = late(client, channel)
            assert left_s is not None
            assert (left_s <= 90) is not expires


async def test_meta_is_kept_only_for_hooks(fleet: Fleet) -> None:
    async def forever(_event: ConnectEvent) -> ConnectReply:
        return ConnectReply("ann", meta={"s": 1})

    async with node(fleet, Hooks(connect=forever)) as served:
        client = await served.client()
        assert client.connection.session.meta is None
