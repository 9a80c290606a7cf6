"""Publications that are collected, writes that are delayed, and messages that are compressed:
the published SDKs see what they would see without.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
import pytest
import websockets
from playwright.async_api import async_playwright

from tests.acceptance.conftest import OpenPeer, running
from tests.acceptance.link import Link
from tests.acceptance.peers import CLIENTS, DEADLINE_S, PROTOBUF, Peer
from tests.acceptance.roomcast import Dev

FAST: Final = Path(__file__).with_name("fast.toml")
KEY: Final = "of-the-tests-of-batching-and-nobody-else"
EITHER = pytest.mark.parametrize("sdk", CLIENTS)
# More than one batch takes.
COUNT: Final = 100
# JSON of an application: it repeats itself.
PLAYERS: Final = [f"player {number}: José Müller, Σ 勝" for number in range(12)]


@pytest.fixture(scope="module")
def fast() -> Iterator[Dev]:
    """`roomcast dev --config fast.toml`, for all tests of this file."""
    with running("--config", str(FAST)) as started:
        yield started


def token(user: str) -> str:
    return jwt.encode({"sub": user}, KEY)


def score(number: int) -> dict[str, Any]:
    return {"number": number, "players": PLAYERS, "score": [number, number // 2]}


async def publish_all(peer: Peer, channel: str, numbers: range) -> None:
    await asyncio.gather(*(peer.publish(channel, score(number)) for number in numbers))


@EITHER
@pytest.mark.parametrize("namespace", ["batched", "live"])
async def test_all_come_once_and_in_order(
    fast: Dev, peer: OpenPeer, channel: str, sdk: str, namespace: str
) -> None:
    channel = f"{namespace}:{channel}"
    async with Link(fast.ws_urls[1]) as link:
        ann, bob = (
            await peer("py", fast.ws_urls[0], token("ann")),
            await peer(sdk, link.url, token("bob")),
        )
        other = await peer("js" if sdk.startswith("py") else "py", fast.ws_urls[1], token("eve"))
        for each in (ann, bob, other):
            await each.subscribe(channel)
        await publish_all(ann, channel, range(COUNT))
        for each in (ann, bob, other):
            numbers = [
                (await each.event("publication", channel=channel))["data"]["number"]
                for _ in range(COUNT)
            ]
            assert numbers == list(range(COUNT))
        assert b"Sec-WebSocket-Extensions: permessage-deflate" in link.received, "SDKs offer it"
        sent = sum(len(json.dumps(score(number), ensure_ascii=False)) for number in range(COUNT))
        assert len(link.received) < sent / 3
        await bob.disconnect()


@EITHER
async def test_who_comes_back_has_all(fast: Dev, peer: OpenPeer, channel: str, sdk: str) -> None:
    """Also what was collected and not sent when it was cut off; and differences hold."""
    channel = f"batched:{channel}"
    ann = await peer("py", fast.ws_urls[0], token("ann"))
    async with Link(fast.ws_urls[1]) as link:
        bob = await peer(sdk, link.url, token("bob"))
        await bob.subscribe(channel, delta="fossil")
        await publish_all(ann, channel, range(30))
        await bob.event("publication", channel=channel)
        link.cut()
        await bob.event("connecting")
        await publish_all(ann, channel, range(30, 60))
        link.mend()
        assert (await bob.event("subscribed", channel=channel))["recovered"]
        await publish_all(ann, channel, range(60, 90))
        await bob.event("publication", channel=channel, offset=90)
        assert bob.received(channel) == [(number + 1, score(number)) for number in range(90)]
        await bob.disconnect()


@EITHER
async def test_of_a_feed_the_newest_comes(
    fast: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    channel = f"feed:{channel}"
    ann = await peer("py", fast.ws_urls[0], token("ann"))
    async with Link(fast.ws_urls[1]) as link:
        bob = await peer(sdk, link.url, token("bob"))
        await bob.subscribe(channel, delta="fossil")
        await publish_all(ann, channel, range(COUNT))
        await bob.event("publication", channel=channel, offset=COUNT)
        got = bob.received(channel)
        assert len(got) < COUNT / 2
        assert [offset for offset, _ in got] == sorted({offset for offset, _ in got})
        assert all(data == score(offset - 1) for offset, data in got)
        # Where it stands is a position like any other.
        link.cut()
        await bob.event("connecting")
        await publish_all(ann, channel, range(COUNT, COUNT + 5))
        link.mend()
        assert (await bob.event("subscribed", channel=channel))["recovered"]
        await bob.event("publication", channel=channel, offset=COUNT + 5)
        assert [offset for offset, _ in bob.received(channel)[len(got) :]] == list(
            range(COUNT + 1, COUNT + 6)
        )
        await bob.disconnect()


@pytest.mark.parametrize(
    "sdk, transport",
    [("js", "http_stream"), (f"js{PROTOBUF}", "http_stream"), ("js", "sse")],
)
async def test_streams_are_collected_too(
    fast: Dev, peer: OpenPeer, channel: str, sdk: str, transport: str
) -> None:
    channel = f"batched:{channel}"
    ann = await peer("py", fast.ws_urls[0], token("ann"))
    bob = await peer(sdk, fast.ws_urls[1], token("bob"), transports=[transport])
    await bob.subscribe(channel)
    await publish_all(ann, channel, range(COUNT))
    await bob.event("publication", channel=channel, offset=COUNT)
    assert bob.received(channel) == [(number + 1, score(number)) for number in range(COUNT)]


# ---- libraries of WebSocket, and a browser

COMMANDS: Final = [
    {"id": 1, "connect": {"token": token("ann")}},
    {"id": 2, "rpc": {"method": "nothing", "data": "x" * 500}},
]


def answered(frames: list[str]) -> list[int]:
    return [json.loads(line)["id"] for frame in frames for line in frame.split("\n")]


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_pythons_websockets(fast: Dev, compression: str | None) -> None:
    async with websockets.connect(fast.ws_urls[0], compression=compression) as connected:
        names = [extension.name for extension in connected.protocol.extensions]
        assert names == ["permessage-deflate"] if compression else names == []
        frames: list[str] = []
        async with asyncio.timeout(DEADLINE_S):
            for command in COMMANDS:
                await connected.send(json.dumps(command))
                frames.append(str(await connected.recv()))
        assert answered(frames) == [1, 2]


@pytest.mark.parametrize("bits", [0, 9, 15])
async def test_aiohttps_client(fast: Dev, bits: int) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(fast.ws_urls[0], compress=bits) as connected,
    ):
        assert bool(connected.compress) is bool(bits)
        frames: list[str] = []
        for command in COMMANDS:
            await connected.send_str(json.dumps(command))
            frames.append(await connected.receive_str(timeout=DEADLINE_S))
        assert answered(frames) == [1, 2]


async def test_a_browser(fast: Dev, browser: str) -> None:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=browser, args=arguments)
        page = await chromium.new_page()
        await page.goto(f"{fast.urls[0]}/health/live")
        extensions, frames = await page.evaluate(
            """([url, commands]) => new Promise((resolve, reject) => {
                 const socket = new WebSocket(url), frames = [];
                 socket.onerror = () => reject(new Error("refused"));
                 socket.onclose = ({code}) => reject(new Error("closed " + code));
                 socket.onopen = () => socket.send(commands[0]);
                 socket.onmessage = ({data}) => {
                   frames.push(data);
                   if (frames.length < commands.length) socket.send(commands[frames.length]);
                   else resolve([socket.extensions, frames]);
                 };
               })""",
            [fast.ws_urls[0], [json.dumps(command) for command in COMMANDS]],
        )
        await chromium.close()
    assert extensions.startswith("permessage-deflate")
    assert answered(frames) == [1, 2]
