"""This instance's SQS queue and its subscription to the topic: made at start, polled, removed at the end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from roomcast.aws.errors import CALL_LIMIT_S, POLL_LIMIT_S, POLL_WAIT_S, port_errors
from roomcast.aws.topic import unsubscribe
from roomcast.delivery.ports import Gone, Message
from roomcast.ports import PortError, Refused, Throttled, UnknownOutcome

__all__ = ["RECEIVE_MAX", "SqsInstanceQueue", "is_queue_name"]

# SQS's limits on one ReceiveMessage and one DeleteMessageBatch.
RECEIVE_MAX: Final = 10
_DELETE_MAX: Final = 10
# What an instance did not hear for five minutes it reads from the log anyway.
_RETENTION_S: Final = 300
# A receive that is cancelled may have taken messages: they come back after this long. Handling takes milliseconds.
_VISIBILITY_S: Final = 10
# AWS: "you must wait at least one second after the queue is created".
_CREATED_WAIT_S: Final = 1.5
# Attempts to delete one message before it is left to come again.
_DELETE_ATTEMPTS_MAX: Final = 2

_QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")

Sleep = Callable[[float], Awaitable[None]]


def is_queue_name(name: str) -> bool:
    """Whether SQS takes the name: 1 to 80 of letters, digits, "_" and "-"."""
    return _QUEUE_NAME.fullmatch(name) is not None


class SqsInstanceQueue:
    """An InstanceQueue. `control`, `poll`: SQS clients, the latter with a read time-out beyond `wait_s`.

    One object holds at most one queue at a time. A failed or cancelled `open` may have left something
    behind: `close` removes it, and may be called again until it succeeds.
    """

    def __init__(
        self,
        *,
        control: Any,
        poll: Any,
        sns: Any,
        topic_arn: str,
        tags: Callable[[], Mapping[str, str]],
        wait_s: int = POLL_WAIT_S,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`tags` are asked for each time a queue is made. Raises ValueError when `topic_arn` is none."""
        parts = topic_arn.split(":")
        if len(parts) != 6 or parts[2] != "sns":
            raise ValueError(f"not the ARN of a topic: {topic_arn}")
        self._partition, self._region, self._account = parts[1], parts[3], parts[4]
        self._control, self._poll, self._sns = control, poll, sns
        self._topic_arn = topic_arn
        self._tags = tags
        self._wait_s = wait_s
        self._sleep = sleep
        self._name: str | None = None
        self._queue_url: str | None = None
        self._subscribing = False
        self._subscription_arn: str | None = None

    @property
    def queue_url(self) -> str | None:
        """None until the queue is created, and after it was deleted."""
        return self._queue_url

    @property
    def subscription_arn(self) -> str | None:
        """None until the queue is subscribed, and after that ended."""
        return self._subscription_arn

    async def open(self, name: str) -> None:
        if self._name is not None:
            raise Refused("close the queue before another is opened")
        if not is_queue_name(name):
            raise Refused(f"not a queue name: {name[:100]!r}")
        self._name = name
        try:
            async with port_errors(CALL_LIMIT_S):
                answer = await self._control.create_queue(
                    QueueName=name, Attributes=self._attributes(name), tags=dict(self._tags())
                )
                self._queue_url = answer["QueueUrl"]
        except Refused:
            self._name = None
            raise
        await self._sleep(_CREATED_WAIT_S)
        try:
            self._subscription_arn = await self._subscribe(name)
        except Refused:
            # Known not to have happened: nothing to end.
            self._subscribing = False
            raise

    async def receive(self) -> Sequence[Message]:
        if self._queue_url is None:
            raise Gone("the queue is not open")
        async with port_errors(POLL_LIMIT_S):
            answer = await self._poll.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=RECEIVE_MAX,
                WaitTimeSeconds=self._wait_s,
                MessageSystemAttributeNames=["SentTimestamp"],
            )
            return [_message(message) for message in answer.get("Messages", ())]

    async def delete(self, receipts: Sequence[str]) -> None:
        # Another queue may be open by the time of the last batch.
        url, failure = self._queue_url, None
        if url is None:
            raise Gone("the queue is not open")
        for start in range(0, len(receipts), _DELETE_MAX):
            try:
                await self._delete_batch(url, receipts[start : start + _DELETE_MAX])
            except (Throttled, UnknownOutcome) as error:
                failure = error  # of these ten: the others may be deleted all the same
        if failure is not None:
            raise failure

    async def close(self) -> None:
        name = self._name
        if name is None:
            return
        failures: list[PortError] = []
        # A deleted queue keeps its subscription, so that goes first; the queue goes even if that failed.
        for step in (self._unsubscribe, self._delete_queue):
            try:
                await step(name)
            except PortError as error:
                failures.append(error)
        if failures:
            # What may succeed another time comes before what is refused.
            raise min(failures, key=lambda failure: isinstance(failure, Refused))
        self.abandon()

    def abandon(self) -> None:
        self._name, self._queue_url = None, None
        self._subscription_arn, self._subscribing = None, False

    async def _subscribe(self, name: str) -> str:
        """Idempotent: the same queue gets the same subscription."""
        self._subscribing = True
        async with port_errors(CALL_LIMIT_S):
            answer = await self._sns.subscribe(
                TopicArn=self._topic_arn,
                Protocol="sqs",
                Endpoint=self._queue_arn(name),
                Attributes={"RawMessageDelivery": "true"},
                ReturnSubscriptionArn=True,
            )
        return str(answer["SubscriptionArn"])

    async def _unsubscribe(self, name: str) -> None:
        if not self._subscribing:
            return
        # An answer that was lost: ask for the ARN again.
        arn = self._subscription_arn or await self._subscribe(name)
        await unsubscribe(self._sns, arn)
        self._subscription_arn, self._subscribing = None, False

    async def _delete_queue(self, name: str) -> None:
        try:
            async with port_errors(CALL_LIMIT_S):
                if self._queue_url is None:
                    # CreateQueue may have happened although its answer was lost.
                    self._queue_url = (await self._control.get_queue_url(QueueName=name))[
                        "QueueUrl"
                    ]
                await self._control.delete_queue(QueueUrl=self._queue_url)
        except Gone:
            pass
        self._queue_url = None

    async def _delete_batch(self, url: str, receipts: Sequence[str]) -> None:
        left, code = list(receipts), ""
        for _ in range(_DELETE_ATTEMPTS_MAX):
            async with port_errors(CALL_LIMIT_S):
                answer = await self._control.delete_message_batch(
                    QueueUrl=url,
                    Entries=[
                        {"Id": str(id_), "ReceiptHandle": receipt}
                        for id_, receipt in enumerate(left)
                    ],
                )
            # An entry can fail in an answer of HTTP 200. The sender's fault stays one the next time.
            failed = [entry for entry in answer.get("Failed", ()) if not entry["SenderFault"]]
            if not failed:
                return
            left, code = [left[int(entry["Id"])] for entry in failed], failed[0].get("Code", "")
        raise Throttled(f"{len(left)} of {len(receipts)} messages were not deleted: {code}")

    def _queue_arn(self, name: str) -> str:
        return f"arn:{self._partition}:sqs:{self._region}:{self._account}:{name}"

    def _attributes(self, name: str) -> dict[str, str]:
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": "topic",
                    "Effect": "Allow",
                    "Principal": {"Service": "sns.amazonaws.com"},
                    "Action": "sqs:SendMessage",
                    "Resource": self._queue_arn(name),
                    # The ARN holds the account. No aws:SourceAccount beside it: AWS does not say that SNS sends that with
                    # what it delivers, and a condition on what is missing would refuse every message.
                    "Condition": {"ArnEquals": {"aws:SourceArn": self._topic_arn}},
                }
            ],
        }
        return {
            # In the create call: set later, it would take up to 60 s to hold.
            "Policy": json.dumps(policy, separators=(",", ":")),
            "MessageRetentionPeriod": str(_RETENTION_S),
            "VisibilityTimeout": str(_VISIBILITY_S),
            "ReceiveMessageWaitTimeSeconds": str(POLL_WAIT_S),
            # SNS cannot write to a queue under the managed key of KMS; SQS's own key needs no permission.
            "SqsManagedSseEnabled": "true",
        }


def _message(received: Mapping[str, Any]) -> Message:
    sent_at = received.get("Attributes", {}).get("SentTimestamp", "0")
    return Message(received["Body"], received["ReceiptHandle"], int(sent_at))
