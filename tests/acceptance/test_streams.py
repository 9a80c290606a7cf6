"""Clients that no WebSocket reaches: npm `centrifuge` over HTTP streams and Server-Sent Events,
behind a load balancer that leads each of their requests to another instance.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from inspect import signature

import aiohttp
import centrifuge
import pytest

from tests.acceptance.conftest import OpenPeer, Token, running
from tests.acceptance.link import RoundRobin
from tests.acceptance.peers import PROTOBUF, Refused
from tests.acceptance.roomcast import Dev

OVER = pytest.mark.parametrize(
    "sdk, transport",
    [("js", "http_stream"), (f"js{PROTOBUF}", "http_stream"), ("js", "sse")],
    ids=["http stream, JSON", "http stream, Protobuf", "SSE"],
)


@pytest.fixture
async def balancer(dev: Dev) -> AsyncIterator[RoundRobin]:
    async with RoundRobin(dev.ws_urls) as balancer:
        yield balancer


@OVER
async def test_a_client_behind_a_balancer_does_what_others_do(
    dev: Dev,
    peer: OpenPeer,
    token: Token,
    channel: str,
    balancer: RoundRobin,
    sdk: str,
    transport: str,
) -> None:
    ann = await peer(sdk, balancer.url, token("ann"), transports=[transport])
    bob = await peer("py", dev.ws_urls[1], token("bob"))
    await ann.subscribe(channel)
    await bob.subscribe(channel)
    data = {"text": "héllo ⏎\n \u2028 🜲", "nested": [1, 2.5, None, True]}
    await ann.publish(channel, data)
    message = await bob.event("publication", channel=channel)
    assert (message["data"], message["info"]["user"]) == (data, "ann")
    await bob.publish(channel, "back")
    await ann.event("publication", channel=channel, data="back")
    assert ann.received(channel) == [(1, data), (2, "back")]
    history = await ann.history(channel, limit=10)
    assert [each["data"] for each in history["publications"]] == [data, "back"]
    assert set(await ann.presence(channel)) == {ann.client, bob.client}
    with pytest.raises(Refused):
        await ann.rpc("unknown", {})
    await ann.unsubscribe(channel)
    await ann.disconnect()


@OVER
async def test_a_burst_of_one_client_keeps_its_order(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str, transport: str
) -> None:
    """All of its requests go to the instance that does not have it."""
    async with RoundRobin(dev.ws_urls) as balancer:
        ann = await peer(sdk, balancer.url, transports=[transport])
        await ann.subscribe(channel)
        await ann.call("publish_together", channel=channel, items=list(range(30)))
        await ann.event("publication", channel=channel, data=29)
        assert ann.received(channel) == [(n + 1, n) for n in range(30)]
        await ann.close()


@OVER
async def test_after_a_cut_nothing_is_missed(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str, transport: str
) -> None:
    writer = await peer("py", dev.ws_urls[0])
    async with RoundRobin(dev.ws_urls) as balancer:
        reader = await peer(sdk, balancer.url, transports=[transport])
        await reader.subscribe(channel)
        await writer.publish(channel, 1)
        await reader.event("publication", channel=channel, data=1)
        balancer.cut()
        await reader.event("subscribing", channel=channel)
        for number in range(2, 12):
            await writer.publish(channel, number)
        balancer.mend()
        back = await reader.event("subscribed", channel=channel, was_recovering=True)
        assert back["recovered"]
        await writer.publish(channel, 12)
        await reader.event("publication", channel=channel, data=12)
        assert reader.received(channel) == [(n, n) for n in range(1, 13)]
        await reader.close()


async def test_a_client_whose_websocket_is_blocked_gets_in_by_the_next_transport(
    dev: Dev, peer: OpenPeer, channel: str
) -> None:
    """The path of WebSockets is one that a proxy does not let through."""
    async with RoundRobin(dev.ws_urls) as balancer:
        blocked = balancer.url.replace("/connection/websocket", "/blocked")
        reader = await peer("js", blocked, transports=["websocket", "http_stream"])
        assert reader.events[-1]["event"] == "connected"
        assert reader.events[-1]["transport"] == "http_stream"
        await reader.subscribe(channel)
        await reader.publish(channel, "in")
        await reader.event("publication", channel=channel, data="in")
        await reader.close()


@OVER
async def test_when_the_instance_of_a_session_is_killed_the_client_comes_back(
    peer: OpenPeer, channel: str, sdk: str, transport: str, kill: Callable[[int], None]
) -> None:
    with running("--restart") as dev:
        writer = await peer("py", dev.ws_urls[1])
        async with RoundRobin(dev.ws_urls) as balancer:
            reader = await peer(sdk, balancer.url, transports=[transport])
            await reader.subscribe(channel)
            await writer.publish(channel, 1)
            await reader.event("publication", channel=channel, data=1)
            # The first connection went to the first instance.
            kill(dev.pids[0])
            await reader.event("subscribing", channel=channel)
            await writer.publish(channel, 2)
            back = await reader.event("subscribed", channel=channel, was_recovering=True)
            assert back["recovered"]
            await reader.event("publication", channel=channel, data=2)
            await reader.publish(channel, 3)
            await reader.event("publication", channel=channel, data=3)
            assert reader.received(channel) == [(n, n) for n in range(1, 4)]
            await reader.close()
        await writer.close()


@pytest.fixture
def kill() -> Callable[[int], None]:
    return lambda pid: os.kill(pid, signal.SIGKILL)


# ---- what is not there


@pytest.mark.parametrize("sdk", ["js", f"js{PROTOBUF}"])
@pytest.mark.parametrize("transport", ["webtransport", "sockjs"])
async def test_a_transport_that_is_not_there_is_passed_over(
    dev: Dev, peer: OpenPeer, sdk: str, transport: str
) -> None:
    async with aiohttp.ClientSession() as session:
        for path in (transport, f"{transport}/info"):
            for method in ("GET", "POST", "CONNECT"):
                url = f"{dev.urls[0]}/connection/{path}"
                async with session.request(method, url) as answer:
                    assert answer.status == 404
    ann = await peer(sdk, dev.ws_urls[0], transports=[transport, "websocket"])
    assert ann.events[-1]["transport"] == "websocket"


@pytest.mark.parametrize("sdk", [f"js{PROTOBUF}"])
async def test_events_are_json(dev: Dev, peer: OpenPeer, sdk: str) -> None:
    ann = await peer(sdk, dev.ws_urls[0], transports=["sse"], connected=False)
    await ann.call("connect")
    await ann.event("error")
    assert ann.client == ""


@pytest.mark.parametrize("sdk", ["py", f"py{PROTOBUF}"])
async def test_the_sdk_for_python_speaks_over_websockets_alone(
    dev: Dev, peer: OpenPeer, sdk: str
) -> None:
    for path in ("http_stream", "sse"):
        ann = await peer(sdk, f"{dev.urls[0]}/connection/{path}", connected=False)
        await ann.call("connect")
        await ann.event("error")
        assert ann.client == ""
    assert not [name for name in signature(centrifuge.Client).parameters if "transport" in name]
