"""What every InstanceQueue and Topic guarantee, together."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX
from roomcast.delivery.ports import Gone, Message
from roomcast.ports import Rejected
from tests.contract.backends import Backend, OpenQueue

# Long polls that it may take until everything has come.
POLLS_MAX = 5
# 2020 and 2100, in ms: between them it is now, for a real clock and for the tests' own.
PAST_MS, FUTURE_MS = 1_577_836_800_000, 4_102_444_800_000


@pytest.fixture
async def queue(backend: Backend) -> AsyncIterator[OpenQueue]:
    queue = backend.queue()
    await queue.open(backend.queue_name())
    yield queue
    await queue.close()


async def received(queue: OpenQueue, count: int) -> list[Message]:
    messages: list[Message] = []
    for _ in range(POLLS_MAX):
        messages.extend(await queue.receive())
        if len(messages) >= count:
            break
    return messages


async def test_what_is_published_arrives_as_it_is(backend: Backend, queue: OpenQueue) -> None:
    body = '{"v":1,"text":"ä😀\\ufffe \\" <&> \t"}'
    await backend.topic().publish(body)
    assert [message.body for message in await received(queue, 1)] == [body]


async def test_a_message_says_when_the_queue_got_it(backend: Backend, queue: OpenQueue) -> None:
    for body in ("one", "two"):
        await backend.topic().publish(body)
    sent_at = {message.body: message.sent_at_ms for message in await received(queue, 2)}
    assert PAST_MS < sent_at["one"] <= sent_at["two"] < FUTURE_MS


async def test_every_queue_hears_everything(backend: Backend, queue: OpenQueue) -> None:
    other = backend.queue()
    await other.open(f"{backend.queue_name()}-2")
    topic = backend.topic()
    await topic.publish("one")
    await topic.publish("two")
    for each in (queue, other):
        assert sorted(message.body for message in await received(each, 2)) == ["one", "two"]
    await other.close()


async def test_a_queue_hears_the_topic_shards_that_it_is_subscribed_to(
    backend: Backend, queue: OpenQueue
) -> None:
    for shard in (0, 1):
        await backend.make_topic_shard(shard)
    topic = backend.topic()
    await topic.publish_to(1, "before")
    for _ in range(2):
        await queue.subscribe(1)
    await topic.publish_to(0, "of another")
    await topic.publish_to(1, "its own")
    await topic.publish("base")
    messages = await received(queue, 2)
    assert sorted(message.body for message in messages) == ["base", "its own"], "once each"
    await queue.delete([message.receipt for message in messages])
    for _ in range(2):
        await queue.unsubscribe(1)
    await queue.unsubscribe(0)
    await topic.publish_to(1, "after")
    await topic.publish("base again")
    assert [message.body for message in await received(queue, 1)] == ["base again"]


async def test_a_queue_that_is_not_open_is_subscribed_to_nothing(backend: Backend) -> None:
    await backend.make_topic_shard(0)
    queue = backend.queue()
    with pytest.raises(Gone):
        await queue.subscribe(0)
    await queue.unsubscribe(0)


async def test_closing_ends_all_subscriptions(backend: Backend) -> None:
    await backend.make_topic_shard(0)
    queue = backend.queue()
    await queue.open(backend.queue_name())
    await queue.subscribe(0)
    assert len(await backend.estate().subscriptions()) == 1
    assert len(await backend.estate(2).subscriptions()) == 2
    await queue.close()
    assert not await backend.estate(2).subscriptions()


async def test_what_is_deleted_does_not_come_again(backend: Backend, queue: OpenQueue) -> None:
    await backend.topic().publish("one")
    await queue.delete([message.receipt for message in await received(queue, 1)])
    assert not await queue.receive()


async def test_more_than_one_batch_is_received_and_deleted(
    backend: Backend, queue: OpenQueue
) -> None:
    bodies = [f"body-{number:02}" for number in range(23)]
    for body in bodies:
        await backend.topic().publish(body)
    messages = await received(queue, len(bodies))
    assert sorted(message.body for message in messages) == bodies
    await queue.delete([message.receipt for message in messages])
    await queue.delete([])
    assert not await queue.receive()


async def test_a_large_message_arrives(backend: Backend, queue: OpenQueue) -> None:
    body = "x" * ENVELOPE_BYTES_MAX
    await backend.topic().publish(body)
    assert [message.body for message in await received(queue, 1)] == [body]


@pytest.mark.parametrize(
    "body", ["x" * (ENVELOPE_BYTES_MAX + 1), "ä" * (ENVELOPE_BYTES_MAX // 2 + 1), ""]
)
async def test_a_message_of_a_wrong_size_is_refused(backend: Backend, body: str) -> None:
    with pytest.raises(Rejected):
        await backend.topic().publish(body)


async def test_publishing_without_any_queue_is_no_error(backend: Backend) -> None:
    await backend.topic().publish("nobody hears this")


async def test_closing_removes_queue_and_subscription_and_may_be_repeated(backend: Backend) -> None:
    queue = backend.queue()
    await queue.close()
    await queue.open(backend.queue_name())
    assert queue.queue_url
    assert queue.subscription_arn
    await queue.close()
    assert queue.queue_url is None
    assert queue.subscription_arn is None
    await queue.close()
    with pytest.raises(Gone):
        await queue.receive()
    await backend.topic().publish("nobody hears this")


async def test_a_closed_queue_opens_under_another_name(backend: Backend, queue: OpenQueue) -> None:
    await queue.close()
    await queue.open(f"{backend.queue_name()}-2")
    await backend.topic().publish("one")
    assert [message.body for message in await received(queue, 1)] == ["one"]


async def test_another_queue_gets_mail_also_when_the_own_one_is_gone(
    backend: Backend, queue: OpenQueue
) -> None:
    """Of a node that ends and still answers."""
    name = f"{backend.queue_name()}-2"
    other = backend.queue()
    await other.open(name)
    for body in ("before", "after"):
        await queue.post(name, body)
        assert [message.body for message in await received(other, 1)] == [body]
        await queue.close()
    await other.close()
    with pytest.raises(Gone):
        await queue.post(name, "nobody's")


async def test_a_queue_deleted_by_others_is_gone(backend: Backend, queue: OpenQueue) -> None:
    await backend.delete_queue(backend.queue_name())
    with pytest.raises(Gone):
        await queue.receive()
    with pytest.raises(Gone):
        await queue.delete(["receipt"])
    await queue.close()


async def test_a_bad_name_is_refused_and_leaves_nothing(backend: Backend) -> None:
    queue = backend.queue()
    for name in ("", "x" * 81, "queue.fifo", "ä"):
        with pytest.raises(Rejected):
            await queue.open(name)
    await queue.open(backend.queue_name())
    with pytest.raises(Rejected):
        await queue.open(f"{backend.queue_name()}-2")
    await queue.close()
