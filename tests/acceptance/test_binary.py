"""Binary channels: the published SDKs in Protobuf exchange bytes that are no JSON, and a back end
does with cent.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterator

import cent
import pytest

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.link import Link
from tests.acceptance.peers import PROTOBUF, SDKS, Peer, Refused
from tests.acceptance.roomcast import Dev

IN_PROTOBUF = pytest.mark.parametrize("sdk", [f"{sdk}{PROTOBUF}" for sdk in SDKS])
IN_JSON = pytest.mark.parametrize("sdk", SDKS)
KEY = "of-the-acceptance-tests-and-nobody-else"

# Not UTF-8, what JSON would escape, JSON with white space, and nothing at all.
RAW = [b"\xff\x00\x80", bytes(range(256)), b'{"a": 1}\n', b"", b"\x80" * 500 + b"1"]
BASE64 = [b64encode(raw).decode() for raw in RAW]


@pytest.fixture
def back_end(secured: Dev) -> Iterator[cent.Client]:
    """At instance 1."""
    client = cent.Client(f"{secured.urls[0]}/api", KEY)
    yield client
    client._session.close()


async def came(peer: Peer, channel: str, count: int) -> list[str]:
    return [(await peer.event("publication", channel=channel))["base64"] for _ in range(count)]


@IN_PROTOBUF
@pytest.mark.parametrize("namespace", ["bytes", "frames"])
async def test_any_bytes_reach_every_client_in_protobuf(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str, namespace: str
) -> None:
    channel = f"{namespace}:{channel}"
    ann = await peer(sdk, secured.ws_urls[0], secured_token("ann"))
    others = [
        await peer(f"{other}{PROTOBUF}", secured.ws_urls[1], secured_token("bob")) for other in SDKS
    ]
    for each in (ann, *others):
        await each.subscribe(channel)
    for raw in RAW:
        await ann.publish_bytes(channel, raw)
    for each in (ann, *others):
        assert await came(each, channel, len(RAW)) == BASE64
        if namespace == "bytes":
            history = await each.history(channel)
            assert [message["base64"] for message in history["publications"]] == BASE64


@IN_PROTOBUF
async def test_they_are_recovered_and_come_as_differences(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"bytes:{channel}"
    ann = await peer(f"py{PROTOBUF}", secured.ws_urls[0], secured_token("ann"))
    frames = [bytes([255, 128, 0]) * 600 + bytes([number]) for number in range(12)]
    wanted = [b64encode(frame).decode() for frame in frames]
    async with Link(secured.ws_urls[1]) as link:
        bob = await peer(sdk, link.url, secured_token("bob"))
        await bob.subscribe(channel, delta="fossil")
        before = len(link.received)
        for frame in frames[:6]:
            await ann.publish_bytes(channel, frame)
        assert await came(bob, channel, 6) == wanted[:6]
        assert len(link.received) - before < 2 * len(frames[0]), "five of them are differences"
        link.cut()
        await bob.event("connecting")
        for frame in frames[6:9]:
            await ann.publish_bytes(channel, frame)
        link.mend()
        assert (await bob.event("subscribed", channel=channel))["recovered"]
        for frame in frames[9:]:
            await ann.publish_bytes(channel, frame)
        assert await came(bob, channel, 6) == wanted[6:]
        await bob.disconnect()


@IN_JSON
async def test_a_client_in_json_is_refused_and_told_why(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    ann = await peer(sdk, secured.ws_urls[0], secured_token("ann"))
    await ann.call("subscribe", channel=f"bytes:{channel}")
    ended = await ann.event("unsubscribed", channel=f"bytes:{channel}")
    why = "not available: the channel is binary, and needs Protobuf"
    assert (ended["code"], ended["reason"]) == (108, why)
    with pytest.raises(Refused, match=why):
        await ann.publish(f"bytes:{channel}", {"a": 1})
    with pytest.raises(Refused, match=why):
        await ann.history(f"bytes:{channel}")
    # The connection stays.
    await ann.subscribe(f"room:{channel}")


@IN_PROTOBUF
async def test_a_back_end_publishes_and_reads_bytes(
    secured: Dev,
    back_end: cent.Client,
    peer: OpenPeer,
    secured_token: Token,
    channel: str,
    sdk: str,
) -> None:
    """With cent, by `publish`, `broadcast` and `batch`."""
    channel = f"bytes:{channel}"
    bob = await peer(sdk, secured.ws_urls[1], secured_token("bob"))
    await bob.subscribe(channel)
    publish = [cent.PublishRequest(channel=channel, data=None, b64data=each) for each in BASE64]
    first = await asyncio.to_thread(back_end.publish, publish[0])
    broadcast = cent.BroadcastRequest(channels=[channel], data=None, b64data=BASE64[1])
    await asyncio.to_thread(back_end.broadcast, broadcast)
    await asyncio.to_thread(back_end.batch, cent.BatchRequest(requests=publish[2:]))
    assert await came(bob, channel, len(RAW)) == BASE64
    wanted = cent.HistoryRequest(channel=channel, limit=-1)
    history = await asyncio.to_thread(back_end.history, wanted)
    assert [each.offset for each in history.publications] == list(range(1, len(RAW) + 1))
    assert history.epoch == first.epoch
