"""The instances under test, the strikes at them, and the AWS behind them, seen past the proxy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import aiohttp

from tests.acceptance.roomcast import Aws, Dev
from tests.chaos.checker import Entry
from tests.chaos.schedule import Strike

__all__ = ["CONFIG", "Fleet", "Instance", "Wound"]

CONFIG: Final = Path(__file__).with_name("chaos.toml")
# How long an instance stands still.
_SUSPENDED_S: Final = (2.0, 6.0)
# A node that cannot hear says so within this time. A deleted queue shows at the end of a
# long poll (20 s) at the latest, a missing subscription 2.5 canaries and a probe later;
# the rest is for faults at the same time.
_NOTICE_S: Final = 45.0
# After all faults at least two of three nodes are well within this time.
# A node that was deaf twice waits a minute before it rebuilds its queue again.
_HEAL_S: Final = 90.0
# Between two looks at what a node says of itself, which has no event.
_LOOK_S: Final = 0.2
_LOOK_LIMIT_S: Final = 2.0
# What no fault of AWS and no strike may bring an instance to say.
_NEVER_SAID: Final = (
    "Traceback",
    '"level":"critical"',
    "append_broken",
    "never awaited",
    "never retrieved",
)

_STARTED: Final = re.compile(r"instance\s+(\S+)\s+(\S+), pid (\d+)")


@dataclass(frozen=True, slots=True)
class Instance:
    """One process, from its start to its end."""

    url: str
    node: str
    pid: int


@dataclass(frozen=True, slots=True)
class Wound:
    """A node whose ears were taken. `noticed_s`: how long until it said so;
    None: it was killed before.
    """

    strike: Strike
    node: str
    noticed_s: float | None


class Fleet:
    """`dev` is ready; `aws` is the emulator itself."""

    def __init__(self, dev: Dev, aws: Aws, random: Random) -> None:
        self._dev = dev
        self._aws = aws
        self._random = random
        self._under_way: set[asyncio.Task[None]] = set()
        self.strikes: Counter[Strike] = Counter()
        self.wounds: list[Wound] = []
        self.violations: list[str] = []

    def instances(self) -> list[Instance]:
        """The newest of each address; one that was just killed may be among them."""
        newest = {
            url: Instance(url, node, int(pid))
            for url, node, pid in _STARTED.findall(self._dev.stderr)
        }
        return list(newest.values())

    # ---- strikes

    async def strike(self, kind: Strike) -> None:
        """At an instance chosen by lot; not counted when there is none to be struck."""
        for instance in self._random.sample(self.instances(), len(self.instances())):
            if await self._struck(kind, instance):
                self.strikes[kind] += 1
                return

    async def strike_well(self, kinds: Sequence[Strike]) -> None:
        """Each at another instance, as soon as as many say that nothing is wrong with them."""
        timeout = aiohttp.ClientTimeout(total=_LOOK_LIMIT_S)
        since_s = time.monotonic()
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                instances = self._random.sample(self.instances(), len(self.instances()))
                states = await asyncio.gather(*(_state(session, each) for each in instances))
                well = [
                    each for each, state in zip(instances, states, strict=True) if state == "ok"
                ]
                if len(well) >= len(kinds):
                    break
                elapsed_s = time.monotonic() - since_s
                assert elapsed_s < _HEAL_S, f"nodes are {states} {_HEAL_S:.0f} s after all faults"
                await asyncio.sleep(_LOOK_S)
        for kind, instance in zip(kinds, well, strict=False):
            assert await self._struck(kind, instance), f"{kind} of {instance.node} is not possible"
            self.strikes[kind] += 1

    async def settled(self) -> None:
        """Wait until suspended instances go on and wounded ones have noticed."""
        while self._under_way:
            done, _ = await asyncio.wait(self._under_way)
            for task in done:
                task.result()

    async def _struck(self, kind: Strike, instance: Instance) -> bool:
        match kind:
            case Strike.KILL:
                return _signal(instance, signal.SIGKILL)
            case Strike.SUSPEND:
                if not _signal(instance, signal.SIGSTOP):
                    return False
                self._start(self._resume(instance))
            case Strike.DELETE_QUEUE | Strike.UNSUBSCRIBE:
                take = self._delete_queue if kind is Strike.DELETE_QUEUE else self._unsubscribe
                if not _signal(instance, 0) or not await asyncio.to_thread(take, instance):
                    return False
                self._start(self._notice(kind, instance))
            case _:
                raise AssertionError(f"{kind} is no strike at an instance")
        return True

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _resume(self, instance: Instance) -> None:
        try:
            await asyncio.sleep(self._random.uniform(*_SUSPENDED_S))
        finally:
            _signal(instance, signal.SIGCONT)

    def _delete_queue(self, instance: Instance) -> bool:
        queues = [url for url in self.queues() if instance.node in url]
        for url in queues:
            self._aws.sqs.delete_queue(QueueUrl=url)
        return bool(queues)

    def _unsubscribe(self, instance: Instance) -> bool:
        arns = [arn for arn, endpoint in self.subscriptions() if instance.node in endpoint]
        for arn in arns:
            self._aws.sns.unsubscribe(SubscriptionArn=arn)
        return bool(arns)

    async def _notice(self, kind: Strike, instance: Instance) -> None:
        """Wait until the node says that it does not hear, or is no more."""
        since_s = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=_LOOK_LIMIT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while (elapsed_s := time.monotonic() - since_s) < _NOTICE_S:
                if not _signal(instance, 0):
                    self.wounds.append(Wound(kind, instance.node, None))
                    return
                if await _state(session, instance) in ("degraded", "unready"):
                    self.wounds.append(Wound(kind, instance.node, elapsed_s))
                    return
                await asyncio.sleep(_LOOK_S)
        self.violations.append(
            f"I5: {kind} of {instance.node} was not noticed within {_NOTICE_S:.0f} s"
        )

    # ---- what is behind them

    def queues(self) -> list[str]:
        pages = self._aws.sqs.get_paginator("list_queues").paginate(
            PaginationConfig={"PageSize": 100}
        )
        return [str(url) for page in pages for url in page.get("QueueUrls", ())]

    def subscriptions(self) -> list[tuple[str, str]]:
        """(ARN, endpoint) of each."""
        pages = self._aws.sns.get_paginator("list_subscriptions").paginate()
        return [
            (each["SubscriptionArn"], each["Endpoint"])
            for page in pages
            for each in page["Subscriptions"]
        ]

    def members(self, channel: str) -> set[str]:
        """Clients that presence tells of, on instances that live."""
        living = [instance.node for instance in self.instances() if _signal(instance, 0)]
        pages = self._aws.dynamodb.get_paginator("query").paginate(
            TableName="roomcast-presence",
            KeyConditionExpression="#key = :key",
            ExpressionAttributeNames={"#key": "key"},
            ExpressionAttributeValues={":key": {"S": f"channel#{channel}"}},
            ConsistentRead=True,
        )
        members = [item["member"]["S"].split("#", 1) for page in pages for item in page["Items"]]
        return {client for node, client in members if node in living}

    def log(self, channel: str) -> list[Entry]:
        """All of `channel`, as the table has it."""
        return list(self._entries(channel))

    def _entries(self, channel: str) -> Iterator[Entry]:
        pages = self._aws.dynamodb.get_paginator("query").paginate(
            TableName="roomcast-channels",
            KeyConditionExpression="#channel = :channel AND #offset > :head",
            ExpressionAttributeNames={"#channel": "channel", "#offset": "offset"},
            ExpressionAttributeValues={":channel": {"S": channel}, ":head": {"N": "0"}},
            ConsistentRead=True,
        )
        for page in pages:
            for item in page["Items"]:
                for index, stored in enumerate(json.loads(item["pubs"]["S"])):
                    offset = int(item["offset"]["N"]) + index
                    yield Entry(item["epoch"]["S"], offset, str(stored["data"]))

    # ---- the end

    @property
    def report(self) -> str:
        """What the instances and their supervisor said."""
        return self._dev.stderr

    def stop(self, came_late: int = 0) -> None:
        """The orderly end of all; what living nodes left behind,
        and what was never to be said, are violations.

        `came_late`: calls to subscribe that arrived when their senders had given up. Each may have
        subscribed a queue that was gone by then, which is for a reaper to end.
        """
        living = [instance for instance in self.instances() if _signal(instance, 0)]
        queues = {url.rpartition("/")[2] for url in self.queues()}
        gone = [arn for arn, each in self.subscriptions() if each.rpartition(":")[2] not in queues]
        astray = gone[:came_late]
        self._dev.stop()
        subscriptions = [each for arn, each in self.subscriptions() if arn not in astray]
        left = [*self.queues(), *subscriptions]
        self.violations += [
            f"I6: {name} was left behind by a node that was stopped in order"
            for name in left
            if any(instance.node in name for instance in living)
        ]
        self.violations += [
            f"said: {line[:300]}"
            for line in self._dev.stderr.splitlines()
            if any(text in line for text in _NEVER_SAID)
        ]


async def _state(session: aiohttp.ClientSession, instance: Instance) -> str:
    """What it says of itself, "" when it says nothing: suspended, perhaps, or just killed."""
    try:
        async with session.get(f"{instance.url}/health/ready") as response:
            said = json.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return ""
    return str(said["status"]) if said["node"] == instance.node else ""


def _signal(instance: Instance, number: int) -> bool:
    """Whether there was somebody to get it."""
    try:
        os.kill(instance.pid, number)
    except ProcessLookupError:
        return False
    return True
