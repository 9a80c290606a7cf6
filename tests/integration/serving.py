"""`roomcast serve` as processes against an emulator,
and what they leave there, seen from outside.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from roomcast.aws.clients import connect
from roomcast.aws.schema import channels_table, nodes_table, presence_table
from roomcast.dev.provision import DUMMY_CREDENTIALS, Provisioned, client, provision
from roomcast.dev.supervisor import events_options
from roomcast.fleet.deployment import Deployment
from roomcast.reaper.over_aws import reaper_over_aws
from roomcast.reaper.reaper import Reaper
from roomcast.system import SystemClock
from tests.contract.backends import REGION, ROOT, SESSION, emulator

__all__ = [
    "SILENT_S",
    "START_S",
    "STOP_S",
    "Ahead",
    "Aws",
    "Process",
    "deployed",
    "environment",
    "no_wait",
    "pump",
    "reaping",
    "serving",
]

START_S: Final = 45
# A node that did not beat for so long is dead to a test's reaper, however slow the machine; the
# others beat twice a second.
SILENT_S: Final = 10
STOP_S: Final = 30


class Ahead(SystemClock):
    """The clock of a machine that is ahead of the others:
    to it, leases end that are not renewed for a while.
    """

    def __init__(self, by_ms: int) -> None:
        self._by_ms = by_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._by_ms


async def no_wait(_seconds: float) -> None:
    """In place of pauses: the emulator's queues are there at once, it has no quotas,
    and who is silent here is dead.
    """
    await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Aws:
    """The embedded AWS with what a deployment needs."""

    endpoint: str
    made: Provisioned
    directory: Path
    prefix: str

    def config(self, name: str, text: str, **aws: str) -> Path:
        """A configuration file: `text`, and where AWS is."""
        settings = {
            "endpoint_url": self.endpoint,
            "region": REGION,
            "table_prefix": self.prefix,
            "queue_prefix": self.prefix,
            "topic_arn": self.made.topic_arn,
        } | aws
        path = self.directory / f"{name}.toml"
        lines = [f'{key} = "{value}"' for key, value in settings.items() if value]
        lines.append(f"topic_shards = {self.made.topic_shards}")
        path.write_text("\n".join([text, "[aws]", *lines, ""]))
        return path

    def client(self, service: str) -> Any:
        return client(service, self.endpoint, REGION, DUMMY_CREDENTIALS)

    def queues_of(self, node: str) -> list[str]:
        urls = self.client("sqs").list_queues(QueueNamePrefix=self.prefix).get("QueueUrls", [])
        return [url for url in urls if node in url]

    def subscriptions_of(self, node: str) -> list[str]:
        answer = self.client("sns").list_subscriptions_by_topic(TopicArn=self.made.topic_arn)
        return [each["Endpoint"] for each in answer["Subscriptions"] if node in each["Endpoint"]]

    def leases(self) -> set[str]:
        items = self.client("dynamodb").scan(
            TableName=nodes_table(self.prefix), ConsistentRead=True
        )["Items"]
        # A tombstone holds nothing; it goes by itself.
        return {item["node"]["S"] for item in items if "buried" not in item}

    def presence_of(self, node: str) -> list[dict[str, Any]]:
        items = self.client("dynamodb").scan(
            TableName=presence_table(self.prefix), ConsistentRead=True
        )["Items"]
        return [item for item in items if node in json.dumps(item)]

    def left_of(self, node: str) -> list[Any]:
        """Whatever is still there of `node`."""
        leases = [lease for lease in self.leases() if lease == node]
        return [
            *self.queues_of(node),
            *self.subscriptions_of(node),
            *leases,
            *self.presence_of(node),
        ]

    def log(self, channel: str) -> list[tuple[str, int, Any]]:
        """(epoch, offset, data) of everything that is in the log of `channel`."""
        pages = (
            self.client("dynamodb")
            .get_paginator("query")
            .paginate(
                TableName=channels_table(self.prefix),
                KeyConditionExpression="#channel = :channel AND #offset > :head",
                ExpressionAttributeNames={"#channel": "channel", "#offset": "offset"},
                ExpressionAttributeValues={":channel": {"S": channel}, ":head": {"N": "0"}},
                ConsistentRead=True,
            )
        )
        return [
            (item["epoch"]["S"], int(item["offset"]["N"]) + index, published["data"])
            for page in pages
            for item in page["Items"]
            for index, published in enumerate(json.loads(item["pubs"]["S"]))
        ]


@contextmanager
def deployed(
    directory: Path, prefix: str, topic_shards: int = 1, *, events: bool = False
) -> Iterator[Aws]:
    """An emulator of its own with tables and topics, and files in `directory`."""
    with emulator() as endpoint:
        made = provision(
            endpoint,
            prefix,
            region=REGION,
            credentials=DUMMY_CREDENTIALS,
            topic_name=f"{prefix}topic",
            topic_shards=topic_shards,
            events=events,
        )
        yield Aws(endpoint, made, directory, prefix)


class Process:
    """One `roomcast serve`."""

    def __init__(
        self,
        config: Path | None,
        *options: str,
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "roomcast"),
    ) -> None:
        """`config` None: as the environment says. `environ`: in place of `environment()`.

        `program`: what Python runs in place of roomcast itself, with the same arguments.
        """
        assert "--port" in options, "no test has a fixed port"
        named = [] if config is None else ["--config", str(config)]
        self._process = subprocess.Popen(
            [sys.executable, *program, "serve", *named, *options],
            cwd=ROOT,
            env=environment() if environ is None else environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = 0
        self.node = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def ready(self) -> None:
        """Wait until it listens."""
        event = self.said("ready", START_S)
        self.port, self.node = event["port"], event["node"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def ended(self, within_s: float = STOP_S) -> int:
        """Wait for its end; the exit code."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.log}") from None
        self._reader.join(within_s)
        return code

    def close(self) -> None:
        """However it is."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def said(self, event: str, within_s: float = STOP_S) -> dict[str, Any]:
        """The fields of its first log line about `event`; waits for it."""
        return self.told(event, 1, within_s)[0]

    def told(self, event: str, count: int, within_s: float = STOP_S) -> list[dict[str, Any]]:
        """The fields of its log lines about `event`; waits for `count` of them."""

        def found() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in self.lines if line.startswith("{")]
            return [line for line in lines if line["event"] == event]

        with self._changed:
            self._changed.wait_for(
                lambda: len(found()) >= count or not self._reader.is_alive(), within_s
            )
        result = found()
        assert len(result) >= count, f"{event}: {len(result)} of {count}:\n{self.log}"
        return result


def environment() -> dict[str, str]:
    """Nothing of the machine's own AWS or roomcast."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "ROOMCAST_"))
    }
    return inherited | {
        "AWS_ACCESS_KEY_ID": DUMMY_CREDENTIALS.access_key_id,
        "AWS_SECRET_ACCESS_KEY": DUMMY_CREDENTIALS.secret_access_key,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@contextmanager
def pump(aws: Aws) -> Iterator[None]:
    """Stream and Lambda. Ends when its standard input does."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "roomcast.dev.stream_pump"),
            *("--endpoint", aws.endpoint, "--region", REGION),
            *("--stream-arn", aws.made.stream_arn, "--topic-arn", aws.made.topic_arn),
            *("--topic-shards", str(aws.made.topic_shards)),
            *(events_options(aws.made) if aws.made.events_queue_url else ()),
        ],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
    )
    try:
        yield
        assert process.poll() is None, "the pump ended early"
        process.communicate(timeout=STOP_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@contextmanager
def serving(config: Path | None, environ: Mapping[str, str] | None = None) -> Iterator[Process]:
    """One process, which is not there afterwards, however that came."""
    process = Process(config, "--port", "0", environ=environ)
    try:
        yield process
    finally:
        process.close()


@asynccontextmanager
async def reaping(aws: Aws, ahead_ms: int, topic_shards: int = 1) -> AsyncIterator[Reaper]:
    """A reaper of `aws` whose clock is ahead of the nodes'."""
    async with connect(region=REGION, endpoint_url=aws.endpoint, session=SESSION) as clients:
        yield reaper_over_aws(
            Deployment(aws.made.topic_arn, aws.prefix, topic_shards),
            aws.prefix,
            Ahead(ahead_ms),
            dynamodb=clients.tables,
            sns=clients.sns,
            sqs=clients.sqs,
            sleep=no_wait,
        )
