"""Reads of the log for publications that were on their way, with AWS's delays.

    python -m benchmarks.holes

Nodes that each publish in one channel and subscribe to it, in virtual time: the real appender,
channel log and dispatcher over a table in memory. A node's own appends are delivered at once, and
those of others by the stream, the Lambda, SNS and SQS. The Lambda reads the stream POLLS_PER_S
times a second, and what it reads is one message. Each part takes as long as AWS typically says,
with its tail. The canaries go the same way.

With a fixed wait (`node.gap_wait_ms`) of 200 ms, as in 0.1.0, and with the one that follows the
canaries. Compared are holes that were read from the log, of what others published, and how long it
was from the append of a publication until it went out on another node. The same seed gives the same
figures on every machine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final, TypeVar

from benchmarks.contention import VirtualClock
from benchmarks.delays import POLLS_PER_S, SNS_S, SQS_S, STREAM_S
from benchmarks.figures import Figure
from benchmarks.rig import percentile
from benchmarks.suite import run_alone
from roomcast.delivery.dispatcher import Dispatcher
from roomcast.delivery.forms import PLAIN, Form
from roomcast.delivery.gap_wait import GapWait
from roomcast.delivery.hub import Hub
from roomcast.delivery.join_reads import JoinResult
from roomcast.delivery.open_channel import Timings
from roomcast.delivery.ports import Sink
from roomcast.delivery.recovery import Window
from roomcast.log.appender import Appender
from roomcast.log.channel_log import ChannelLog
from roomcast.log.item import LogItem
from roomcast.testing.memory import MemoryChannelTable, MemoryWorld
from roomcast.wire.encoding import Sent
from roomcast.wire.publication import Publication
from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps

__all__ = ["FIXED_MS", "Load", "Row", "measure", "measured"]

T = TypeVar("T")

CHANNEL: Final = "room"
FIXED_MS: Final = 200
# Half a call of DynamoDB.
_HALF_S: Final = 0.0025
_CANARY_S: Final = 30.0
# Publications of one run. More take much longer: the table in memory is searched from end to end.
_PUBLICATIONS: Final = 3000
_SHORT_PUBLICATIONS: Final = 500
# For the canaries to tell how long the way takes.
_WARM_UP_S: Final = 600.0
# What was published may still be on its way.
_END_S: Final = 10.0
_TTL_MS: Final = 300_000
_TAIL_CHECK_S: Final = 1e6
_WINDOW: Final = Window(size=1000, trim=0, cutoff_ts=0, limit=300)


@dataclass(frozen=True, slots=True)
class Delay:
    """A log-normal delay, by its median and its 99th percentile."""

    median_s: float
    p99_s: float

    def of(self, random: Random) -> float:
        spread = math.log(self.p99_s / self.median_s) / _P99
        return self.median_s * math.exp(spread * random.gauss(0, 1))


# Deviations of a normal distribution to its 99th percentile.
_P99: Final = 2.3263
# With the wait for the next read of the stream: 213 ms as a median, 480 once in a hundred times.
LAMBDA: Final = Delay(STREAM_S - 0.5 / POLLS_PER_S, 0.35)
SNS: Final = Delay(SNS_S, 0.225)
SQS: Final = Delay(SQS_S, 0.105)


@dataclass(frozen=True, slots=True)
class Load:
    """So many nodes, which publish so much a second together, at random."""

    nodes: int
    a_second: float

    def __str__(self) -> str:
        return f"{self.nodes} nodes, {self.a_second:g}/s in all"


LOADS: Final = (Load(2, 2), Load(2, 10), Load(5, 10), Load(5, 50))


@dataclass(slots=True)
class Row:
    """The result of one run. `foreign`: publications of others that went out, on all nodes.
    `read`: of them, those that were read from the log. Times in s.
    """

    foreign: int = 0
    read: int = 0
    reads: int = 0
    took_s: list[float] = field(default_factory=list)
    wait_s: float = 0.0


class _World(MemoryWorld):
    """Calls of the table take their time."""

    async def perform(
        self, _call: str, effect: Callable[[], T], check: Callable[[], None] | None = None
    ) -> T:
        await asyncio.sleep(_HALF_S)
        if check is not None:
            check()
        result = effect()
        await asyncio.sleep(_HALF_S)
        return result


class _OneTopic:
    """A ChannelShards."""

    def of(self, _channel: str) -> int:
        return 0

    def opened(self, channel: str) -> None:
        pass

    def closed(self, channel: str) -> None:
        pass


class _Subscriber:
    """It is there, so the channel is open."""

    join_leave = False
    form: Form = PLAIN

    @property
    def sink(self) -> Sink:
        raise AssertionError("nothing goes out here")

    def lost(self, _channel: str) -> None:
        raise AssertionError("the channel goes on")


class _Hub(Hub):
    """It notes what goes out, and when."""

    def __init__(self, went_out: Callable[[Sequence[Sent]], None]) -> None:
        super().__init__()
        self._went_out = went_out
        self._subscribed: set[str] = set()

    def add(self, channel: str, _subscriber: object) -> None:
        self._subscribed.add(channel)

    def has(self, channel: str) -> bool:
        return channel in self._subscribed

    def publish(self, _channel: str, publications: Sequence[Sent]) -> None:
        self._went_out(publications)


class _Node:
    """One that publishes and subscribes."""

    def __init__(self, world: _World, random: Random, name: str, wait_ms: int) -> None:
        clock = VirtualClock()
        self.name = name
        self.gap_wait = GapWait(wait_ms)
        log = ChannelLog(
            MemoryChannelTable(world, clock),
            clock,
            lambda: f"{random.getrandbits(64):016x}",
            random.random,
            node=name,
            generation="0",
        )
        self.dispatcher = Dispatcher(
            log,
            _Hub(self._went_out),
            clock,
            random.random,
            Timings(self.gap_wait, _TAIL_CHECK_S),
            recovery_publications_max=300,
            shards=_OneTopic(),
        )
        self.appender = Appender(
            log, clock, self.dispatcher.offer, generation="0", random=random.random
        )
        # When each offset went out, in s.
        self.out_s: dict[int, float] = {}

    def _went_out(self, publications: Sequence[Sent]) -> None:
        now_s = asyncio.get_running_loop().time()
        self.out_s |= dict.fromkeys((each.offset for each in publications), now_s)

    async def subscribe(self) -> None:
        def admit(_: JoinResult) -> bool:
            return True

        await self.dispatcher.join(CHANNEL, _Subscriber(), None, lambda: _WINDOW, admit)


class _Pipeline:
    """From the table to all nodes."""

    def __init__(self, random: Random, nodes: Sequence[_Node]) -> None:
        self._random = random
        self._nodes = nodes
        # What the stream has, and when the last message went out.
        self._unread: list[Callable[[_Node], None]] = []
        self._sent_s = 0.0

    def take(self, item: LogItem) -> None:
        """The stream has it."""
        self._unread.append(lambda node: node.dispatcher.offer(item))

    async def run(self) -> None:
        """The Lambda reads the stream, and publishes."""
        loop, random = asyncio.get_running_loop(), self._random
        while True:
            await asyncio.sleep(1 / POLLS_PER_S)
            if self._unread:
                # A shard's records come in order.
                self._sent_s = max(self._sent_s, loop.time() + LAMBDA.of(random))
                for node in self._nodes:
                    came_s = self._sent_s + SNS.of(random) + SQS.of(random)
                    loop.call_at(came_s, self._came, node, self._unread)
                self._unread = []

    def _came(self, node: _Node, message: Sequence[Callable[[_Node], None]]) -> None:
        for each in message:
            each(node)

    async def emit_canaries(self) -> None:
        """Every node hears each."""
        now = asyncio.get_running_loop().time
        while True:
            self._unread.append(partial(_heard, now()))
            await asyncio.sleep(self._random.uniform(1.0, 1.5) * _CANARY_S)


def _heard(written_s: float, node: _Node) -> None:
    node.gap_wait.took(round((asyncio.get_running_loop().time() - written_s) * 1000))


async def _publish(node: _Node, a_second: float, random: Random) -> None:
    publishing: set[asyncio.Future[object]] = set()
    while True:
        await asyncio.sleep(random.expovariate(a_second))
        one: asyncio.Future[object] = asyncio.ensure_future(
            node.appender.submit(CHANNEL, Publication(0), _TTL_MS)
        )
        publishing.add(one)
        one.add_done_callback(publishing.discard)


async def _run(load: Load, wait_ms: int, publications: int, seed: int) -> Row:
    random, world = Random(seed), _World()
    nodes = [_Node(world, random, f"node-{n}", wait_ms) for n in range(load.nodes)]
    pipeline = _Pipeline(random, nodes)
    written: list[tuple[LogItem, float]] = []
    world.on_insert.append(pipeline.take)
    world.on_insert.append(lambda item: written.append((item, asyncio.get_running_loop().time())))
    running = [asyncio.create_task(each) for each in (pipeline.run(), pipeline.emit_canaries())]
    for node in nodes:
        await node.subscribe()
    await asyncio.sleep(_WARM_UP_S)
    publishing = [
        asyncio.create_task(_publish(node, load.a_second / load.nodes, random)) for node in nodes
    ]
    await asyncio.sleep(publications / load.a_second)
    for task in publishing:
        task.cancel()
    await asyncio.sleep(_END_S)
    for task in running:
        task.cancel()
    return _row(nodes, written)


def _row(nodes: Sequence[_Node], written: Sequence[tuple[LogItem, float]]) -> Row:
    row = Row(wait_s=max(node.gap_wait.s for node in nodes))
    for node in nodes:
        counters = node.dispatcher.counters
        row.reads += counters.gaps_filled
        row.read += counters.gap_publications
        for item, written_s in written:
            if item.node != node.name:
                offsets = range(item.offset, item.last + 1)
                row.foreign += len(offsets)
                row.took_s += [node.out_s[offset] - written_s for offset in offsets]
    return row


def measured(load: Load, wait_ms: int, publications: int, seed: int = 1) -> Row:
    """One run. `wait_ms`: `node.gap_wait_ms`."""
    mishaps = Mishaps()
    with mishaps.collected():
        row = clockwork.run(_run(load, wait_ms, publications, seed), mishaps)
    assert not mishaps.found, mishaps.found[:3]
    return row


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: fewer publications."""
    count = _SHORT_PUBLICATIONS if short else _PUBLICATIONS
    figures: list[Figure] = []
    for load in LOADS:
        derived, fixed = (measured(load, wait_ms, count) for wait_ms in (0, FIXED_MS))
        beside = f"{FIXED_MS} ms"
        figures += [
            Figure(
                f"{load}: reads of 100 publications of others",
                100 * derived.reads / derived.foreign,
                100 * fixed.reads / fixed.foreign,
                "reads",
                beside,
                0.25,
            ),
            Figure(
                f"{load}: of 100 of others, read from the log",
                100 * derived.read / derived.foreign,
                100 * fixed.read / fixed.foreign,
                "",
                beside,
            ),
            *(
                Figure(
                    f"{load}: until others' went out, p{percent}",
                    percentile(derived.took_s, percent / 100) * 1000,
                    percentile(fixed.took_s, percent / 100) * 1000,
                    "ms",
                    beside,
                )
                for percent in (50, 99)
            ),
        ]
    return figures


if __name__ == "__main__":
    run_alone(measure)
