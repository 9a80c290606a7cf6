"""Keeps one channel with subscribers on this node in order, and fills its holes from the log.

Theory of operation. A channel opens with a consistent read of the log, which gives the position
where it starts (`open_at`). Records that come before that wait, within bounds. From then on the
channel's resequencer lets each publication through once, in order. Each of these is encoded once,
kept in the ring, and published to the subscribers. The resequencer also says when the log must be
read: to fill a hole, or because a record claims another epoch. One such read is under way at a
time. A pause follows a failed one.

A channel that cannot be continued is lost: it closes, and its subscribers are told to subscribe
again. A closed channel stays closed. The results of its reads are dropped, and the next subscriber
opens another channel object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, Protocol, TypeVar

import structlog

from roomcast.backoff import Backoff
from roomcast.concurrency import FairPlaces
from roomcast.delivery.gap_wait import GapWait
from roomcast.delivery.recovery import Ring, Rings, Trim, Window
from roomcast.delivery.resequencer import Next, Resequencer, weight
from roomcast.delivery.tail_checks import TailChecks
from roomcast.delivery.trails import Trails
from roomcast.delivery.way import Way
from roomcast.log.channel_log import ChannelLog, Resolved, record_of
from roomcast.observe.counters import DeliveryCounters
from roomcast.ports import Clock, PortError
from roomcast.wire.encoding import Sent, Unencodable, sent_of
from roomcast.wire.publication import Publication, Record
from roomcast.wire.trace_context import Trail

__all__ = [
    "GAP_PUBLICATIONS_MAX",
    "JOIN_READS_AT_ONCE",
    "OpenChannel",
    "Outlet",
    "Registry",
    "Shared",
    "Tasks",
    "Timings",
    "encoded",
    "publication_count",
]

# Records kept for a channel until it has a position. Beyond either bound, the log is read again.
_OPENING_RECORDS_MAX: Final = 1000
_OPENING_BYTES_MAX: Final = 1024 * 1024
# Publications asked for in one read of a hole. A longer hole takes several reads.
GAP_PUBLICATIONS_MAX: Final = 1000
# Failed reads of one hole, each after the log's own retries, before subscribers are told.
_GAP_FAILURES_MAX: Final = 20
# Reads for subscribers that join, of all channels, at once: as many as there are connections to the
# table. Of those that waited, so many begin in one turn of the event loop.
JOIN_READS_AT_ONCE: Final = 64
JOIN_READS_A_TURN: Final = 2
_GAP_RETRY_S: Final = 1.0
# Failed checks of an epoch that a record claims. After them, the next such record or the periodic
# tail check checks it again.
_DOUBT_FAILURES_MAX: Final = 8
# Pause after the first failed check; doubled for each further one.
_DOUBT_BACKOFF: Final = Backoff(1.0, 30.0, (0.5, 1.5))

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """`gap_wait`: how long a hole may fill by itself.

    `tail_check_s`: how often the tails of open channels are read, in s.
    """

    gap_wait: GapWait
    tail_check_s: float


class Outlet(Protocol):
    """The way to a channel's subscribers on this node."""

    def publish(self, channel: str, published: Sequence[Sent]) -> None:
        """Send publications, in order, to every subscriber of `channel`."""

    def lost(self, channel: str) -> None:
        """Tell every subscriber of `channel` to subscribe again."""


class Registry(Protocol):
    """The register of open channels by name."""

    def closed(self, channel: OpenChannel) -> None:
        """`channel` has closed: another may have its name."""


class Tasks:
    """The tasks of all channels, held until they are done."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self, work: Coroutine[None, None, T], name: str | None = None) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self.hold(task)
        return task

    def hold(self, task: asyncio.Task[T]) -> None:
        """Hold a task that the caller has started."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self) -> None:
        """End all of them, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts that all open channels of a node share. `random` gives [0, 1). `join_reads`: places
    of the reads for subscribers that join.
    """

    log: ChannelLog
    outlet: Outlet
    registry: Registry
    clock: Clock
    random: Callable[[], float]
    timings: Timings
    rings: Rings
    tails: TailChecks
    tasks: Tasks
    counters: DeliveryCounters
    way: Way
    trails: Trails
    join_reads: FairPlaces = field(
        default_factory=lambda: FairPlaces(JOIN_READS_AT_ONCE, JOIN_READS_A_TURN)
    )


class OpenChannel:
    """One channel, from its first subscriber until the last one leaves, or until it is lost."""

    __slots__ = (
        "_doubt_at_s",
        "_doubt_failures",
        "_gap_failures",
        "_order",
        "_reading",
        "_shared",
        "_timer",
        "_trails",
        "_waiting",
        "_waiting_bytes",
        "_waiting_dropped",
        "is_open",
        "name",
        "ring",
        "trim",
    )

    def __init__(self, name: str, shared: Shared, *, recovery_publications_max: int) -> None:
        self.name = name
        self._shared = shared
        self.is_open = True
        self.ring = Ring(recovery_publications_max)
        self.trim = Trim()
        # None until the channel has a position.
        self._order: Resequencer | None = None
        # Records that came before the channel had a position, and whether some were dropped for
        # lack of room.
        self._waiting: list[Record] = []
        self._waiting_bytes = 0
        self._waiting_dropped = False
        # Of traced records that passed and are not published yet.
        self._trails: tuple[Trail, ...] = ()
        # The read of the log that is under way, or the timer for the next one.
        self._reading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gap_failures = 0
        self._doubt_failures = 0
        self._doubt_at_s = -inf

    @property
    def has_position(self) -> bool:
        """Whether the log has said where the channel starts."""
        return self._order is not None

    @property
    def order(self) -> Resequencer:
        """The resequencer of a channel that has a position."""
        assert self._order is not None, "the channel has a position"
        return self._order

    # ---- records come in

    def has(self, epoch: str, last: int) -> bool:
        """Whether a record of `epoch` that ends at offset `last` brings nothing new."""
        order = self._order
        return order is not None and order.epoch == epoch and last <= order.top

    def offer(self, records: Iterable[Record], *, is_local: bool = False) -> None:
        """Take records from any source. Those of one call go out in one write a socket.

        `is_local`: this node wrote them, or met them where it was about to write.
        """
        if not self.is_open:
            # It closed since the caller looked for it, or while a read was under way.
            return
        if (order := self._order) is None:
            for record in records:
                self._wait(record)
            return
        now_s = self._shared.clock.monotonic_s()
        sent: list[Sent] = []
        for record in records:
            sent += self._passed(order.offer(record, now_s), is_local)
        if sent:
            self._shared.outlet.publish(self.name, sent)
            if self._trails:
                self._tell_trails()
        self._read_what_is_missing()

    def open_at(self, resolved: Resolved, read_at_s: float) -> None:
        """Start at the end of the log, by a read that began at `read_at_s` (monotonic s)."""
        self._order = Resequencer(resolved.tail.position, self._shared.timings.gap_wait)
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not self.is_open:
            return
        self._shared.tails.opened(self.name, read_at_s, self._shared.random())
        self.offer(waiting)
        if self._waiting_dropped:
            # The dropped records may not come again: read them from the log.
            self._shared.tasks.start(self.check_tail())

    def _wait(self, record: Record) -> None:
        """Keep `record` until the channel has a position, if there is room."""
        if len(self._waiting) < _OPENING_RECORDS_MAX:
            size = weight(record)
            if self._waiting_bytes + size <= _OPENING_BYTES_MAX:
                self._waiting.append(record)
                self._waiting_bytes += size
                return
        # An express hint that was dropped comes again by the stream.
        self._waiting_dropped |= not record.express

    def _passed(self, passed: Sequence[Next], is_local: bool = False) -> list[Sent]:
        """Encode the publications that passed the resequencer, and keep them in the ring."""
        if passed and not is_local:
            self._shared.way.passed(passed)
        sent = [_encoded(each, run.ts) for run in passed for each in run.publications]
        if sent:
            self._shared.rings.append(self.ring, sent)
        if self._shared.trails.is_on:
            self._trails += tuple(run.trail for run in passed if run.trail is not None)
        return sent

    def _tell_trails(self) -> None:
        """What passed has gone to the subscribers: tell of the traced records in it."""
        trails, self._trails = self._trails, ()
        self._shared.trails.delivered((self.name,), trails)

    # ---- the end

    def close(self) -> None:
        """Close the channel. Subscribers are not told. Idempotent."""
        if self.is_open:
            self.is_open = False
            self._shared.registry.closed(self)
            self._shared.tails.closed(self.name)
        self._shared.rings.drop(self.ring)
        self.stop()

    def stop(self) -> None:
        """Stop the timer of the next read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lose(self, why: str) -> None:
        """The channel cannot be continued: close it and tell its subscribers."""
        self._shared.counters.channels_lost += 1
        _log.warning("channel_lost", channel=self.name, reason=why)
        self.close()
        self._shared.outlet.lost(self.name)

    # ---- what is kept for recoveries

    def keep_older(self, records: Iterable[Sequence[Sent]], top: int) -> None:
        """Put publications that were read from the log, up to `top`, before the ring's.

        `records`: those of each record, ascending.
        """
        older = [each for record in records for each in record if each.offset <= top]
        self.ring.prepend(older, top)
        self.ring_used()

    def ring_used(self) -> None:
        """Mark the ring as the last used, so that other rings are emptied before it."""
        if self.is_open:
            self._shared.rings.used(self.ring)

    def visible(self, window: Window) -> Window:
        """`window` without the hidden offsets."""
        return replace(window, trim=max(window.trim, self.trim.offset))

    # ---- holes

    def _read_what_is_missing(self) -> None:
        """Begin the read that the resequencer asks for, or set the timer for it."""
        if self._reading is not None or not self.is_open:
            return
        self.stop()
        order = self.order
        now_s = self._shared.clock.monotonic_s()
        doubted, read_at = order.doubted, order.read_at
        if doubted is not None and self._doubt_at_s <= now_s:
            self._reading = self._shared.tasks.start(self._check_epoch(doubted))
        elif read_at is not None and read_at <= now_s:
            self._reading = self._shared.tasks.start(self._fill_hole())
        else:
            next_at_s = min(
                inf if doubted is None else self._doubt_at_s, inf if read_at is None else read_at
            )
            if next_at_s < inf:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(next_at_s - now_s, self._read_what_is_missing)

    async def _fill_hole(self) -> None:
        after, must_reach = self.order.top, self.order.reading()
        records: Sequence[Record] = ()
        failure: PortError | None = None
        is_made_up = False
        try:
            records = await self._shared.log.read_after(
                self.name, self.order.epoch, after, GAP_PUBLICATIONS_MAX
            )
            if _end(records, after) < must_reach and not _is_cut_off(records):
                is_made_up = await self._ends_before(must_reach)
        except PortError as error:
            failure = error
        finally:
            self._reading = None
        if not self.is_open:
            # The channel was closed. A new subscriber starts behind this hole.
            return
        if failure is not None:
            self._gap_read_failed(failure)
        elif is_made_up:
            _log.warning("records_made_up", channel=self.name, claimed=must_reach)
            self.order.disclaim()
            self._gap_read(records, after, _end(records, after))
            # Among what is forgotten may be what came meanwhile and is in the log.
            self._shared.tasks.start(self.check_tail())
        else:
            self._gap_read(records, after, must_reach)

    async def _ends_before(self, offset: int) -> bool:
        """Whether the log certainly ends before `offset`, which a record claims."""
        try:
            resolved = await self._shared.log.resolve(self.name)
        except PortError as error:
            _log.warning("claim_not_checked", channel=self.name, reason=str(error))
            return False
        return resolved.tail.epoch == self.order.epoch and resolved.tail.top < offset

    def _gap_read(self, records: Sequence[Record], after: int, must_reach: int) -> None:
        """Take the records of a read after `after`. They must reach `must_reach`, or be cut off."""
        self._gap_failures = 0
        # A read that was cut off need not reach it. The rest is another hole.
        reach = min(must_reach, records[-1].last) if _is_cut_off(records) else must_reach
        now_s = self._shared.clock.monotonic_s()
        passed, whole = self.order.read(records, reach, now_s)
        sent = self._passed(passed)
        if sent:
            self._shared.counters.gaps_filled += 1
            self._shared.counters.gap_publications += len(sent)
            _log.info("gap_filled", channel=self.name, after=after, publications=len(sent))
            self._shared.outlet.publish(self.name, sent)
            if self._trails:
                self._tell_trails()
        if not whole and self.order.top <= _end(records, after):
            self.lose("the log has a hole")
            return
        if not whole or reach < must_reach:
            # Either the read was cut off; or the log no longer has the records, but some came from
            # another source, so that a smaller hole is left.
            self.order.exists(must_reach, now_s)
        self._read_what_is_missing()

    def _gap_read_failed(self, error: PortError) -> None:
        self._gap_failures += 1
        self._shared.counters.gap_read_failures += 1
        _log.warning(
            "gap_read_failed", channel=self.name, failures=self._gap_failures, reason=str(error)
        )
        if self._gap_failures >= _GAP_FAILURES_MAX:
            self.lose("the log did not answer")
        else:
            pause_s = _GAP_RETRY_S * (0.5 + self._shared.random())
            self.order.postpone(self._shared.clock.monotonic_s() + pause_s)
            self._read_what_is_missing()

    # ---- epoch and tail

    async def _check_epoch(self, doubted: str) -> None:
        """A record claims that `doubted` is the channel's epoch: read the log to decide."""
        had = self.order.top
        resolved: Resolved | None = None
        try:
            resolved = await self._shared.log.resolve(self.name)
        except PortError as error:
            _log.warning("epoch_check_failed", channel=self.name, reason=str(error))
        finally:
            self._reading = None
        if not self.is_open:
            return
        if resolved is None:
            self._epoch_check_failed()
        else:
            self._doubt_failures, self._doubt_at_s = 0, -inf
            self.order.refute(doubted)
            self.compare(resolved, had)

    def _epoch_check_failed(self) -> None:
        self._doubt_failures += 1
        pause_s = _DOUBT_BACKOFF.pause_s(self._doubt_failures, self._shared.random())
        self._doubt_at_s = self._shared.clock.monotonic_s() + pause_s
        if self._doubt_failures >= _DOUBT_FAILURES_MAX:
            # The next record of that epoch raises the doubt again, and the periodic tail check
            # finds a new epoch anyway.
            self._doubt_failures = 0
            self.order.doubted = None
        self._read_what_is_missing()

    async def check_tail(self) -> bool:
        """Read the tail and catch up with it. Renew a quiet channel's epoch.

        False = the log did not answer.
        """
        if self._order is None:
            return True
        had = self._order.top
        try:
            resolved = await self._shared.log.renew(self.name)
        except PortError as error:
            self._shared.counters.tail_checks["failed"] += 1
            _log.warning("tail_check_failed", channel=self.name, reason=str(error))
            return False
        self._shared.counters.tail_checks["answered"] += 1
        self.compare(resolved, had)
        await self._check_trim()
        return True

    async def _check_trim(self) -> None:
        """Read the trim: another node may have hidden publications of this node's ring."""
        hints, age_s = self.trim.hints, self._shared.clock.monotonic_s() - self.trim.read_at_s
        is_recent = age_s < self._shared.timings.tail_check_s / 2
        if not self.is_open or not len(self.ring) or is_recent:
            return
        try:
            head = await self._shared.log.head(self.name)
        except PortError as error:
            _log.warning("trim_check_failed", channel=self.name, reason=str(error))
        else:
            self.trim.read(head, hints, self._shared.clock.monotonic_s())

    def compare(self, resolved: Resolved, had: int) -> None:
        """Catch up with the end of the log. If another epoch began, the channel is lost.

        `had`: the offset up to which publications were let through when the read began. If the log
        ends before it, another program made some of them up, and those that get their offsets would
        be taken for repeats: the channel is lost as well.
        """
        if not self.is_open:
            return
        if resolved.tail.epoch != self.order.epoch:
            self.lose("another epoch began")
            return
        if resolved.tail.top < had:
            self.lose("what was sent is not in the log")
            return
        if resolved.tail.top > self.order.top:
            self.order.exists(resolved.tail.top, self._shared.clock.monotonic_s())
            newest = record_of(resolved.newest) if resolved.newest else None
            if newest is not None:
                self.offer((newest,))
        self._read_what_is_missing()


def publication_count(records: Iterable[Record]) -> int:
    """The number of publications in `records`."""
    return sum(record.last - record.offset + 1 for record in records)


def _is_cut_off(records: Sequence[Record]) -> bool:
    """Whether a read of a hole brought as much as it may, so that there may be more."""
    return publication_count(records) >= GAP_PUBLICATIONS_MAX


def _end(records: Sequence[Record], after: int) -> int:
    """The offset up to which a read after `after` brought `records`."""
    return records[-1].last if records else after


def encoded(record: Record) -> Sequence[Sent]:
    """The publications of a record that was read from the log, as they are sent."""
    return [_encoded(each, record.ts) for each in record.publications or ()]


def _encoded(publication: Publication, ts: int) -> Sent:
    try:
        return sent_of(publication, ts)
    except Unencodable:
        # Another program may write into the log what no client could have sent. The offset must go
        # out all the same.
        _log.warning("publication_unencodable", offset=publication.offset)
        return sent_of(replace(publication, data=None, info=None, text=None), ts)
