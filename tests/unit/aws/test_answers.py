"""Answers that AWS does not give, as a damaged one or one of somebody between: whatever is in them,
the adapters raise errors of the ports, for which everybody is prepared.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

import pytest
from botocore.exceptions import ClientError
from structlog.testing import capture_logs

from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.aws.estate import SqsEstate
from roomcast.aws.leases import DynamoLeases
from roomcast.aws.presence import DynamoPresence
from roomcast.aws.queue import SqsInstanceQueue
from roomcast.aws.topic import SnsTopic
from roomcast.fleet.deployment import Deployment
from roomcast.fleet.lease_record import Lease
from roomcast.log.idempotency import KeyItem
from roomcast.log.item import Head, LogItem
from roomcast.ports import PortError
from roomcast.system import SystemClock

TOPIC: Final = "arn:aws:sns:us-east-1:123456789012:roomcast-topic"
LATER: Final = 2**40
ITEM: Final = LogItem("c", 1, 1, "e", '[{"data":1}]', "b", "n", 1, 2**31)
KEY: Final = KeyItem("c\nk", "e", 1, "b", 2**31)
LEASE: Final = Lease("n", "q", "live", 1, 1, 2)
# Of each operation, as often with other answers.
ROUNDS: Final = 60
SCALARS: Final = (None, True, 5, -1, 1.5, "", "x", "5", 10**30, "9" * 5000)
FIELDS: Final = (
    "Items", "Item", "Messages", "QueueUrl", "QueueUrls", "Attributes", "Tags", "Subscriptions",
    "LastEvaluatedKey", "NextToken", "Failed", "Body", "ReceiptHandle", "SubscriptionArn", "Id",
    "Endpoint", "SenderFault", "UnprocessedItems", "channel", "offset", "last", "epoch", "pubs",
    "batch", "expires_at", "member", "info", "node", "key", "S", "N",
)  # fmt: skip
# What of the answers is a list of objects.
LISTS: Final = ("Items", "Messages", "Failed", "Subscriptions", "CancellationReasons")
CODES: Final = ("ConditionalCheckFailedException", "TransactionCanceledException", "Other")


class Answering:
    """Answers each call with what comes to its mind."""

    meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_args, **_options: None))

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __getattr__(self, _name: str) -> Callable[..., Awaitable[Any]]:
        async def call(**_parameters: Any) -> Any:
            return self._answer()

        return call

    def _answer(self) -> Any:
        chance = self._random.random()
        if chance < 0.1:
            return self._value(0)
        answer = {name: self._value(1) for name in self._random.sample(FIELDS, 6)}
        answer |= {name: self._list() for name in LISTS if self._random.random() < 0.5}
        if chance < 0.7:
            return answer
        code = self._random.choice(CODES)
        raise ClientError({**answer, "Error": {"Code": code, "Message": ""}}, "Operation")

    def _list(self) -> Any:
        return [self._object(2) for _ in range(self._random.randrange(3))]

    def _object(self, depth: int) -> Mapping[str, Any]:
        return {name: self._value(depth + 1) for name in self._random.sample(FIELDS, 6)}

    def _value(self, depth: int) -> Any:
        chance = self._random.random()
        if depth < 3 and chance < 0.3:
            return self._object(depth)
        if depth < 3 and chance < 0.4:
            return self._list()
        return self._random.choice(SCALARS)


async def at_once(_seconds: float) -> None:
    pass


def opened(client: Any) -> SqsInstanceQueue:
    queue = SqsInstanceQueue(
        control=client, poll=client, sns=client, topic_arn=TOPIC, tags=dict, sleep=at_once
    )
    queue._name, queue._queue_url = "q", "https://sqs.example/1/q"
    queue._beside = "https://sqs.example/1"
    return queue


def table(client: Any) -> DynamoChannelTable:
    return DynamoChannelTable(client, "channels", "idempotency", SystemClock())


def estate(client: Any) -> SqsEstate:
    return SqsEstate(client, client, Deployment(TOPIC, "roomcast-", 1), at_once)


def presence(client: Any) -> DynamoPresence:
    return DynamoPresence(client, "presence", at_once)


OPERATIONS: Final[Mapping[str, Callable[[Any], Awaitable[Any]]]] = {
    "newest": lambda client: table(client).newest("c"),
    "head": lambda client: table(client).head("c"),
    "key": lambda client: table(client).key("k"),
    "put_item": lambda client: table(client).put_item(ITEM, LATER * 8),
    "put_keyed_item": lambda client: table(client).put_keyed_item(ITEM, [KEY], LATER * 8),
    "put_head": lambda client: table(client).put_head(Head("c", "e", 0, 5, 0, "v", 2**31), None),
    "read_behind": lambda client: table(client).read_behind("c", 0, 3),
    "read_forward": lambda client: table(client).read_forward("c", 2, 3),
    "read_backward": lambda client: table(client).read_backward("c", 5, 3),
    "members": lambda client: presence(client).members("c"),
    "channels": lambda client: presence(client).channels("n"),
    "entries": lambda client: presence(client).entries("n", "c"),
    "clear": lambda client: presence(client).clear("n", "c"),
    "leases": lambda client: DynamoLeases(client, "nodes").all(),
    "tombstones": lambda client: DynamoLeases(client, "nodes").tombstones(),
    "heartbeat": lambda client: DynamoLeases(client, "nodes").heartbeat(LEASE),
    "reap": lambda client: DynamoLeases(client, "nodes").reap(LEASE, 1),
    "publish": lambda client: SnsTopic(client, TOPIC).publish("x"),
    "receive": lambda client: opened(client).receive(),
    "delete": lambda client: opened(client).delete(["r"] * 3),
    "close": lambda client: opened(client).close(),
    "post": lambda client: opened(client).post("q", "x"),
    "queues": lambda client: estate(client).queues(),
    "queue": lambda client: estate(client).queue("roomcast-x"),
    "subscriptions": lambda client: estate(client).subscriptions(),
    "delete_queue": lambda client: estate(client).delete_queue("roomcast-x"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_whatever_an_answer_holds_the_error_is_one_of_the_port(operation: str) -> None:
    client, outcomes = Answering(7), set[bool]()
    with capture_logs():
        for _ in range(ROUNDS):
            try:
                await OPERATIONS[operation](client)
                outcomes.add(True)
            except PortError:
                outcomes.add(False)
    assert outcomes, "it was asked"


@pytest.mark.parametrize("message", [{"Body": 5}, {"Body": None}, {"ReceiptHandle": 5}])
async def test_a_message_that_is_no_text_is_handed_to_nobody(message: Mapping[str, Any]) -> None:
    async def receive_message(**_parameters: Any) -> Any:
        return {"Messages": [{"Body": "x", "ReceiptHandle": "r", **message}]}

    with pytest.raises(PortError, match="cannot be read"):
        await opened(SimpleNamespace(receive_message=receive_message)).receive()
