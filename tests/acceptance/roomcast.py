"""The product as its users start it: `roomcast` commands as processes,
and the AWS that they talk to.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3

from tests.processes import is_gone, left_behind

__all__ = ["Aws", "Dev", "Witness", "emulator", "environment", "roomcast"]

ROOT: Final = Path(__file__).parents[2]
REGION: Final = "us-east-1"
# From a command to the ready line, and from SIGTERM to the end, on a machine that does much else.
START_S: Final = 40.0
STOP_S: Final = 30.0
COMMAND_S: Final = 30.0
# Lines of stderr that a failure report shows.
REPORT_LINES: Final = 200


def environment() -> dict[str, str]:
    """Ours, less what would configure the product or lead it to somebody's AWS."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ROOMCAST_", "AWS_"))
    }


def roomcast(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end. What could listen is told where:
    the usual port may be somebody's.
    """
    assert arguments[0] not in ("serve", "dev") or "--port" in arguments, "no test has a fixed port"
    return subprocess.run(
        [sys.executable, "-m", "roomcast", *arguments],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )


class Dev:
    """One `roomcast dev`. To be closed; `stop` is the orderly end."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roomcast", "dev", "--port", "0", *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready: dict[str, Any] = {}
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def until_ready(self) -> None:
        assert self.process.stdout is not None, "asked for a pipe"
        readable, _, _ = select.select([self.process.stdout], [], [], START_S)
        line = self.process.stdout.readline() if readable else ""
        assert line, f"no ready line:\n{self.stderr}"
        self.ready = json.loads(line)
        assert self.ready["event"] == "ready"

    # ---- what the ready line says

    @property
    def urls(self) -> list[str]:
        return [instance["url"] for instance in self.ready["instances"]]

    @property
    def ws_urls(self) -> list[str]:
        return [f"{url.replace('http', 'ws', 1)}/connection/websocket" for url in self.urls]

    @property
    def pids(self) -> list[int]:
        return [instance["pid"] for instance in self.ready["instances"]]

    @property
    def nodes(self) -> list[str]:
        return [instance["node"] for instance in self.ready["instances"]]

    @property
    def pump_pid(self) -> int:
        return int(self.ready["pump"]["pid"])

    @property
    def aws_endpoint(self) -> str:
        return str(self.ready["aws_endpoint"])

    # ---- what it says

    def _collect(self) -> None:
        assert self.process.stderr is not None, "asked for a pipe"
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    @property
    def stderr(self) -> str:
        with self._changed:
            return "".join(self._lines)

    @property
    def report(self) -> str:
        with self._changed:
            return "".join(self._lines[-REPORT_LINES:])

    def until_said(self, *texts: str) -> str:
        """The first line of stderr with all of `texts`; waits for it."""

        def found() -> str | None:
            return next((line for line in self._lines if all(text in line for text in texts)), None)

        with self._changed:
            line = self._changed.wait_for(found, START_S)
            assert line is not None, f"{texts} is not in {''.join(self._lines)}"
            return line

    @property
    def complaints(self) -> list[str]:
        """What it says is wrong with itself."""
        signs = (
            '"level":"error"',
            '"level":"critical"',
            "Traceback",
            "Exception ignored",
            "Warning: ",
        )
        return [line for line in self.stderr.splitlines() if any(sign in line for sign in signs)]

    # ---- what is done to it

    @contextmanager
    def pump_suspended(self) -> Iterator[None]:
        """Nothing gets from the table's stream to the topic meanwhile."""
        os.kill(self.pump_pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pump_pid, signal.SIGCONT)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """The orderly end: exit code 0, and no process is left."""
        self.process.send_signal(number)
        code = self.process.wait(STOP_S)
        self.until_nobody_is_left()
        assert code == 0, self.report

    def until_nobody_is_left(self) -> None:
        """Every process that it started holds its stderr,
        so the end of that is the end of the last one.
        """
        self._reader.join(STOP_S)
        assert not self._reader.is_alive(), f"a process was left behind:\n{self.report}"
        left = left_behind((*self.pids, self.pump_pid), STOP_S)
        assert not left, f"processes {left} were left behind:\n{self.report}"

    def close(self) -> None:
        """Whatever happened before, nothing is left. Idempotent."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        # Its children end by themselves now; those that a test broke are helped.
        self._reader.join(STOP_S)
        for pid in (*self.pids, self.pump_pid) if self.ready else ():
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(STOP_S)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None, "asked for pipes"
            pipe.close()


class Aws:
    """The tables, topic and queues of one emulator, looked at and written to from outside."""

    def __init__(self, endpoint: str) -> None:
        session = boto3.session.Session()
        self.dynamodb, self.sns, self.sqs = (
            session.client(
                name,
                endpoint_url=endpoint,
                region_name=REGION,
                aws_access_key_id="acceptance",
                aws_secret_access_key="acceptance",
            )
            for name in ("dynamodb", "sns", "sqs")
        )

    def close(self) -> None:
        for each in (self.dynamodb, self.sns, self.sqs):
            each.close()

    @property
    def topic_arn(self) -> str:
        (topic,) = self.sns.list_topics()["Topics"]
        return str(topic["TopicArn"])

    def queues(self) -> list[str]:
        return [str(url) for url in self.sqs.list_queues(MaxResults=100).get("QueueUrls", ())]

    def subscriptions(self) -> list[dict[str, str]]:
        return list(self.sns.list_subscriptions()["Subscriptions"])

    def subscription_of(self, node: str) -> dict[str, str]:
        (subscription,) = [each for each in self.subscriptions() if node in each["Endpoint"]]
        return subscription

    def rows(self, table: str) -> list[dict[str, Any]]:
        return list(self.dynamodb.scan(TableName=table, ConsistentRead=True)["Items"])

    def items(self, channel: str) -> list[dict[str, Any]]:
        """Head and log items of `channel`."""
        return list(
            self.dynamodb.query(
                TableName="roomcast-channels",
                KeyConditionExpression="#channel = :channel",
                ExpressionAttributeNames={"#channel": "channel"},
                ExpressionAttributeValues={":channel": {"S": channel}},
                ConsistentRead=True,
            )["Items"]
        )

    def log(self, channel: str) -> list[tuple[int, Any]]:
        """(offset, data) of everything that is in the log of `channel`."""
        return [
            (int(item["offset"]["N"]) + index, published["data"])
            for item in self.items(channel)
            if item["offset"]["N"] != "0"
            for index, published in enumerate(json.loads(item["pubs"]["S"]))
        ]

    def forget(self, channel: str) -> None:
        """Delete everything about `channel`: what a table restored from nothing looks like."""
        for item in self.items(channel):
            key = {"channel": item["channel"], "offset": item["offset"]}
            self.dynamodb.delete_item(TableName="roomcast-channels", Key=key)


class Witness:
    """A queue of the tests at the topic: it gets what every instance's queue gets."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._url = aws.sqs.create_queue(QueueName="witness")["QueueUrl"]
        arn = aws.sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])
        self._subscription = aws.sns.subscribe(
            TopicArn=aws.topic_arn,
            Protocol="sqs",
            Endpoint=arn["Attributes"]["QueueArn"],
            Attributes={"RawMessageDelivery": "true"},
            ReturnSubscriptionArn=True,
        )["SubscriptionArn"]
        self.bodies: list[str] = []

    def until_heard(self, text: str) -> str:
        """The first message with `text` in it, of those heard or to come."""
        give_up_s = time.monotonic() + STOP_S
        while True:
            for body in self.bodies:
                if text in body:
                    return body
            assert time.monotonic() < give_up_s, f"{text!r} is not in {self.bodies}"
            answer = self._aws.sqs.receive_message(
                QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            for message in answer.get("Messages", ()):
                self._aws.sqs.delete_message(
                    QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"]
                )
                self.bodies.append(message["Body"])

    def close(self) -> None:
        self._aws.sns.unsubscribe(SubscriptionArn=self._subscription)
        self._aws.sqs.delete_queue(QueueUrl=self._url)


@contextmanager
def emulator() -> Iterator[str]:
    """An AWS that was there before; its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "roomcast.dev.emulator", "--region", REGION],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None, "asked for a pipe"
        readable, _, _ = select.select([process.stdout], [], [], START_S)
        assert readable, "the emulator does not start"
        yield str(json.loads(process.stdout.readline())["endpoint"])
    finally:
        process.communicate(timeout=STOP_S)  # it ends with its standard input
