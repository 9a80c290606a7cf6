"""The end of a subscription, in a channel whose publications are collected."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.worlds import HISTORY, Client, Fleet, LocalNode, no_jitter, settled, until

# Longer than any test.
COLLECTED: Final = replace(HISTORY, batch_max_delay_ms=3_600_000)
RULES: Final = ChannelRules(
    without_namespace=COLLECTED,
    namespaces={
        "plain": ChannelOptions(batch_max_delay_ms=3_600_000),
        "feed": replace(COLLECTED, batch_flush_latest=True),
    },
)


@pytest.fixture
def node() -> LocalNode:
    return Fleet().node(rules=RULES)


async def subscribed(node: LocalNode, channel: str) -> Client:
    client = await node.client()
    await client.subscribe(channel)
    return client


@pytest.mark.parametrize("channel", ["room", "plain:room"])
async def test_what_was_published_before_an_order_comes_before_its_push(
    node: LocalNode, channel: str
) -> None:
    ann, bob = await subscribed(node, channel), await subscribed(node, channel)
    assert await ann.publish(channel, "you are out") == {}, "answered before it goes out"
    assert bob.socket.pushes == []
    bob.connection.order_unsubscribe(channel)
    await until(lambda: bob.socket.unsubscribed(channel))
    assert ["pub" in push for push in bob.socket.pushes] == [True, False]
    assert ann.socket.published(channel) == ["you are out"]
    await node.close()


async def test_so_it_does_where_no_token_came(node: LocalNode) -> None:
    bob = await subscribed(node, "room")
    await bob.publish("room", 1)
    bob.connection.expired("room")
    assert ["pub" in push for push in bob.socket.pushes] == [True, False]
    assert bob.socket.unsubscribed("room") == [2501]
    await node.close()


async def test_who_comes_while_publications_wait_stands_behind_them(node: LocalNode) -> None:
    ann = await subscribed(node, "room")
    await ann.publish("room", 1)
    bob = await node.client()
    position = await bob.subscribe("room")
    assert position["offset"] == 1
    carl = await node.client()
    start = {"recover": True, "epoch": position["epoch"], "offset": 0}
    recovered = await carl.subscribe("room", **start)
    assert [each["offset"] for each in recovered["publications"]] == [1]
    await ann.publish("room", 2)
    node.assembly.dispatcher.flush("room")
    assert ann.socket.offsets("room") == [1, 2]
    assert bob.socket.offsets("room") == carl.socket.offsets("room") == [2]
    await node.close()


async def test_of_a_feed_the_position_is_that_of_the_newest(node: LocalNode) -> None:
    """Who comes back from there, or from before, misses nothing."""
    ann = await subscribed(node, "feed:x")
    for number in range(1, 5):
        await ann.publish("feed:x", number)
    node.assembly.dispatcher.flush("feed:x")
    assert ann.socket.offsets("feed:x") == [4]
    await ann.publish("feed:x", 5)
    node.assembly.node.closed(ann.connection)
    bob = await node.client()
    epoch = (await bob.subscribe("feed:x"))["epoch"]
    carl = await node.client()
    recovered = await carl.subscribe("feed:x", recover=True, epoch=epoch, offset=4)
    assert recovered["recovered"]
    assert [each["data"] for each in recovered["publications"]] == [5]
    await node.close()


async def test_a_drain_sends_what_waits_first(node: LocalNode) -> None:
    ann = await subscribed(node, "plain:room")
    await ann.publish("plain:room", 1)
    await settled()
    assert ann.socket.pushes == []
    await node.assembly.node.drain(0, no_jitter)
    assert ann.socket.published("plain:room") == [1]
    await node.close()
