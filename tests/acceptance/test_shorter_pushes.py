"""Numbers for channels, and differences for publications: the SDKs ask for them,
and show their applications the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.link import Link
from tests.acceptance.peers import CLIENTS, PROTOBUF, Peer
from tests.acceptance.roomcast import Dev

EITHER = pytest.mark.parametrize("sdk", CLIENTS)

# Enough that a difference pays, with characters of several bytes in it.
PLAYERS = [f"player {number}: José Müller, Σ 勝" for number in range(60)]


def score(number: int) -> dict[str, Any]:
    return {"players": PLAYERS, "score": [number, number // 2], "text": "né" * number}


async def publications(peer: Peer, channel: str, count: int) -> list[Any]:
    return [(await peer.event("publication", channel=channel))["data"] for _ in range(count)]


@EITHER
async def test_differences(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"scores:{channel}"
    ann = await peer("py", secured.ws_urls[0], secured_token("ann"))
    async with Link(secured.ws_urls[1]) as link, Link(secured.ws_urls[1]) as other:
        bob = await peer(sdk, link.url, secured_token("bob"))
        eve = await peer(sdk, other.url, secured_token("eve"))
        await bob.subscribe(channel, delta="fossil")
        await eve.subscribe(channel)
        for number in range(10):
            await ann.publish(channel, score(number))
        wanted = [score(number) for number in range(10)]
        assert await publications(bob, channel, 10) == wanted
        assert await publications(eve, channel, 10) == wanted
        assert len(link.received) < len(other.received) / 3, (
            "one whole publication and nine differences"
        )
        # What was missed comes whole, and the next one is whole again.
        link.cut()
        await bob.event("connecting")
        for number in range(10, 13):
            await ann.publish(channel, score(number))
        link.mend()
        assert (await bob.event("subscribed", channel=channel))["recovered"]
        for number in range(13, 16):
            await ann.publish(channel, score(number))
        assert await publications(bob, channel, 6) == [score(number) for number in range(10, 16)]
        await bob.disconnect()
        await eve.disconnect()


@EITHER
async def test_channel_compaction(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"scores:{channel}-{'x' * 100}"
    ann = await peer("py", secured.ws_urls[0], secured_token("ann"))
    async with Link(secured.ws_urls[1]) as link:
        bob = await peer(sdk, link.url, secured_token("bob"))
        await bob.subscribe(channel)
        before = link.received.count(channel.encode())
        await ann.subscribe(channel)
        for number in range(5):
            await ann.publish(channel, number)
        assert await publications(bob, channel, 5) == list(range(5))
        await ann.unsubscribe(channel)
        for what in ("join", "leave"):
            assert (await bob.event(what, channel=channel))["info"]["user"] in ("ann", "bob")
        has_the_name = link.received.count(channel.encode()) > before
        assert has_the_name == sdk.endswith(PROTOBUF), "in JSON, no push has it"
        await bob.disconnect()
