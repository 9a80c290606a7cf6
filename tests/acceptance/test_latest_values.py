"""Channels whose newest publication is all that counts: subscriptions begin with it, and what is
stale is left out.
"""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import pytest

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.link import Link
from tests.acceptance.peers import CLIENTS
from tests.acceptance.roomcast import Aws, Dev

EITHER = pytest.mark.parametrize("sdk", CLIENTS)
# An empty `since` of the SDK for JavaScript, and what `get_state` says of nothing.
ANYWHERE: Final = {"offset": 0, "epoch": ""}


@EITHER
@pytest.mark.parametrize("namespace", ["price", "quote"])
async def test_a_subscription_begins_with_the_newest_publication(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str, namespace: str
) -> None:
    """For who asks, and without that where the options say so."""
    channel = f"{namespace}:{channel}"
    asks: dict[str, Any] = {"since": ANYWHERE} if namespace == "price" else {}
    token = secured_token("ann")
    writer = await peer("py", secured.ws_urls[0], token)
    for number in (1, 2, 3):
        await writer.publish(channel, number)
    async with Link(secured.ws_urls[1]) as link:
        reader = await peer(sdk, link.url, token)
        joined = await reader.subscribe(channel, **asks)
        assert joined["recovered"]
        await reader.event("publication", channel=channel, data=3)
        await writer.publish(channel, 4)
        await reader.event("publication", channel=channel, data=4)
        link.cut()
        await reader.event("subscribing", channel=channel)
        for number in (5, 6, 7):
            await writer.publish(channel, number)
        link.mend()
        back = await reader.event("subscribed", channel=channel)
        assert back["was_recovering"]
        assert back["recovered"]
        await writer.publish(channel, 8)
        await reader.event("publication", channel=channel, data=8)
        assert reader.received(channel) == [(number, number) for number in (3, 4, 7, 8)]
        await reader.close()


@EITHER
async def test_of_a_channel_without_publications_nothing_is_recovered(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"quote:{channel}"
    token = secured_token("ann")
    reader = await peer(sdk, secured.ws_urls[0], token)
    joined = await reader.subscribe(channel)
    assert not joined["recovered"]
    writer = await peer("py", secured.ws_urls[1], token)
    await writer.publish(channel, 1)
    await reader.event("publication", channel=channel, data=1)
    assert reader.received(channel) == [(1, 1)]


@EITHER
async def test_a_server_side_subscription_begins_with_the_newest_publication(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"quote:{channel}"
    writer = await peer("py", secured.ws_urls[0], secured_token("ann"))
    for number in (1, 2):
        await writer.publish(channel, number)
    token = secured_token("ann", "--claims", f'{{"channels":["{channel}"]}}')
    reader = await peer(sdk, secured.ws_urls[1], token)
    await reader.event("publication", channel=channel, data=2)
    assert reader.received(channel) == [(2, 2)]


@EITHER
async def test_what_is_stale_reaches_nobody(
    dev: Dev, aws: Aws, peer: OpenPeer, channel: str, sdk: str
) -> None:
    """Whichever instance it is handed to. `cent` 5 has no versions."""
    reader = await peer(sdk, dev.ws_urls[1])
    await reader.subscribe(channel)
    handed = [(1, "a", 0), (3, "a", 1), (2, "a", 0), (3, "a", 0), (4, "a", 1), (1, "b", 0)]
    told = []
    async with aiohttp.ClientSession() as session:
        for number, epoch, instance in handed:
            body: dict[str, Any] = {"channel": channel, "data": f"{epoch}{number}"}
            body |= {"version": number, "version_epoch": epoch}
            async with session.post(f"{dev.urls[instance]}/api/publish", json=body) as answer:
                told.append((await answer.json())["result"]["offset"])
    assert told == [1, 2, 2, 2, 3, 4]
    await reader.event("publication", channel=channel, data="b1")
    expected = [(1, "a1"), (2, "a3"), (3, "a4"), (4, "b1")]
    assert reader.received(channel) == expected
    assert aws.log(channel) == expected
