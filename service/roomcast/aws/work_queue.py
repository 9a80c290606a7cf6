"""A queue of SQS that back ends send to: receives, deletes, and lets messages come again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from roomcast.aws.errors import CALL_LIMIT_S, POLL_LIMIT_S, POLL_WAIT_S, port_errors
from roomcast.aws.messages import delete_messages, hide_messages
from roomcast.consumers.messages import QueueMessage

__all__ = ["SqsWorkQueue", "receives_max_of"]

# As for a node's own queue (queue.py): an endpoint that does not long-poll is asked after a pause.
_EMPTY_S_MIN: Final = 0.2
_EMPTY_PAUSE_S: Final = 0.5
_ABOUT: Final = (
    "ApproximateFirstReceiveTimestamp",
    "ApproximateReceiveCount",
    "MessageGroupId",
    "SentTimestamp",
)

Sleep = Callable[[float], Awaitable[None]]


class SqsWorkQueue:
    """A WorkQueue. `control`, `poll`: SQS clients. The read time-out of `poll` is longer than a
    long poll.
    """

    def __init__(
        self,
        control: Any,
        poll: Any,
        url: str,
        *,
        messages_max: int,
        wait_s: int,
        visibility_s: int,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        assert wait_s <= POLL_WAIT_S, "the client waits longer than the queue"
        self._control = control
        self._poll = poll
        self._url = url
        self._messages_max = messages_max
        self._wait_s = wait_s
        self._visibility_s = visibility_s
        self._sleep = sleep

    @property
    def url(self) -> str:
        return self._url

    async def receive(self) -> Sequence[QueueMessage]:
        time = asyncio.get_running_loop().time
        asked_s = time()
        async with port_errors(POLL_LIMIT_S):
            answer = await self._poll.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=self._messages_max,
                WaitTimeSeconds=self._wait_s,
                VisibilityTimeout=self._visibility_s,
                MessageSystemAttributeNames=list(_ABOUT),
                MessageAttributeNames=["All"],
            )
            messages = [_message(each) for each in answer.get("Messages", ())]
        if not messages and time() - asked_s < min(_EMPTY_S_MIN, self._wait_s):
            await self._sleep(_EMPTY_PAUSE_S)
        return messages

    async def delete(self, receipts: Sequence[str]) -> None:
        await delete_messages(self._control, self._url, receipts)

    async def hide(self, pauses: Mapping[str, int]) -> None:
        await hide_messages(self._control, self._url, pauses)

    async def receives_max(self) -> int:
        async with port_errors(CALL_LIMIT_S):
            answer = await self._control.get_queue_attributes(
                QueueUrl=self._url, AttributeNames=["RedrivePolicy"]
            )
            return receives_max_of(answer.get("Attributes", {}))


def receives_max_of(attributes: Mapping[str, str]) -> int:
    """Of the attributes of a queue; 0 = it has no dead-letter queue. Raises ValueError."""
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    if not isinstance(policy, dict) or not policy.get("deadLetterTargetArn"):
        return 0
    return int(policy.get("maxReceiveCount", 0))


def _message(received: Mapping[str, Any]) -> QueueMessage:
    """Raises LookupError, TypeError and ValueError for what SQS does not answer."""
    about = received["Attributes"]
    texts = {
        name: value
        for name, each in (received.get("MessageAttributes") or {}).items()
        if isinstance(value := each.get("StringValue"), str)
    }
    id_, body, receipt = (received[name] for name in ("MessageId", "Body", "ReceiptHandle"))
    if not all(isinstance(each, str) for each in (id_, body, receipt)):
        raise TypeError("a message whose body is no text")
    return QueueMessage(
        id=id_,
        body=body,
        attributes=texts,
        receipt=receipt,
        sent_ms=int(about["SentTimestamp"]),
        first_received_ms=int(about["ApproximateFirstReceiveTimestamp"]),
        receives=int(about["ApproximateReceiveCount"]),
        group=str(about.get("MessageGroupId", "")),
    )
