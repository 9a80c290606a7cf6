"""This instance's SQS queue and its subscriptions to topics: creates, polls and removes them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from roomcast.aws.errors import CALL_LIMIT_S, POLL_LIMIT_S, POLL_WAIT_S, port_errors
from roomcast.aws.messages import delete_messages
from roomcast.aws.topic import unsubscribe
from roomcast.concurrency import each_to_its_end
from roomcast.delivery.ports import Gone, Message
from roomcast.delivery.shards import SHARDS_MAX, topic_arns, topic_of
from roomcast.ports import PortError, Rejected

__all__ = ["RECEIVE_MAX", "SqsInstanceQueue", "is_queue_name"]

# The limit of SQS on one ReceiveMessage.
RECEIVE_MAX: Final = 10
# An instance that heard nothing for five minutes reads from the log anyway.
_RETENTION_S: Final = 300
# A cancelled receive may have taken messages, which come back after this time. Handling takes
# milliseconds.
_VISIBILITY_S: Final = 10
# AWS: "you must wait at least one second after the queue is created".
_CREATED_WAIT_S: Final = 1.5
# An endpoint that has nothing and says so sooner does not long-poll, as a proxy or an emulator may.
# It is asked again after a pause.
_EMPTY_S_MIN: Final = 0.2
_EMPTY_PAUSE_S: Final = 0.5
# How long SQS uses a data key before it asks KMS for another. Each queue asks a dozen times an
# hour, and a key that is disabled is out of use that soon.
_DATA_KEY_S: Final = 300
# The base topic and each topic shard's.
_TOPICS_MAX: Final = 1 + SHARDS_MAX

_QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")

Sleep = Callable[[float], Awaitable[None]]


def is_queue_name(name: str) -> bool:
    """Whether SQS accepts the name: 1 to 80 letters, digits, "_" and "-"."""
    return _QUEUE_NAME.fullmatch(name) is not None


class SqsInstanceQueue:
    """A NodeQueue.

    `control`, `poll`: SQS clients. The read time-out of `poll` is longer than `wait_s`.

    One object holds at most one queue at a time. A failed or cancelled `open` may have created
    something. `close` removes it, and may be called again until it succeeds.
    """

    def __init__(
        self,
        *,
        control: Any,
        poll: Any,
        sns: Any,
        topic_arn: str,
        tags: Callable[[], Mapping[str, str]],
        shards: int = 1,
        key_id: str = "",
        wait_s: int = POLL_WAIT_S,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`topic_arn`: the base topic's. `tags` is called each time a queue is created. `shards`:
        the number of topic shards, whose topics may send to the queue as well. `key_id`: of the key
        of KMS that encrypts the queue, "" = SQS's own.

        Raises ValueError when `topic_arn` is not an ARN of a topic.
        """
        parts = topic_arn.split(":")
        if len(parts) != 6 or parts[2] != "sns":
            raise ValueError(f"not the ARN of a topic: {topic_arn}")
        self._partition, self._region, self._account = parts[1], parts[3], parts[4]
        self._control, self._poll, self._sns = control, poll, sns
        self._topic_arn = topic_arn
        self._tags = tags
        self._shards = shards
        self._key_id = key_id
        self._wait_s = wait_s
        self._sleep = sleep
        self._name: str | None = None
        self._queue_url: str | None = None
        # What the URLs of all queues of the deployment begin with, which are of one account and
        # region. It stays when the own queue is gone: a node that ends still answers others.
        self._beside: str | None = None
        # By topic, from when the call to subscribe begins: the subscription's ARN; None = not known
        # yet.
        self._subscriptions: dict[str, str | None] = {}

    @property
    def queue_url(self) -> str | None:
        """The queue's URL. None until the queue is created, and after it was deleted."""
        return self._queue_url

    @property
    def subscription_arn(self) -> str | None:
        """The ARN of the subscription to the base topic. None until the queue is subscribed, and
        after it was unsubscribed.
        """
        return self._subscriptions.get(self._topic_arn)

    async def open(self, name: str) -> None:
        if self._name is not None:
            raise Rejected("close the queue before another is opened")
        if not is_queue_name(name):
            raise Rejected(f"not a queue name: {name[:100]!r}")
        self._name = name
        try:
            async with port_errors(CALL_LIMIT_S):
                answer = await self._control.create_queue(
                    QueueName=name, Attributes=self._attributes(name), tags=dict(self._tags())
                )
                self._queue_url = answer["QueueUrl"]
                self._beside = str(self._queue_url).rpartition("/")[0]
        except Rejected:
            self._name = None
            raise
        await self._sleep(_CREATED_WAIT_S)
        await self._subscribe(name, self._topic_arn)

    async def subscribe(self, shard: int) -> None:
        if self._name is None or self._queue_url is None:
            raise Gone("the queue is not open")
        await self._subscribe(self._name, topic_of(self._topic_arn, shard))

    async def unsubscribe(self, shard: int) -> None:
        if self._name is not None:
            await self._unsubscribe(self._name, topic_of(self._topic_arn, shard))

    async def receive(self) -> Sequence[Message]:
        if self._queue_url is None:
            raise Gone("the queue is not open")
        time = asyncio.get_running_loop().time
        asked_s = time()
        async with port_errors(POLL_LIMIT_S):
            answer = await self._poll.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=RECEIVE_MAX,
                WaitTimeSeconds=self._wait_s,
                MessageSystemAttributeNames=["SentTimestamp"],
            )
            messages = [_message(message) for message in answer.get("Messages", ())]
        if not messages and time() - asked_s < min(_EMPTY_S_MIN, self._wait_s):
            await self._sleep(_EMPTY_PAUSE_S)
        return messages

    async def post(self, queue: str, body: str) -> None:
        if self._beside is None:
            raise Gone("no queue was opened yet")
        if not is_queue_name(queue):
            raise Rejected(f"not a queue name: {queue[:100]!r}")
        async with port_errors(CALL_LIMIT_S):
            await self._control.send_message(QueueUrl=f"{self._beside}/{queue}", MessageBody=body)

    async def delete(self, receipts: Sequence[str]) -> None:
        if self._queue_url is None:
            raise Gone("the queue is not open")
        await delete_messages(self._control, self._queue_url, receipts)

    async def close(self) -> None:
        name = self._name
        if name is None:
            return
        # A deleted queue would keep its subscriptions, so the subscriptions go first. They go at
        # once: a node's end has no time for calls that hang one after the other. The queue goes
        # even if that failed.
        failures = await each_to_its_end(
            _TOPICS_MAX, list(self._subscriptions), partial(self._unsubscribe, name)
        )
        failures += await each_to_its_end(1, [name], self._delete_queue)
        for failure in failures:
            if not isinstance(failure, PortError):
                raise failure
        if failures:
            # What may succeed another time comes before what is refused.
            raise min(failures, key=lambda failure: isinstance(failure, Rejected))
        self.abandon()

    def abandon(self) -> None:
        self._name, self._queue_url = None, None
        self._subscriptions = {}

    async def _subscribe(self, name: str, topic_arn: str) -> None:
        """Subscribes. Idempotent: the same queue gets the same subscription of a topic."""
        subscriptions = self._subscriptions
        is_new = topic_arn not in subscriptions
        subscriptions.setdefault(topic_arn, None)
        try:
            subscriptions[topic_arn] = await self._arn(name, topic_arn)
        except Rejected:
            if is_new:
                # The call certainly did not subscribe: nothing needs to be removed.
                subscriptions.pop(topic_arn, None)
            raise

    async def _arn(self, name: str, topic_arn: str) -> str:
        """The ARN of the subscription, which is there from then on."""
        async with port_errors(CALL_LIMIT_S):
            answer = await self._sns.subscribe(
                TopicArn=topic_arn,
                Protocol="sqs",
                Endpoint=self._queue_arn(name),
                Attributes={"RawMessageDelivery": "true"},
                ReturnSubscriptionArn=True,
            )
            return str(answer["SubscriptionArn"])

    async def _unsubscribe(self, name: str, topic_arn: str) -> None:
        subscriptions = self._subscriptions
        if topic_arn not in subscriptions:
            return
        # The answer to the first call may have been lost: ask for the ARN again.
        arn = subscriptions[topic_arn] or await self._arn(name, topic_arn)
        await unsubscribe(self._sns, arn)
        subscriptions.pop(topic_arn, None)

    async def _delete_queue(self, name: str) -> None:
        try:
            async with port_errors(CALL_LIMIT_S):
                if self._queue_url is None:
                    # CreateQueue may have worked although its answer was lost.
                    self._queue_url = (await self._control.get_queue_url(QueueName=name))[
                        "QueueUrl"
                    ]
                await self._control.delete_queue(QueueUrl=self._queue_url)
        except Gone:
            pass
        self._queue_url = None

    def _queue_arn(self, name: str) -> str:
        return f"arn:{self._partition}:sqs:{self._region}:{self._account}:{name}"

    def _sources(self) -> str | Sequence[str]:
        """The ARNs of the topics that may send to the queue; of one only, without a list."""
        arns = topic_arns(self._topic_arn, self._shards)
        return arns[0] if len(arns) == 1 else arns

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
                    # The ARN contains the account. There is no aws:SourceAccount beside it: AWS
                    # does not document that SNS sends it on delivery, and a condition on a missing
                    # value would refuse every message.
                    "Condition": {"ArnEquals": {"aws:SourceArn": self._sources()}},
                }
            ],
        }
        return {
            # Part of the create call: set later, it could take up to 60 s to take effect.
            "Policy": json.dumps(policy, separators=(",", ":")),
            "MessageRetentionPeriod": str(_RETENTION_S),
            "VisibilityTimeout": str(_VISIBILITY_S),
            "ReceiveMessageWaitTimeSeconds": str(POLL_WAIT_S),
            **self._encryption(),
        }

    def _encryption(self) -> dict[str, str]:
        """Of the two kinds a queue has one."""
        if not self._key_id:
            # SNS cannot write to a queue under the managed key of KMS. SQS's own key needs no
            # permission.
            return {"SqsManagedSseEnabled": "true"}
        return {
            "KmsMasterKeyId": self._key_id,
            "KmsDataKeyReusePeriodSeconds": str(_DATA_KEY_S),
        }


def _message(received: Mapping[str, Any]) -> Message:
    """Raises LookupError, TypeError and ValueError for what SQS does not answer."""
    body, receipt = received["Body"], received["ReceiptHandle"]
    if not (isinstance(body, str) and isinstance(receipt, str)):
        raise TypeError("a message whose body is no text")
    sent_at = received.get("Attributes", {}).get("SentTimestamp", "0")
    return Message(body, receipt, int(sent_at))
