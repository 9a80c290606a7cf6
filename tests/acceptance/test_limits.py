"""Limits as the SDKs see them, and what clients ask for themselves:
one server with a configuration of its own.
"""

from __future__ import annotations

import asyncio
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
import pytest

from roomcast.concurrency import beside
from tests.acceptance.conftest import OpenPeer, running
from tests.acceptance.peers import CLIENTS, DEADLINE_S, PROTOBUF, Peer, Refused
from tests.acceptance.roomcast import Dev

LIMITED: Final = Path(__file__).with_name("limits.toml")
CLIENT: Final = tomllib.loads(LIMITED.read_text(encoding="utf-8"))["client"]
EITHER = pytest.mark.parametrize("sdk", CLIENTS)
JS = pytest.mark.parametrize("sdk", ["js", f"js{PROTOBUF}"])
# Error 111 says: not now.
RETRY_S: Final = 0.05


@pytest.fixture(scope="module")
def limited() -> Iterator[Dev]:
    """`roomcast dev --config limits.toml`, for all tests of this file."""
    with running("--config", str(LIMITED)) as started:
        yield started


@pytest.fixture
def user(channel: str) -> str:
    """A user whom no other test has."""
    return f"user-{channel}"


def token_of(user: str) -> str:
    return jwt.encode({"sub": user}, CLIENT["token"]["hmac_secret_key"])


def events(peer: Peer) -> list[str]:
    return [event["event"] for event in peer.events]


@EITHER
async def test_one_connection_too_many_is_closed_for_good(
    limited: Dev, peer: OpenPeer, user: str, sdk: str
) -> None:
    url, token = limited.ws_urls[0], token_of(user)
    most = [await peer("py", url, token) for _ in range(CLIENT["user_connection_limit"])]
    refused = await peer(sdk, url, token, connected=False)
    await refused.call("connect")
    assert (await refused.event("disconnected"))["code"] == 3504
    # Others are not concerned: another user, and the same one on another node.
    await peer(sdk, url, token_of(f"{user}-another"))
    await peer(sdk, limited.ws_urls[1], token)
    assert events(refused) == ["connecting", "disconnected"], "it does not try again"
    assert [events(each) for each in most] == [["connecting", "connected"]] * len(most)
    # Room again. The server hears of the end a moment after the client has said so.
    await most[0].disconnect()
    for _ in range(round(DEADLINE_S / RETRY_S)):
        await refused.call("connect")
        if (await one_of(refused, "connected", "disconnected"))["event"] == "connected":
            break
        await asyncio.sleep(RETRY_S)
    assert refused.client


@EITHER
async def test_who_publishes_too_fast_has_to_wait(
    limited: Dev, peer: OpenPeer, user: str, channel: str, sdk: str
) -> None:
    channel, rate = f"asked:{channel}", CLIENT["publish_rate_limit"]
    fast = await peer(sdk, limited.ws_urls[0], token_of(user))
    listener = await peer("py", limited.ws_urls[1], token_of(f"{user}-listener"))
    await listener.subscribe(channel)
    # A second's more than may be published at once.
    numbers, began_s = list(range(3 * rate)), time.monotonic()
    await asyncio.gather(*(fast.publish(channel, number) for number in numbers))
    # Of the burst nothing is left: what came beyond it was held to the rate.
    assert time.monotonic() - began_s >= 0.9
    await listener.event("publication", channel=channel, data=numbers[-1])
    assert [data for _, data in listener.received(channel)] == numbers
    assert events(fast) == ["connecting", "connected"]


@JS
async def test_what_cannot_wait_is_refused_and_the_connection_stays(
    limited: Dev, peer: OpenPeer, user: str, channel: str, sdk: str
) -> None:
    channel, rate = f"asked:{channel}", CLIENT["publish_rate_limit"]
    fast = await peer(sdk, limited.ws_urls[0], token_of(user))
    await fast.subscribe(channel)
    with pytest.raises(Refused) as refused:
        await fast.call("publish_together", channel=channel, items=list(range(10 * rate)))
    assert refused.value.code == 111
    await fast.publish(channel, "at last")
    await fast.event("publication", channel=channel, data="at last")
    *taken, _ = (data for _, data in fast.received(channel))
    # Twice the rate at once, and two seconds of it, less what waits a little too long.
    assert 2 * rate < len(taken) <= 4 * rate
    assert taken == sorted(taken)
    assert events(fast)[:2] == ["connecting", "connected"]


@EITHER
async def test_a_refused_handshake_is_tried_again(
    limited: Dev, peer: OpenPeer, user: str, sdk: str
) -> None:
    client = await peer(sdk, limited.ws_urls[1], token_of(user), connected=False)
    refused = asyncio.Event()
    async with (
        aiohttp.ClientSession() as session,
        beside(_all_at_once(session, limited.urls[1], refused)),
    ):
        async with asyncio.timeout(DEADLINE_S):
            await refused.wait()
        await client.call("connect")
        # Now and then it comes just when there is room.
        while (await one_of(client, "error", "connected"))["event"] == "connected":
            await client.disconnect()
            await client.call("connect")
    # As soon as the others let it.
    await client.event("connected")
    assert events(client)[-2:] == ["error", "connected"]


# ---- what clients ask for


async def test_clients_that_answer_pings_stay(
    limited: Dev, peer: OpenPeer, user: str, channel: str
) -> None:
    clients = [await peer(sdk, limited.ws_urls[0], token_of(f"{user}-{sdk}")) for sdk in CLIENTS]
    async with aiohttp.ClientSession() as session:
        # Each of these has its first ping after half of the interval at least,
        # and is closed when its answer does not come.
        for number in range(2):
            async with session.ws_connect(limited.ws_urls[0]) as silent:
                await silent.send_json(
                    {"id": 1, "connect": {"token": token_of(f"{user}-{number}")}}
                )
                while (await silent.receive(DEADLINE_S)).type is aiohttp.WSMsgType.TEXT:
                    pass
                assert silent.close_code == 3012
    # More time than the first ping and its answer have.
    for client in clients:
        await client.publish(f"asked:{channel}", 1)
        assert events(client) == ["connecting", "connected"]


@EITHER
@pytest.mark.parametrize("ask", ["recoverable", "positioned"])
async def test_positions_for_those_who_ask(
    limited: Dev, peer: OpenPeer, user: str, channel: str, sdk: str, ask: str
) -> None:
    channel = f"asked:{channel}"
    asking, other = [await peer(sdk, limited.ws_urls[0], token_of(user)) for _ in range(2)]
    plain = await other.subscribe(channel)
    assert not plain["recoverable"]
    assert not plain["positioned"]
    assert plain["position"] is None
    joined = await asking.subscribe(channel, asks=[ask])
    assert joined["positioned"]
    assert joined["recoverable"] is (ask == "recoverable")
    assert joined["position"]["offset"] == 0


@EITHER
async def test_joins_and_leaves_for_those_who_ask(
    limited: Dev, peer: OpenPeer, user: str, channel: str, sdk: str
) -> None:
    channel = f"asked:{channel}"
    asking = await peer(sdk, limited.ws_urls[0], token_of(user))
    other = await peer(sdk, limited.ws_urls[0], token_of(f"{user}-other"))
    await other.subscribe(channel)
    await asking.subscribe(channel, asks=["join_leave"])
    assert (await asking.event("join", channel=channel))["info"]["client"] == asking.client
    await other.unsubscribe(channel)
    assert (await asking.event("leave", channel=channel))["info"]["user"] == f"{user}-other"
    assert not {"join", "leave"} & set(events(other))


@EITHER
async def test_a_subscription_from_a_position_of_the_application(
    limited: Dev, peer: OpenPeer, user: str, channel: str, sdk: str
) -> None:
    """JavaScript: `since`; Python: `get_state`."""
    channel = f"asked:{channel}"
    writer = await peer("py", limited.ws_urls[0], token_of(user))
    start = (await writer.subscribe(channel, asks=["positioned"]))["position"]
    for number in (1, 2, 3):
        await writer.publish(channel, number)
    reader = await peer(sdk, limited.ws_urls[1], token_of(f"{user}-reader"))
    joined = await reader.subscribe(channel, since={**start, "offset": 1})
    assert joined["recovered"]
    await reader.event("publication", channel=channel, data=3)
    assert reader.received(channel) == [(2, 2), (3, 3)]


@EITHER
async def test_the_first_token_is_asked_for(
    limited: Dev, peer: OpenPeer, user: str, sdk: str
) -> None:
    """`getToken` alone, without a token to begin with."""
    client = await peer(sdk, limited.ws_urls[0], fresh_tokens=[token_of(user)])
    assert events(client) == ["connecting", "token", "connected"]


@JS
async def test_commands_that_are_sent_together(
    limited: Dev, peer: OpenPeer, user: str, channel: str, sdk: str
) -> None:
    """`startBatching`: several commands in one frame."""
    channel = f"asked:{channel}"
    client = await peer(sdk, limited.ws_urls[0], token_of(user))
    await client.subscribe(channel, asks=["positioned"])
    numbers = list(range(CLIENT["publish_rate_limit"]))
    await client.call("publish_together", channel=channel, items=numbers)
    await client.event("publication", channel=channel, data=numbers[-1])
    assert [data for _, data in client.received(channel)] == numbers


@JS
async def test_send_is_not_there(limited: Dev, peer: OpenPeer, user: str, sdk: str) -> None:
    client = await peer(sdk, limited.ws_urls[0], token_of(user))
    await client.call("send", data={"text": "hi"})
    assert (await client.event("disconnected"))["reason"] == "not available"
    assert client.events[-1]["code"] == 3508


# A handshake by hand: what is refused is answered without an upgrade.
_UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


async def _all_at_once(session: aiohttp.ClientSession, url: str, refused: asyncio.Event) -> None:
    """Begin handshakes as fast as possible, until cancelled."""
    while True:
        async with session.get(f"{url}/connection/websocket", headers=_UPGRADE) as answer:
            assert answer.status in (101, 429)
            if answer.status == 429:
                refused.set()


async def one_of(peer: Peer, *names: str) -> dict[str, Any]:
    """The next event of one of these names."""
    waits = [asyncio.ensure_future(peer.event(name)) for name in names]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
