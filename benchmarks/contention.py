"""Simulates several nodes that write to one channel, in virtual time.

The appender and the channel log are the real ones, over a table in memory.

    python -m benchmarks.contention               every load on 1, 2, 5 and 20 nodes: two minutes
    python -m benchmarks.contention --quick       fewer seconds of virtual time
    python -m benchmarks.contention --json        the rows as JSON

Two loads of one's own, without bounds:

    python -m benchmarks.contention --clients 100  so many clients a node that wait for answers
    python -m benchmarks.contention --rate 3000    so many publications a second in all

The simulation is deterministic: the same seed gives the same figures on every machine. A call takes
two halves, each log-normal around 2.5 ms, and one half in a hundred takes four times as long. So a
round trip takes 5 ms, with a tail. The channel's partition has 1,000 write units and 3,000 read
units a second, and a burst of one second. A call beyond them is throttled and costs nothing. A lost
race costs as much as a write of the item that won. Exits with 1 if a bound in BOUNDS is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

from benchmarks.rig import percentile
from roomcast.log.appender import Appender, Full
from roomcast.log.channel_log import ChannelLog, NotAppended, OutcomeUnknown
from roomcast.log.item import Head, LogItem
from roomcast.log.ports import Page
from roomcast.ports import Throttled
from roomcast.testing.memory import MemoryChannelTable, MemoryWorld
from roomcast.wire.publication import Publication
from tests.simulation import clockwork
from tests.simulation.mishaps import Mishaps

__all__ = ["BOUNDS", "Load", "Row", "measure"]

T = TypeVar("T")

CHANNEL: Final = "room"
TTL_MS: Final = 300_000
# Stored, a publication has 250 bytes.
PAYLOAD: Final = "x" * 238
# Bytes of an item beside its publications.
ITEM_BYTES: Final = 180
HALF_S: Final = 0.0025
SPREAD: Final = 0.25
SLOW: Final = 0.01
SLOW_FACTOR: Final = 4.0
WRITE_UNITS_S: Final = 1000.0
READ_UNITS_S: Final = 3000.0
WARM_UP_S: Final = 5.0
# Mean time between an answer and the next publication of a client that waits for answers.
THINK_S: Final = 0.0002
EPOCH_MS: Final = 1_800_000_000_000
# Acknowledgements a second of one node alone: for 20 clients that wait for answers, and for 10
# beside no other node. This program measured them with the appender of version 0.1. The bounds on
# throughput are parts of it.
ALONE_BEFORE: Final = 1887.0
BUSY_BEFORE: Final = 940.0


@dataclass(frozen=True, slots=True)
class Load:
    """One load. `a_second`: publications in all, spread over the nodes.

    `clients`: of each node. A client publishes again once it is answered. `quiet_a_second`:
    publications of a second node, beside these clients on the first. `half_s`: half a round trip.
    `seconds`: measured virtual time on `nodes` nodes.
    """

    name: str
    a_second: float = 0.0
    clients: int = 0
    quiet_a_second: float = 0.0
    half_s: float = HALF_S
    seconds: float = 40.0
    nodes: tuple[int, ...] = (1, 2, 5, 20)


HUNDRED: Final = Load("100/s", a_second=100)
THOUSAND: Final = Load("1,000/s", a_second=1000)
CLOSED: Final = Load("20 clients a node", clients=20)
BESIDE: Final = Load(
    "1/s beside 10 clients", clients=10, quiet_a_second=1, seconds=200.0, nodes=(2,)
)
PEAK: Final = Load("2,500/s", a_second=2500, nodes=(1, 5, 20))
FAR: Final = Load("60/s, 500 ms away", a_second=60, half_s=0.25, seconds=100.0, nodes=(1, 3))
LOADS: Final = (HUNDRED, THOUSAND, PEAK, CLOSED, BESIDE, FAR)


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one run. Times in ms. `attempts`: per append. Units: of the table, per
    publication. `poorest`: the smallest share of a node, relative to the nodes' mean. Beside a busy
    node, the times are those of the quiet one.
    """

    load: str
    nodes: int
    acknowledged_s: float
    p50_ms: float
    p99_ms: float
    refused: int
    attempts: float
    write_units: float
    read_units: float
    poorest: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class Bound:
    """The values that a run must reach."""

    load: Load
    nodes: int
    p50_ms: float = math.inf
    p99_ms: float = math.inf
    acknowledged_s: float = 0.0
    poorest: float = 0.0
    busy_s: float = 0.0
    refused: int = 0
    attempts: float = 2.0

    def missed(self, row: Row) -> Iterator[str]:
        """A text for each bound that `row` misses."""
        for name, most in (
            ("p50_ms", self.p50_ms),
            ("p99_ms", self.p99_ms),
            ("refused", self.refused),
            ("attempts", self.attempts),
        ):
            if (found := getattr(row, name)) > most:
                yield f"{self.load.name}, {self.nodes} nodes: {name} {found:.2f} > {most:g}"
        for name, least in (
            ("acknowledged_s", self.acknowledged_s),
            ("poorest", self.poorest),
            ("busy_s", self.busy_s),
        ):
            if (found := getattr(row, name)) < least:
                yield f"{self.load.name}, {self.nodes} nodes: {name} {found:.2f} < {least:g}"


BOUNDS: Final = (
    Bound(HUNDRED, 2, p50_ms=15, p99_ms=45),
    Bound(HUNDRED, 5, p50_ms=25, p99_ms=110),
    Bound(HUNDRED, 20, p50_ms=35, p99_ms=220),
    Bound(THOUSAND, 2, p50_ms=18, p99_ms=50),
    Bound(THOUSAND, 5, p50_ms=35, p99_ms=140),
    Bound(THOUSAND, 20, p50_ms=95, p99_ms=470),
    Bound(PEAK, 5, p99_ms=2_000, poorest=0.9),
    Bound(PEAK, 20, p99_ms=5_000, poorest=0.8),
    Bound(CLOSED, 2, acknowledged_s=0.97 * ALONE_BEFORE, poorest=0.95),
    Bound(CLOSED, 5, acknowledged_s=0.93 * ALONE_BEFORE, poorest=0.9),
    Bound(CLOSED, 20, acknowledged_s=0.7 * ALONE_BEFORE, poorest=0.5),
    Bound(BESIDE, 2, p99_ms=120, busy_s=0.65 * BUSY_BEFORE),
    # In version 0.1: 49 a second, 39,900 ms, and 648 refused.
    Bound(FAR, 3, p99_ms=10_000, acknowledged_s=57, poorest=0.9),
)


class VirtualClock:
    """A Clock of the virtual loop."""

    def now_ms(self) -> int:
        return EPOCH_MS + round(self.monotonic_s() * 1000)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class Bucket:
    """The units of a partition: a rate, with a burst of one second."""

    def __init__(self, a_second: float) -> None:
        self._a_second = self._left = a_second
        self._at_s = 0.0
        self.used = 0.0

    def take(self, units: float) -> None:
        """Takes units. Raises Throttled."""
        now_s = asyncio.get_running_loop().time()
        self._left = min(self._a_second, self._left + (now_s - self._at_s) * self._a_second)
        self._at_s = now_s
        if self._left < units:
            raise Throttled("beyond the partition's units")
        self._left -= units
        self.used += units


class Partition(MemoryChannelTable):
    """A table whose calls cost time and units."""

    def __init__(
        self, world: MemoryWorld, random: Random, half_s: float, writes: Bucket, reads: Bucket
    ) -> None:
        super().__init__(world, VirtualClock())
        self._call_half_s = half_s
        self._random = random
        self._writes = writes
        self._reads = reads

    async def put_item(self, item: LogItem, tail_valid_until_ms: int) -> LogItem | None:
        assert tail_valid_until_ms > self._clock.now_ms(), (
            "a run takes less time than any tail is valid"
        )
        return await self._call(lambda: self._charged_write(item))

    async def newest(self, channel: str) -> LogItem | Head | None:
        def effect() -> LogItem | Head | None:
            items = self._items(channel)
            newest = items[max(items)] if items else None
            self._reads.take(_read_units([newest] if isinstance(newest, LogItem) else []))
            return newest

        return await self._call(effect)

    async def read_behind(self, channel: str, offset: int, items_max: int) -> Page:
        def effect() -> Page:
            items = self._world.items.get(channel, {})
            behind: list[LogItem] = []
            end = offset
            while isinstance(item := items.get(end + 1), LogItem) and len(behind) <= items_max:
                behind.append(item)
                end = item.last
            self._reads.take(_read_units(behind))
            return Page(tuple(behind[:items_max]), len(behind) > items_max)

        return await self._call(effect)

    def _charged_write(self, item: LogItem) -> LogItem | None:
        winner = self._winner(item)
        self._writes.take(math.ceil(_bytes(winner or item) / 1024))
        return winner or self._write(item)

    async def _call(self, effect: Callable[[], T]) -> T:
        await asyncio.sleep(self._half_s())
        try:
            return effect()
        finally:
            await asyncio.sleep(self._half_s())

    def _half_s(self) -> float:
        half_s = self._call_half_s * math.exp(SPREAD * self._random.gauss(0, 1))
        return half_s * SLOW_FACTOR if self._random.random() < SLOW else half_s


def _bytes(item: LogItem) -> int:
    return ITEM_BYTES + len(item.pubs)


def _read_units(items: Sequence[LogItem]) -> float:
    return max(1, math.ceil(sum(map(_bytes, items)) / 4096))


class Writer:
    """The writing part of a node, with the times of its answers after the warm-up."""

    def __init__(self, name: str, table: Partition, random: Random) -> None:
        clock = VirtualClock()
        log = ChannelLog(
            table,
            clock,
            lambda: f"{random.getrandbits(64):016x}",
            random.random,
            node=name,
            generation="0",
        )
        self.appender = Appender(log, clock, lambda _: None, generation="0", random=random.random)
        self.latencies_s: list[float] = []
        self.refused = 0

    async def publish(self) -> None:
        now = asyncio.get_running_loop().time
        begun_s = now()
        try:
            await self.appender.submit(CHANNEL, Publication(PAYLOAD), TTL_MS)
        except (Full, NotAppended, OutcomeUnknown):
            self.refused += 1
        else:
            if now() >= WARM_UP_S:
                self.latencies_s.append(now() - begun_s)


async def _at_random(
    writer: Writer, a_second: float, random: Random, tasks: set[asyncio.Task[None]]
) -> None:
    """Publishes at random times, without waiting for earlier answers."""
    while True:
        await asyncio.sleep(random.expovariate(a_second))
        task = asyncio.create_task(writer.publish())
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _again_and_again(writer: Writer, random: Random) -> None:
    """Publishes as a client that waits for each answer."""
    while True:
        await asyncio.sleep(random.expovariate(1 / THINK_S))
        await writer.publish()


async def _run(load: Load, nodes: int, seconds: float, seed: int) -> Row:
    random = Random(seed)
    world, writes, reads = MemoryWorld(), Bucket(WRITE_UNITS_S), Bucket(READ_UNITS_S)
    writers = [
        Writer(f"node-{each}", Partition(world, random, load.half_s, writes, reads), random)
        for each in range(nodes)
    ]
    under_way: set[asyncio.Task[None]] = set()
    busy = writers[:1] if load.quiet_a_second else writers
    work = [_again_and_again(writer, random) for writer in busy for _ in range(load.clients)]
    if load.a_second:
        work += [_at_random(writer, load.a_second / nodes, random, under_way) for writer in writers]
    if load.quiet_a_second:
        work += [_at_random(writers[1], load.quiet_a_second, random, under_way)]
    tasks = [asyncio.create_task(each) for each in work]
    await asyncio.sleep(WARM_UP_S)
    units = writes.used, reads.used
    begun = [_attempts(writer) for writer in writers]
    await asyncio.sleep(seconds)
    for task in (*tasks, *under_way):
        task.cancel()
    await asyncio.gather(*tasks, *under_way, return_exceptions=True)
    return _row(load, writers, begun, (writes.used - units[0], reads.used - units[1]), seconds)


def _attempts(writer: Writer) -> tuple[int, int]:
    """The writes that cost units, which won or lost a race, and the successful appends."""
    counters = writer.appender.counters
    return counters.races + counters.batches.count, counters.batches.count


def _row(
    load: Load,
    writers: Sequence[Writer],
    begun: Sequence[tuple[int, int]],
    units: tuple[float, float],
    seconds: float,
) -> Row:
    counts = [len(writer.latencies_s) for writer in writers]
    shown = writers[1:] if load.quiet_a_second else writers
    latencies = [each for writer in shown for each in writer.latencies_s]
    sent = sum(
        _attempts(writer)[0] - before[0] for writer, before in zip(writers, begun, strict=True)
    )
    appended = sum(
        _attempts(writer)[1] - before[1] for writer, before in zip(writers, begun, strict=True)
    )
    total = sum(counts)
    return Row(
        load=load.name,
        nodes=len(writers),
        acknowledged_s=total / seconds,
        p50_ms=percentile(latencies, 0.5) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        refused=sum(writer.refused for writer in writers),
        attempts=sent / appended,
        write_units=units[0] / total,
        read_units=units[1] / total,
        poorest=min(counts) * len(counts) / total,
        busy_s=counts[0] / seconds if load.quiet_a_second else 0.0,
    )


def measure(load: Load, nodes: int, *, seconds: float, seed: int = 1) -> Row:
    """One run of `seconds` of virtual time after the warm-up."""
    mishaps = Mishaps()
    with mishaps.collected():
        row = clockwork.run(_run(load, nodes, seconds, seed), mishaps)
    assert not mishaps.found, mishaps.found[:3]
    return row


HEADER: Final = (
    f"{'load':<22}{'nodes':>6}{'acked/s':>9}{'p50 ms':>8}{'p99 ms':>8}{'refused':>8}"
    f"{'attempts':>9}{'WCU/pub':>8}{'RCU/pub':>8}{'poorest':>8}{'busy/s':>8}"
)


def _line(row: Row) -> str:
    return (
        f"{row.load:<22}{row.nodes:>6}{row.acknowledged_s:>9.0f}{row.p50_ms:>8.1f}{row.p99_ms:>8.1f}{row.refused:>8}"
        f"{row.attempts:>9.2f}{row.write_units:>8.2f}{row.read_units:>8.2f}{row.poorest:>8.2f}{row.busy_s:>8.0f}"
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contention", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="a fifth of the virtual time; the bounds may be missed"
    )
    parser.add_argument("--json", action="store_true", help="the rows as JSON lines")
    parser.add_argument(
        "--clients", type=int, default=0, metavar="N", help="one load of N clients a node instead"
    )
    parser.add_argument(
        "--rate",
        type=int,
        default=0,
        metavar="N",
        help="one load of N publications a second instead",
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: 1)")
    options = parser.parse_args()
    missed: list[str] = []
    if not options.json:
        _say(HEADER)
    chosen: tuple[Load, ...] = ()
    if options.clients:
        chosen += (Load(f"{options.clients:,} clients a node", clients=options.clients),)
    if options.rate:
        chosen += (Load(f"{options.rate:,}/s in all", a_second=options.rate),)
    for load in chosen or LOADS:
        seconds = load.seconds / (5 if options.quick else 1)
        for nodes in load.nodes:
            row = measure(load, nodes, seconds=seconds, seed=options.seed)
            _say(json.dumps(dataclasses.asdict(row)) if options.json else _line(row))
            for bound in BOUNDS:
                if bound.load is load and bound.nodes == nodes:
                    missed += bound.missed(row)
    for each in missed:
        sys.stderr.write(f"missed: {each}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
