"""What every WorkQueue guarantees, together with the queue behind it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pytest

from roomcast.aws.work_queue import SqsWorkQueue
from roomcast.consumers.messages import QueueMessage
from roomcast.consumers.ports import WorkQueue
from roomcast.delivery.ports import Gone
from roomcast.testing.work_queue import MemoryWorkQueue
from tests.contract.backends import WAIT_S, AwsBackend, Backend

# Longer than any of these tests.
VISIBILITY_S = 60
POLLS_MAX = 5


class Send(Protocol):
    async def __call__(self, body: str, *, group: str = "", **attributes: str) -> None: ...


@dataclass
class Made:
    queue: WorkQueue
    send: Send
    dead: Callable[[], Awaitable[Sequence[str]]]


Make = Callable[..., Awaitable[Made]]


@pytest.fixture
def make(backend: Backend) -> Make:
    async def make(*, fifo: bool = False, receives_max: int = 0) -> Made:
        if isinstance(backend, AwsBackend):
            return await made_on_aws(backend, fifo=fifo, receives_max=receives_max)
        queue = MemoryWorkQueue(backend.clock, receives_max=receives_max, visibility_s=VISIBILITY_S)

        async def send(body: str, *, group: str = "", **attributes: str) -> None:
            queue.send(body, group=group, **attributes)

        async def dead() -> Sequence[str]:
            return queue.dead

        return Made(queue, send, dead)

    return make


async def made_on_aws(backend: AwsBackend, *, fifo: bool, receives_max: int) -> Made:
    sqs, end = backend.clients.sqs, f"{receives_max}{'.fifo' if fifo else ''}"
    attributes = {"FifoQueue": "true"} if fifo else {}
    dead_url = (
        await sqs.create_queue(QueueName=f"{backend.prefix}dead{end}", Attributes=attributes)
    )["QueueUrl"]
    if receives_max:
        about = await sqs.get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])
        policy = {
            "deadLetterTargetArn": about["Attributes"]["QueueArn"],
            "maxReceiveCount": receives_max,
        }
        attributes = attributes | {"RedrivePolicy": json.dumps(policy)}
    url = (await sqs.create_queue(QueueName=f"{backend.prefix}work{end}", Attributes=attributes))[
        "QueueUrl"
    ]

    async def send(body: str, *, group: str = "", **texts: str) -> None:
        of_group = {"MessageGroupId": group, "MessageDeduplicationId": body} if group else {}
        binary = {"ignored": {"DataType": "Binary", "BinaryValue": b"\xff"}} if texts else {}
        await sqs.send_message(
            QueueUrl=url,
            MessageBody=body,
            MessageAttributes={
                **{
                    name: {"DataType": "String", "StringValue": text}
                    for name, text in texts.items()
                },
                **binary,
            },
            **of_group,
        )

    async def dead() -> Sequence[str]:
        found = await sqs.receive_message(QueueUrl=dead_url)
        return [message["Body"] for message in found.get("Messages", ())]

    queue = SqsWorkQueue(
        sqs,
        backend.clients.sqs_poll,
        url,
        messages_max=10,
        wait_s=WAIT_S,
        visibility_s=VISIBILITY_S,
    )
    return Made(queue, send, dead)


async def received(queue: WorkQueue, count: int) -> list[QueueMessage]:
    messages: list[QueueMessage] = []
    for _ in range(POLLS_MAX):
        messages.extend(await queue.receive())
        if len(messages) >= count:
            break
    return messages


async def test_a_message_comes_to_one_receiver_until_it_is_deleted(make: Make) -> None:
    made = await make()
    queue = made.queue
    body = '{"text":"ä😀 \\" <&> \t"}'
    await made.send(body, kind="note", other="ä")
    [first] = await received(queue, 1)
    assert (first.body, first.receives, first.group) == (body, 1, "")
    assert first.attributes == {"kind": "note", "other": "ä"}, "and no binary one"
    assert 0 < first.sent_ms <= first.first_received_ms
    assert not await queue.receive(), "it is hidden"
    await queue.hide({first.receipt: 0})
    [again] = await received(queue, 1)
    assert (again.id, again.receives) == (first.id, 2)
    assert again.first_received_ms == first.first_received_ms, "for ever"
    await queue.delete([again.receipt])
    await queue.delete([again.receipt])
    assert not await queue.receive()


async def test_many_are_deleted_and_hidden_at_once(make: Make) -> None:
    made = await make()
    for number in range(12):
        await made.send(str(number))
    messages = await received(made.queue, 12)
    assert sorted(int(message.body) for message in messages) == list(range(12))
    await made.queue.hide({message.receipt: 0 for message in messages})
    again = await received(made.queue, 12)
    assert {message.receives for message in again} == {2}
    await made.queue.delete([message.receipt for message in again])
    assert not await made.queue.receive()


async def test_a_group_waits_for_its_hidden_messages(make: Make) -> None:
    made = await make(fifo=True)
    for body in ("one", "two"):
        await made.send(body, group="a")
    messages = await received(made.queue, 2)
    assert [(message.body, message.group) for message in messages] == [("one", "a"), ("two", "a")]
    await made.send("three", group="a")
    await made.send("other", group="b")
    assert [message.body for message in await received(made.queue, 1)] == ["other"]
    await made.queue.delete([message.receipt for message in messages])
    assert [message.body for message in await received(made.queue, 1)] == ["three"]


async def test_a_message_that_was_received_often_enough_is_a_dead_letter(make: Make) -> None:
    assert await (await make()).queue.receives_max() == 0
    made = await make(receives_max=2)
    assert await made.queue.receives_max() == 2
    await made.send("poison")
    for receives in (1, 2):
        [message] = await received(made.queue, 1)
        assert message.receives == receives
        await made.queue.hide({message.receipt: 0})
    assert not await made.queue.receive()
    assert await made.dead() == ["poison"]


@pytest.mark.parametrize("backend", ["aws", "sdk"], indirect=True)
async def test_a_queue_that_is_not_there(backend: AwsBackend) -> None:
    queue = SqsWorkQueue(
        *(backend.clients.sqs, backend.clients.sqs_poll, "http://127.0.0.1/123456789012/none"),
        messages_max=1,
        wait_s=1,
        visibility_s=1,
    )
    for call in (queue.receive, queue.receives_max):
        with pytest.raises(Gone):
            await call()
