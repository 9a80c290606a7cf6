"""What every Estate guarantees, over queues that nodes and others made."""

from __future__ import annotations

import time

from roomcast.fleet.deployment import Queue, TopicSubscription
from tests.contract.backends import TAGS, Backend

# The emulator stamps a queue with its own clock, in whole seconds.
CLOCK_MS = 60_000


async def test_what_a_node_made_is_found_and_removed(backend: Backend) -> None:
    node, estate, name = backend.queue(), backend.estate(), backend.queue_name()
    await node.open(name)
    assert list(await estate.queues()) == [name]
    [subscription] = await estate.subscriptions()
    assert subscription == TopicSubscription(
        node.subscription_arn or "", backend.deployment.queue_arn(name)
    )
    assert backend.deployment.queue_of(subscription.endpoint) == name
    await estate.unsubscribe(subscription.arn)
    await estate.delete_queue(name)
    assert not await estate.queues()
    assert not await estate.subscriptions()


async def test_removing_is_idempotent(backend: Backend) -> None:
    node, estate, name = backend.queue(), backend.estate(), backend.queue_name()
    await estate.delete_queue(name)
    await node.open(name)
    [subscription] = await estate.subscriptions()
    for _ in range(2):
        await estate.unsubscribe(subscription.arn)
        await estate.delete_queue(name)
        await backend.estate().delete_queue(name)


async def test_a_queue_says_who_made_it_and_when(backend: Backend) -> None:
    name = backend.queue_name()
    await backend.queue().open(name)
    # One that was listed, and one that was not.
    listing = backend.estate()
    await listing.queues()
    for estate in (listing, backend.estate()):
        queue = await estate.queue(name)
        assert isinstance(queue, Queue)
        assert (queue.name, dict(queue.tags)) == (name, TAGS)
        now_ms = min(
            (backend.clock.now_ms(), time.time_ns() // 1_000_000),
            key=lambda ms: abs(ms - queue.created_at),
        )
        assert abs(now_ms - queue.created_at) < CLOCK_MS


async def test_a_queue_without_tags(backend: Backend) -> None:
    await backend.create_queue(backend.queue_name())
    queue = await backend.estate().queue(backend.queue_name())
    assert queue is not None
    assert queue.tags == {}


async def test_there_is_no_such_queue(backend: Backend) -> None:
    estate = backend.estate()
    assert await estate.queue(backend.queue_name()) is None
    await backend.create_queue(backend.queue_name())
    await estate.queues()
    await backend.delete_queue(backend.queue_name())
    assert await estate.queue(backend.queue_name()) is None, "though it was listed a moment ago"


async def test_only_queues_with_the_prefix_are_listed(backend: Backend) -> None:
    name = backend.queue_name()
    for each in (name, f"{name}-2", f"other-{name}"):
        await backend.create_queue(each)
    assert sorted(await backend.estate().queues()) == [name, f"{name}-2"]


async def test_a_deleted_queue_keeps_its_subscription(backend: Backend) -> None:
    node, estate, name = backend.queue(), backend.estate(), backend.queue_name()
    await node.open(name)
    await estate.delete_queue(name)
    assert [each.endpoint for each in await estate.subscriptions()] == [
        backend.deployment.queue_arn(name)
    ]
    assert not await estate.queues()


async def test_a_queue_gets_what_is_posted_to_it(backend: Backend) -> None:
    node, estate, name = backend.queue(), backend.estate(), backend.queue_name()
    await node.open(name)
    await estate.post(name, "one")
    assert [message.body for message in await node.receive()] == ["one"]
    # Nobody is left to be told.
    await estate.post(f"{name}-gone", "two")
