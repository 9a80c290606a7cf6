"""Connections that end and come back: nothing is missed, nothing comes twice,
and a loss is never kept quiet.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.acceptance.conftest import OpenPeer, Token
from tests.acceptance.link import Link
from tests.acceptance.peers import CLIENTS
from tests.acceptance.roomcast import Aws, Dev

EITHER = pytest.mark.parametrize("sdk", CLIENTS)


@EITHER
async def test_after_disconnect_and_connect(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str
) -> None:
    writer, reader = await peer("py", dev.ws_urls[0]), await peer(sdk, dev.ws_urls[1])
    await reader.subscribe(channel)
    await writer.publish(channel, "before")
    await reader.event("publication", channel=channel)
    await reader.disconnect()
    await writer.publish(channel, "missed")
    await reader.connect()
    back = await reader.event("subscribed", channel=channel)
    assert back["was_recovering"]
    assert back["recovered"]
    await writer.publish(channel, "after")
    await reader.event("publication", channel=channel, data="after")
    assert reader.received(channel) == [(1, "before"), (2, "missed"), (3, "after")]


@EITHER
@pytest.mark.parametrize("to", [0, 1], ids=["same instance", "other instance"])
async def test_fifty_missed_messages_come_once_and_in_order(
    dev: Dev, peer: OpenPeer, channel: str, sdk: str, to: int
) -> None:
    writers = [await peer("py", url) for url in dev.ws_urls]
    async with Link(dev.ws_urls[0]) as link:
        reader = await peer(sdk, link.url)
        await reader.subscribe(channel)
        await writers[0].publish(channel, 1)
        await reader.event("publication", channel=channel)
        link.cut()
        await reader.event("subscribing", channel=channel)
        for writer, numbers in zip(writers, (range(2, 27), range(27, 52)), strict=True):
            await asyncio.gather(*(writer.publish(channel, number) for number in numbers))
        link.mend(dev.ws_urls[to])
        back = await reader.event("subscribed", channel=channel, was_recovering=True)
        assert back["recovered"]
        # The client goes on from where it stood, through what it gets now.
        assert back["position"]["offset"] == 1
        await writers[0].publish(channel, 52)
        await reader.event("publication", channel=channel, data=52)
        assert reader.received(channel) == [(number, number) for number in range(1, 53)]
        await reader.close()


async def test_a_cut_in_the_middle_of_a_stream_loses_nothing(
    dev: Dev, peer: OpenPeer, channel: str
) -> None:
    writer = await peer("js", dev.ws_urls[0])
    async with Link(dev.ws_urls[1]) as link:
        readers = [await peer(sdk, link.url) for sdk in CLIENTS]
        for reader in readers:
            await reader.subscribe(channel)
        for number in range(1, 61):
            await writer.publish(channel, number)
            if number % 20 == 10:
                link.cut()
                link.mend()
        for reader in readers:
            await reader.event("publication", channel=channel, data=60)
            assert reader.received(channel) == [(number, number) for number in range(1, 61)]
            assert any(event.get("was_recovering") for event in reader.events)
            await reader.close()


async def test_a_position_of_another_epoch_is_not_recovered(
    dev: Dev, peer: OpenPeer, channel: str
) -> None:
    writer, reader = await peer("py", dev.ws_urls[0]), await peer("js", dev.ws_urls[1])
    await writer.publish(channel, "of this epoch")
    since = {"offset": 1, "epoch": "of another time"}
    joined = await reader.subscribe(channel, since=since)
    assert joined["was_recovering"]
    assert not joined["recovered"]
    assert joined["position"] == {"offset": 1, "epoch": (await writer.history(channel))["epoch"]}
    assert reader.received(channel) == []


@EITHER
async def test_a_log_that_began_anew_is_not_taken_for_the_old_one(
    dev: Dev, aws: Aws, peer: OpenPeer, channel: str, sdk: str
) -> None:
    reader, writer = await peer(sdk, dev.ws_urls[0]), await peer("py", dev.ws_urls[1])
    before = await reader.subscribe(channel)
    for number in (1, 2):
        await writer.publish(channel, number)
        await reader.event("publication", channel=channel)
    await reader.disconnect()
    aws.forget(channel)

    await reader.connect()
    back = await reader.event("subscribed", channel=channel, was_recovering=True)
    assert not back["recovered"]
    assert back["position"]["epoch"] != before["position"]["epoch"]
    assert back["position"]["offset"] == 0


@EITHER
async def test_more_than_the_history_shows_is_not_recovered(
    secured: Dev, peer: OpenPeer, secured_token: Token, channel: str, sdk: str
) -> None:
    channel = f"short:{channel}"
    token = secured_token("ann")
    reader, writer = (
        await peer(sdk, secured.ws_urls[0], token),
        await peer("py", secured.ws_urls[1], token),
    )
    await reader.subscribe(channel)
    for missed, recovered in ((3, True), (4, False)):
        await reader.disconnect()
        for number in range(missed):
            await writer.publish(channel, number)
        await reader.connect()
        back = await reader.event("subscribed", channel=channel)
        assert back["was_recovering"]
        assert back["recovered"] is recovered
    assert reader.received(channel) == [(1, 0), (2, 1), (3, 2)]
    assert back["position"]["offset"] == 7
    assert [each["offset"] for each in (await reader.history(channel))["publications"]] == [5, 6, 7]
