"""The embedded AWS: resources, and the way of an append through stream,
Lambda and topic into queues.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from roomcast.aws.schema import channels_table
from roomcast.delivery.envelope import parse
from roomcast.dev.provision import (
    DUMMY_CREDENTIALS,
    EmulatorUnreachable,
    Provisioned,
    ProvisionError,
    client,
    provision,
)
from roomcast.log.item import LogItem

ROOT: Final = Path(__file__).parents[2]
REGION: Final = "us-east-1"
START_S: Final = 20
DELIVERY_S: Final = 15


@contextmanager
def child(module: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process of `roomcast dev`, ended by closing its standard input,
    as when the supervisor is gone.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        assert process.poll() is None, "it ended early"
        process.communicate(timeout=START_S)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@contextmanager
def emulator(*options: str) -> Iterator[str]:
    with child("roomcast.dev.emulator", *options) as process:
        assert process.stdout is not None
        deadline = threading.Timer(START_S, process.kill)
        deadline.start()
        line = process.stdout.readline()
        deadline.cancel()
        yield json.loads(line)["endpoint"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with emulator() as url:
        yield url


class Pipeline:
    """A deployment of its own on the shared emulator, with two instances' queues."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self.endpoint = endpoint
        self.table = channels_table(prefix)
        self.made: Provisioned = provision(
            endpoint,
            prefix,
            region=REGION,
            credentials=DUMMY_CREDENTIALS,
            topic_name=f"{prefix}topic",
        )
        self.dynamodb = client("dynamodb", endpoint, REGION, DUMMY_CREDENTIALS)
        self.sns = client("sns", endpoint, REGION, DUMMY_CREDENTIALS)
        self.sqs = client("sqs", endpoint, REGION, DUMMY_CREDENTIALS)
        self.queues = [self._queue(f"{prefix}q{number}") for number in (1, 2)]

    def _queue(self, name: str) -> str:
        url = str(self.sqs.create_queue(QueueName=name)["QueueUrl"])
        attributes = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])[
            "Attributes"
        ]
        self.sns.subscribe(
            TopicArn=self.made.topic_arn,
            Protocol="sqs",
            Endpoint=attributes["QueueArn"],
            Attributes={"RawMessageDelivery": "true"},
        )
        return url

    def put(self, channel: str, offset: int) -> None:
        item = LogItem(channel, offset, offset, "e", json.dumps([{"data": offset}]), "b", "n", 1, 2)
        self.dynamodb.put_item(TableName=self.table, Item=item.attributes())

    def received(self, queue: str, count: int) -> list[tuple[str, int]]:
        """(channel, offset) of the records that come into `queue`,
        until there are `count` different ones.
        """
        give_up_s = time.monotonic() + DELIVERY_S
        found: list[tuple[str, int]] = []
        while len(set(found)) < count:
            assert time.monotonic() < give_up_s, f"only {found}"
            answer = self.sqs.receive_message(
                QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            for message in answer.get("Messages", ()):
                self.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                envelope = parse(message["Body"])
                assert not envelope.broken
                found += [(record.channel, record.offset) for record in envelope.records]
        return found

    @contextmanager
    def pump(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        with child(
            "roomcast.dev.stream_pump",
            *("--endpoint", self.endpoint, "--stream-arn", self.made.stream_arn),
            *("--topic-arn", self.made.topic_arn, *options),
        ) as process:
            yield process


@pytest.fixture
def pipeline(endpoint: str, request: pytest.FixtureRequest) -> Pipeline:
    return Pipeline(endpoint, f"{request.node.name.removeprefix('test_')[:30]}-")


def test_provision_twice_changes_nothing(endpoint: str) -> None:
    first = provision(endpoint, "twice-", region=REGION, credentials=DUMMY_CREDENTIALS)
    second = provision(endpoint, "twice-", region=REGION, credentials=DUMMY_CREDENTIALS)
    names = {f"twice-{name}" for name in ("channels", "idempotency", "nodes", "presence")}
    assert set(first.created) == set(first.tables) == names
    assert second == replace(first, created=())
    assert first.presence_table == "twice-presence"
    assert first.presence_stream_arn
    assert first.events_queue_url == "", "none was wanted"
    assert first.topic_arn.endswith(":roomcast-topic")


def test_provision_makes_a_topic_for_each_topic_shard(endpoint: str) -> None:
    made = provision(
        endpoint,
        "sharded-",
        region=REGION,
        credentials=DUMMY_CREDENTIALS,
        topic_name="sharded-topic",
        topic_shards=2,
    )
    sns = client("sns", endpoint, REGION, DUMMY_CREDENTIALS)
    topics = {each["TopicArn"] for each in sns.list_topics()["Topics"]}
    named = {arn for arn in topics if ":sharded-topic" in arn}
    assert named == {made.topic_arn, f"{made.topic_arn}-shard-0", f"{made.topic_arn}-shard-1"}


def test_provision_sets_stream_and_time_to_live(pipeline: Pipeline) -> None:
    table = pipeline.dynamodb.describe_table(TableName=pipeline.table)["Table"]
    assert table["StreamSpecification"] == {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}
    ttl = pipeline.dynamodb.describe_time_to_live(TableName=pipeline.table)["TimeToLiveDescription"]
    assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires_at"}


def test_provision_completes_what_is_half_there(endpoint: str) -> None:
    whole = provision(endpoint, "half-", region=REGION, credentials=DUMMY_CREDENTIALS)
    client("dynamodb", endpoint, REGION, DUMMY_CREDENTIALS).delete_table(TableName="half-nodes")
    again = provision(endpoint, "half-", region=REGION, credentials=DUMMY_CREDENTIALS)
    assert again.created == ("half-nodes",)
    assert again.stream_arn == whole.stream_arn


def test_no_emulator_is_told_in_one_line() -> None:
    with socket.socket() as unused:  # bound but not listening: nobody else gets the port
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(EmulatorUnreachable, match=f"^no AWS emulator answers at {url}$"):
            provision(url, "x-", region=REGION, credentials=DUMMY_CREDENTIALS, deadline_s=0.2)


def test_a_table_without_a_stream_is_told(endpoint: str) -> None:
    client("dynamodb", endpoint, REGION, DUMMY_CREDENTIALS).create_table(
        TableName="streamless-channels",
        KeySchema=[{"AttributeName": "channel", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "channel", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    with pytest.raises(ProvisionError, match=r"streamless-channels .* has no stream"):
        provision(endpoint, "streamless-", region=REGION, credentials=DUMMY_CREDENTIALS)


def test_appends_reach_every_queue(pipeline: Pipeline) -> None:
    pipeline.put("early", 1)
    with pipeline.pump():
        for offset in range(1, 6):
            pipeline.put("room", offset)
        expected = [("early", 1), *(("room", offset) for offset in range(1, 6))]
        for queue in pipeline.queues:
            assert sorted(pipeline.received(queue, 6)) == expected  # each exactly once here
    # A fresh pump starts at the oldest record: what it sends again, the dispatcher drops.
    with pipeline.pump():
        assert set(pipeline.received(pipeline.queues[0], 6)) == set(expected)


def test_a_canceled_transaction_leaves_no_trace(pipeline: Pipeline) -> None:
    """Nor does it harm who reads the stream meanwhile."""

    def appended(offset: int) -> dict[str, Any]:
        item = LogItem("room", offset, offset, "e", json.dumps([{"data": offset}]), "b", "n", 1, 2)
        return {
            "Put": {
                "TableName": pipeline.table,
                "Item": item.attributes(),
                "ConditionExpression": "attribute_not_exists(#offset)",
                "ExpressionAttributeNames": {"#offset": "offset"},
            }
        }

    with pipeline.pump():
        pipeline.put("room", 1)
        assert pipeline.received(pipeline.queues[0], 1) == [("room", 1)]
        with pytest.raises(pipeline.dynamodb.exceptions.TransactionCanceledException) as canceled:
            pipeline.dynamodb.transact_write_items(TransactItems=[appended(2), appended(1)])
        codes = [reason["Code"] for reason in canceled.value.response["CancellationReasons"]]
        assert codes == ["None", "ConditionalCheckFailed"]
        pipeline.dynamodb.transact_write_items(TransactItems=[appended(3), appended(4)])
        assert sorted(pipeline.received(pipeline.queues[0], 2)) == [("room", 3), ("room", 4)]


def test_a_suspended_pump_catches_up(pipeline: Pipeline) -> None:
    with pipeline.pump() as process:
        pipeline.put("room", 1)
        pipeline.received(pipeline.queues[0], 1)
        os.kill(process.pid, signal.SIGSTOP)
        for offset in (2, 3, 4):
            pipeline.put("room", offset)
        os.kill(process.pid, signal.SIGCONT)
        assert sorted(pipeline.received(pipeline.queues[0], 3)) == [
            ("room", 2),
            ("room", 3),
            ("room", 4),
        ]


def test_poison_does_not_hold_up_the_stream(pipeline: Pipeline) -> None:
    pipeline.dynamodb.put_item(
        TableName=pipeline.table,
        Item={"channel": {"S": "room"}, "offset": {"N": "1"}, "pubs": {"S": "["}},
    )
    with pipeline.pump():
        pipeline.put("room", 2)
        assert pipeline.received(pipeline.queues[0], 1) == [("room", 2)]


def test_a_deleted_queue_does_not_silence_the_others(pipeline: Pipeline) -> None:
    pipeline.sqs.delete_queue(QueueUrl=pipeline.queues[0])
    with pipeline.pump():
        pipeline.put("room", 1)
        assert pipeline.received(pipeline.queues[1], 1) == [("room", 1)]


def test_a_pump_without_topic_goes_on_when_there_is_one(pipeline: Pipeline) -> None:
    pipeline.sns.delete_topic(TopicArn=pipeline.made.topic_arn)
    with pipeline.pump() as process:
        pipeline.put("room", 1)
        pipeline.sns.create_topic(Name=pipeline.made.topic_arn.rpartition(":")[2])
        queue = pipeline._queue("after-all")
        pipeline.put("room", 2)
        assert ("room", 2) in pipeline.received(queue, 1)
        assert process.poll() is None


@pytest.mark.parametrize("how", ["SIGTERM", "stdin"])
def test_an_emulator_ends_at_once_with_a_long_poll_open(how: str) -> None:
    with emulator_process() as (process, url):
        sqs = client("sqs", url, REGION, DUMMY_CREDENTIALS)
        queue = sqs.create_queue(QueueName="q")["QueueUrl"]
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as poll:
            body = json.dumps({"QueueUrl": queue, "WaitTimeSeconds": 20}).encode()
            poll.sendall(
                b"POST / HTTP/1.1\r\nHost: sqs\r\nX-Amz-Target: AmazonSQS.ReceiveMessage\r\n"
                b"Authorization: AWS4-HMAC-SHA256 "
                b"Credential=a/20260101/us-east-1/sqs/aws4_request\r\n"
                b"Content-Type: application/x-amz-json-1.0\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            # Another call is answered meanwhile, so the poll is under way or about to be.
            assert sqs.list_queues()["QueueUrls"] == [queue]
            assert process.stdin is not None
            if how == "SIGTERM":
                process.terminate()
            else:
                process.stdin.close()
            assert process.wait(5) == 0


@contextmanager
def emulator_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "roomcast.dev.emulator"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = threading.Timer(START_S, process.kill)
    deadline.start()
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["endpoint"]
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def test_an_emulator_whose_port_is_taken_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "roomcast.dev.emulator", "--port", str(port)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
    assert done.returncode == 1
    assert done.stderr == f"emulator: port {port} cannot be used: Address already in use\n"
