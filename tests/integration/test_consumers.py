"""Consumers as processes over the embedded AWS: Centrifugo's forms, kill -9, and dead letters."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.serving import Aws, Process, deployed, pump

pytestmark = [pytest.mark.timeout(180)]

# The shortest that there is.
VISIBILITY_S: Final = 5
DEADLINE_S: Final = 60.0
ACCOUNT: Final = "123456789012"
# A node that never hears that what it deleted is gone.
NEVER_DELETES: Final = """
import asyncio, sys
from roomcast.aws.work_queue import SqsWorkQueue
from roomcast.cli.main import main

async def never(self, receipts):
    await asyncio.sleep(3600)

SqsWorkQueue.delete = never
sys.exit(main())
"""
CONFIG: Final = """
[client]
insecure = true
[node]
drain_s = 0
[channel.without_namespace]
history_size = 1000
history_ttl = "1h"
[[channel.namespaces]]
name = "live"
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)  # a question over HTTP, with a deadline
    return found


class Queue:
    """A queue of back ends, with its dead letters."""

    def __init__(self, aws: Aws, name: str, receives_max: int = 20) -> None:
        self._sqs = aws.client("sqs")
        is_fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        self.dead = self._sqs.create_queue(QueueName=f"dead-{name}", Attributes=is_fifo)["QueueUrl"]
        self.arn = self._arn(name)
        policy = {"deadLetterTargetArn": self._arn(f"dead-{name}"), "maxReceiveCount": receives_max}
        self.url = self._sqs.create_queue(
            QueueName=name, Attributes=is_fifo | {"RedrivePolicy": json.dumps(policy)}
        )["QueueUrl"]

    def _arn(self, name: str) -> str:
        return f"arn:aws:sqs:eu-west-1:{ACCOUNT}:{name}"

    def send(self, body: Any, group: str = "", **attributes: str) -> str:
        """Text as it is, other values as JSON. Returns the message's id."""
        of_group = {"MessageGroupId": group, "MessageDeduplicationId": str(body)} if group else {}
        answer = self._sqs.send_message(
            QueueUrl=self.url,
            MessageBody=body if isinstance(body, str) else json.dumps(body),
            MessageAttributes={
                name.replace("_", "-"): {"DataType": "String", "StringValue": value}
                for name, value in attributes.items()
            },
            **of_group,
        )
        return str(answer["MessageId"])

    def left(self) -> int:
        """Messages that are in it, hidden or not."""
        found = self._sqs.get_queue_attributes(
            QueueUrl=self.url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
            ],
        )["Attributes"]
        return sum(int(number) for number in found.values())

    def dead_letters(self) -> list[str]:
        found = self._sqs.receive_message(
            QueueUrl=self.dead, MaxNumberOfMessages=10, VisibilityTimeout=0
        )
        return sorted(message["Body"] for message in found.get("Messages", []))


def is_empty(queue: Queue) -> bool:
    return queue.left() == 0


def consumer(name: str, queue: Queue, more: str = "") -> str:
    return f"""
[[consumers]]
name = "{name}"
enabled = true
type = "aws_sqs"
[consumers.aws_sqs]
queues = ["{queue.url}"]
visibility_timeout = "{VISIBILITY_S}s"
wait_time_time = "1s"
{more}
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("consumers"), "consumers-") as aws, pump(aws):
        yield aws


def data_of(aws: Aws, channel: str) -> list[Any]:
    return [data for _, _, data in aws.log(channel)]


def test_every_form_of_centrifugo_and_dead_letters(aws: Aws) -> None:
    commands, notified = Queue(aws, "commands"), Queue(aws, "notified")
    publications, ordered = Queue(aws, "publications"), Queue(aws, "ordered.fifo")
    poisoned = Queue(aws, "poisoned", 1)
    topic = aws.client("sns").create_topic(Name="back-end")["TopicArn"]
    aws.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=notified.arn)
    mode = "[consumers.aws_sqs.publication_data_mode]\nenabled = true"
    config = aws.config(
        "forms",
        CONFIG
        + consumer("commands", commands)
        + consumer("notified", notified, "sns_envelope = true")
        + consumer("publications", publications, mode)
        + consumer("ordered", ordered)
        + consumer("poisoned", poisoned),
    )
    payload = {"channel": "forms", "data": {"text": "hi"}}
    commands.send({"method": "publish", "payload": payload})
    commands.send({"method": "publish", "payload": json.dumps(payload)})
    commands.send(payload, centrifugo_method="publish")
    several = {"channels": ["forms", "second", "live:1"], "data": 1}
    commands.send({"method": "broadcast", "payload": several})
    commands.send({"method": "disconnect", "payload": {"user": "nobody"}})
    aws.client("sns").publish(
        TopicArn=topic,
        Message=json.dumps({"method": "publish", "payload": {"channel": "sns", "data": 2}}),
    )
    publications.send(
        '{ "as": "it is" }',
        centrifugo_channels="data,second",
        centrifugo_tag_kind="note",
    )
    for number in range(5):
        one = {"channel": "ordered", "data": number}
        ordered.send({"method": "publish", "payload": one}, group="orders")
    poison = ["no JSON", '{"method": "drain", "payload": {}}', '{"method": "publish"}']
    for body in poison:
        poisoned.send(body)
    process = Process(config, "--port", "0")
    try:
        process.ready()
        until(lambda: poisoned.dead_letters() == sorted(poison), "poison is a dead letter")
        for queue in (commands, notified, publications, ordered):
            until(partial(is_empty, queue), "all is done")
            assert queue.dead_letters() == []
        assert Counter(map(str, data_of(aws, "forms"))) == {"{'text': 'hi'}": 3, "1": 1}
        assert Counter(map(str, data_of(aws, "second"))) == {"{'as': 'it is'}": 1, "1": 1}
        assert data_of(aws, "sns") == [2]
        assert data_of(aws, "data") == [{"as": "it is"}]
        assert data_of(aws, "ordered") == list(range(5))
        reasons = {line["reason"] for line in process.told("consumer_message_failed", 1)}
        assert reasons <= {"unreadable", "bad_request"}
        assert "no JSON" not in process.log
        process.signal()
        assert process.ended() == 0
    finally:
        process.close()


def test_kill_9_in_the_middle_of_a_batch_publishes_each_message_once(
    aws: Aws, tmp_path: Path
) -> None:
    queue, ordered = Queue(aws, "killed"), Queue(aws, "in-order.fifo")
    consumers = consumer("killed", queue) + consumer("in_order", ordered)
    config = aws.config("killed", CONFIG + consumers)
    program = tmp_path / "never_deletes.py"
    program.write_text(NEVER_DELETES)
    killed = Process(config, "--port", "0", program=(str(program),))
    other = Process(config, "--port", "0")
    try:
        for each in (killed, other):
            each.ready()
        total = 40
        for number in range(total):
            one = {"channel": f"killed{number % 3}", "data": number}
            queue.send({"method": "publish", "payload": one})
            one = {"channel": "in-order", "data": number}
            ordered.send({"method": "publish", "payload": one}, group="orders")
        table = aws.client("dynamodb")

        def published_by_it() -> bool:
            items = table.scan(TableName=f"{aws.prefix}channels", ConsistentRead=True)["Items"]
            return any(item.get("node", {}).get("S") == killed.node for item in items)

        until(published_by_it, "it has published, and not deleted")
        killed.signal(signal.SIGKILL)
        assert killed.ended() == -signal.SIGKILL
        for each_queue in (queue, ordered):
            until(partial(is_empty, each_queue), "the other one has carried out all")
        published = [data for n in range(3) for data in data_of(aws, f"killed{n}")]
        assert sorted(published) == list(range(total)), "each once"
        assert data_of(aws, "in-order") == list(range(total)), "and in their order"
    finally:
        killed.close()
        other.close()
