"""From records to subscribers: keeps the order of every channel that has subscribers on this node.

Theory of operation. A channel is opened by its first subscriber with a consistent read of the log, which
gives the position where it starts. From then on records come from the local appender, from the queue, and
from reads of the log, in any order and any number of times; the channel's resequencer lets each publication
through once. A new subscriber is let in within one tick: its reply is queued, then it joins the hub, and no
push can fall in between. A channel without subscribers is forgotten; what was under way for it is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Final, TypeVar

import structlog

from roomcast.backoff import Backoff
from roomcast.concurrency import SharedCall
from roomcast.delivery.hub import Hub, Subscriber
from roomcast.delivery.recovery import (
    LogNeeded,
    Recovered,
    Ring,
    Rings,
    Unrecovered,
    Window,
    recover,
)
from roomcast.delivery.resequencer import Next, Resequencer, weight
from roomcast.delivery.tail_checks import TailChecks
from roomcast.log.channel_log import ChannelLog, Resolved, record_of
from roomcast.log.item import Head
from roomcast.observe.counters import DeliveryTally
from roomcast.ports import Clock, PortError
from roomcast.wire.json import Unencodable
from roomcast.wire.publication import Publication, Record, StreamPosition
from roomcast.wire.sent import Sent, sent_of

__all__ = ["Dispatcher", "Joined", "Joining", "Timings"]

# Records kept for a channel while it is being opened. Beyond either the log is read once more.
_OPENING_RECORDS_MAX: Final = 1000
_OPENING_BYTES_MAX: Final = 1024 * 1024
# Reads of the log that one joining subscriber may cause before it is told that it cannot recover.
_JOIN_READS_MAX: Final = 3
# Channels that one connection's join reads for at once.
_JOINS_AT_ONCE: Final = 32
# From a read for a position ahead of the log's end, or of another epoch, which was in vain, or from any read for a
# subscriber that failed or was given up, to the next one. Those who come meanwhile wait for it together: it costs them
# little of what a subscribe may take, and the log one read a second at most.
_READ_PAUSE_S: Final = 1.0
# Epochs that clients claimed and the log did not confirm, which are not asked for again.
_DENIED_MAX: Final = 8
# Publications asked for in one read of a hole; a longer hole takes several reads.
_GAP_PUBLICATIONS_MAX: Final = 1000
# Failed reads of one hole, each after the log's own retries, before subscribers are told.
_GAP_FAILURES_MAX: Final = 20
_GAP_RETRY_S: Final = 1.0
# Failed looks at an epoch that a record claims, until the next record of it or the periodic check; each after twice
# the pause of the one before.
_DOUBT_FAILURES_MAX: Final = 8
_DOUBT_BACKOFF: Final = Backoff(1.0, 30.0, (0.5, 1.5))

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """`gap_wait_s`: how long a hole may fill by itself. `tail_check_s`: how often active channels' tails are read."""

    gap_wait_s: float
    tail_check_s: float


@dataclass(frozen=True, slots=True)
class Joined:
    """Where a new subscriber starts. `recovered`: None = it did not ask; False = it could not be, and is to be told."""

    position: StreamPosition
    recovered: bool | None
    missed: tuple[Sent, ...]


@dataclass(frozen=True, slots=True)
class Joining:
    """A subscriber that is to be let into channel `name`. `since`: the position it wants to recover from.

    `window`: what of the history it may see; None = a channel without history, which has neither positions nor order.
    """

    name: str
    subscriber: Subscriber
    since: StreamPosition | None = None
    window: Callable[[], Window] | None = None


@dataclass(slots=True)
class _SharedReads:
    """Reads of one channel that anybody can cause, shared by those who wait: how many were begun, the number of the last
    one that was answered, and when the next may begin (monotonic seconds).

    One after the other: who begins one holds `turn`.
    """

    turn: asyncio.Lock

    begun: int = 0
    answered: int = 0
    next_at: float = -inf

    def begin(self) -> int:
        """The number of the read that begins."""
        self.begun += 1
        return self.begun

    def pause(self) -> None:
        """The next one is not to follow at once."""
        self.next_at = asyncio.get_running_loop().time() + _READ_PAUSE_S


@dataclass(slots=True)
class _AheadReads(_SharedReads):
    """Those for clients that are ahead of this node. `reached_end`: whether the last one reached the log's end."""

    reached_end: bool = False


@dataclass(slots=True)
class _EpochReads(_SharedReads):
    """Those that told which epoch is the channel's. `denied`: claimed by clients, and not the one.

    Never held against a record: a node whose clock is behind may deny an epoch that has just begun.
    """

    denied: deque[str] = field(default_factory=lambda: deque(maxlen=_DENIED_MAX))


class _Channel:
    """One open channel: its order, its recent publications, and how many are about to join."""

    __slots__ = (
        "ahead",
        "behind",
        "doubt_at",
        "doubt_failures",
        "epochs",
        "failures",
        "joining",
        "name",
        "opening",
        "resequencer",
        "ring",
        "task",
        "timer",
        "trim",
        "trim_hints",
        "trim_read_at",
        "unreachable",
        "waiting",
        "waiting_bytes",
        "waiting_dropped",
    )

    def __init__(self, name: str, publications_max: int) -> None:
        self.name = name
        self.resequencer: Resequencer | None = None
        # What came while it is being opened, and whether some did not find room.
        self.waiting: list[Record] = []
        self.waiting_bytes = 0
        self.waiting_dropped = False
        self.opening: SharedCall[None] | None = None
        self.ring = Ring(publications_max)
        self.joining = 0
        # Offsets up to it are hidden, as the head said when it was last read (monotonic seconds).
        self.trim = 0
        self.trim_read_at = -inf
        # How often another node has said that there is more to hide: the head's word counts, when it was read after that.
        self.trim_hints = 0
        # Positions before it were read for in vain: the log has a hole, or a recovery does not bring so many bytes.
        self.unreachable = 0
        # Reads for subscribers on their way in, one at a time for the whole channel.
        turn = asyncio.Lock()
        self.ahead, self.behind, self.epochs = (
            _AheadReads(turn),
            _SharedReads(turn),
            _EpochReads(turn),
        )
        # Looks at a doubted epoch that failed, and when the next may begin.
        self.doubt_failures = 0
        self.doubt_at = -inf
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.failures = 0

    def wait(self, record: Record) -> None:
        """Keep `record` until the channel is open, if there is room."""
        if len(self.waiting) < _OPENING_RECORDS_MAX:
            size = weight(record)
            if self.waiting_bytes + size <= _OPENING_BYTES_MAX:
                self.waiting.append(record)
                self.waiting_bytes += size
                return
        self.waiting_dropped = True

    def opened(self) -> list[Record]:
        """What waited."""
        waiting, self.waiting, self.waiting_bytes = self.waiting, [], 0
        return waiting


@dataclass(slots=True)
class _Placing:
    """One subscriber on its way into a channel: how often the log was read for it, and whether that is of no use.

    `epochs_begun`: reads of the channel's epoch that were begun before it came. `places`: for reads of its connection.
    """

    channel: _Channel
    since: StreamPosition | None
    window: Callable[[], Window]
    epochs_begun: int
    places: asyncio.Semaphore
    reads: int = 0
    given_up: bool = False


class Dispatcher:
    """Every open channel of this node."""

    def __init__(
        self,
        log: ChannelLog,
        hub: Hub,
        clock: Clock,
        random: Callable[[], float],
        timings: Timings,
        *,
        recovery_publications_max: int,
    ) -> None:
        self._log = log
        self._hub = hub
        self._clock = clock
        self._random = random
        self._timings = timings
        self._publications_max = recovery_publications_max
        self._channels: dict[str, _Channel] = {}
        self._rings = Rings()
        # When the end of which channel is to be looked at, which is what `check_tail` does.
        self.tails = TailChecks(timings.tail_check_s)
        self._tasks: set[asyncio.Task[object]] = set()
        self.tally = DeliveryTally()

    @property
    def ring_bytes(self) -> int:
        """Of the publications that all channels keep for recoveries."""
        return self._rings.bytes

    def __len__(self) -> int:
        """Channels that are open."""
        return len(self._channels)

    # ---- records come in

    def offer(self, records: Iterable[Record]) -> None:
        """Take records from anywhere. What one call brings for a channel goes out in one write a socket."""
        sent: dict[str, list[Sent]] = {}
        for record in records:
            channel = self._channels.get(record.channel)
            if channel is None:
                continue
            if channel.resequencer is None:
                channel.wait(record)
                continue
            passed = channel.resequencer.offer(record, self._clock.monotonic_s())
            sent.setdefault(record.channel, []).extend(self._sent(channel, passed))
        for name, some in sent.items():
            if some:
                self._hub.publish(name, some)
            if (channel := self._channels.get(name)) is not None:
                self._attend(channel)

    def offer_one(self, record: Record) -> None:
        self.offer((record,))

    def hide(self, name: str, offset: int) -> None:
        """What channel `name` has up to `offset` is not shown any more, as its head says by now."""
        if (channel := self._channels.get(name)) is not None:
            channel.trim = max(channel.trim, offset)
            channel.trim_hints += 1

    # ---- subscribers come and go

    def number(self, name: str) -> int:
        """What stands for channel `name` on this node, for the reply to a subscriber that is let in in this tick."""
        return self._hub.number(name)

    async def join(
        self,
        name: str,
        subscriber: Subscriber,
        since: StreamPosition | None,
        window: Callable[[], Window],
        admit: Callable[[Joined], bool],
        ready: Awaitable[None] | None = None,
    ) -> None:
        """Let `subscriber` into channel `name`.

        In one tick, `admit` is called to queue the reply, and, if it returns True, the subscriber joins the hub.
        `since`: the position it wants to recover from. `ready`: what else must be done before; it is waited for when
        the log was read, so that it may be under way meanwhile. Raises PortError when the log does not answer, and
        whatever `ready` raises: then `admit` was not called.
        """

        def admit_one(joined: Sequence[Joined | None]) -> bool:
            [one] = joined
            assert one is not None, "a channel with history has a position"
            return admit(one)

        await self.join_all([Joining(name, subscriber, since, window)], admit_one, ready)

    async def join_all(
        self,
        joinings: Sequence[Joining],
        admit: Callable[[Sequence[Joined | None]], bool],
        ready: Awaitable[None] | None = None,
    ) -> None:
        """Let subscribers into their channels, all of them in the same tick, as `join` does for one.

        `admit` gets where each of them starts, in the order of `joinings`; None = in a channel without history.
        Raises PortError when the log does not answer for one of them, and whatever `ready` raises.
        """
        places = asyncio.Semaphore(_JOINS_AT_ONCE)
        placings = [self._placing(each, places) for each in joinings]
        held = [placing.channel for placing in placings if placing is not None]
        for channel in held:
            channel.joining += 1
        try:
            joined = await self._placed(placings)
            if ready is not None:
                await ready
                # The channels went on meanwhile: where each subscriber starts is as of this tick.
                joined = await self._placed(placings)
            # From here to the end of the last `add`: no await, so that no push falls between reply and hub.
            for channel in held:
                if self._channels.get(channel.name) is not channel:
                    raise _Evicted(f"channel {channel.name} was closed while a subscriber joined")
            if admit(joined):
                self._count_recoveries(joined)
                for each in joinings:
                    self._hub.add(each.name, each.subscriber)
        finally:
            for channel in held:
                channel.joining -= 1
                self._forget_if_idle(channel)

    def join_unordered(self, name: str, subscriber: Subscriber, admit: Callable[[], bool]) -> None:
        """Let `subscriber` into a channel without history, which has neither positions nor order."""
        if admit():
            self._hub.add(name, subscriber)

    def leave(self, name: str, subscriber: Subscriber) -> None:
        """Idempotent."""
        self._hub.remove(name, subscriber)
        channel = self._channels.get(name)
        if channel is not None:
            self._forget_if_idle(channel)

    def _count_recoveries(self, joined: Sequence[Joined | None]) -> None:
        for one in joined:
            if one is not None and one.recovered is not None:
                self.tally.recoveries["recovered" if one.recovered else "not_recovered"] += 1
                self.tally.recovered_publications += len(one.missed)

    def _placing(self, joining: Joining, places: asyncio.Semaphore) -> _Placing | None:
        if joining.window is None:
            return None
        channel = self._channels.get(joining.name)
        if channel is None:
            channel = self._channels[joining.name] = _Channel(joining.name, self._publications_max)
        return _Placing(channel, joining.since, joining.window, channel.epochs.begun, places)

    async def _placed(self, placings: Sequence[_Placing | None]) -> Sequence[Joined | None]:
        """Where subscribers may start, as of the last tick, for all of them alike. Raises PortError."""
        while True:
            joined = [None if placing is None else self._joined(placing) for placing in placings]
            behind = [
                placing
                for placing, one in zip(placings, joined, strict=True)
                if placing is not None and one is None
            ]
            if not behind:
                return joined
            if len(behind) == 1:
                await self._advance(behind[0])
                continue
            # One that fails must not leave the others' reads without anybody who waits for them.
            results = await asyncio.gather(*map(self._advance, behind), return_exceptions=True)
            for failure in filter(None, results):
                raise failure

    def _joined(self, placing: _Placing) -> Joined | None:
        """Where a subscriber may start now; None = the log must be read first."""
        channel, since = placing.channel, placing.since
        if channel.resequencer is None:
            return None
        position = channel.resequencer.position
        if since is None:
            return Joined(position, None, ())
        if self._may_be_behind(placing):
            return None
        answer = recover(since, position, channel.ring, self._visible(channel, placing.window))
        if isinstance(answer, Recovered):
            if answer.sent:
                self._ring_used(channel)
            return Joined(position, True, answer.sent)
        if isinstance(answer, Unrecovered) or placing.given_up:
            return Joined(position, False, ())
        return None

    async def _advance(self, placing: _Placing) -> None:
        """Read what the next look needs, or give up on a recovery. Raises PortError."""
        channel, since = placing.channel, placing.since
        if channel.resequencer is None:
            async with placing.places:
                await self._open(channel)
            return
        assert since is not None, "who does not recover needs no read"
        if placing.reads == _JOIN_READS_MAX:
            placing.given_up = True
            return
        placing.reads += 1
        if self._may_be_behind(placing):
            await self._ask_epoch(placing, since)
        elif since.offset > channel.resequencer.top:
            placing.given_up = not await self._reach(placing, channel.resequencer, since)
        else:
            placing.given_up = not await self._read_back(placing, channel.resequencer, since)

    async def _open(self, channel: _Channel) -> None:
        """Read the position where the channel starts; one read for all who wait. Raises PortError."""
        if channel.opening is None:
            channel.opening = SharedCall(
                self._read_position(channel),
                partial(_opened, channel),
                name=f"open {channel.name}",
            )
        await channel.opening.result()

    async def _read_position(self, channel: _Channel) -> None:
        read_at_s = self._clock.monotonic_s()
        number = channel.epochs.begin()
        resolved = await self._log.renew(channel.name)
        channel.epochs.answered = number
        channel.resequencer = Resequencer(
            resolved.tail.position, gap_wait_s=self._timings.gap_wait_s
        )
        waiting = channel.opened()
        if self._channels.get(channel.name) is channel:
            self.tails.opened(channel.name, read_at_s, self._random())
            self.offer(waiting)
            if channel.waiting_dropped:
                # Nobody will hint at those again: let the log tell.
                self._spawn(self._check_tail(channel))

    def _may_be_behind(self, placing: _Placing) -> bool:
        """Whether a subscriber claims another epoch than this node's, and the log was not asked since it came: the node
        may have slept through the beginning of the next.
        """
        resequencer, since, epochs = (
            placing.channel.resequencer,
            placing.since,
            placing.channel.epochs,
        )
        if resequencer is None or since is None or since.epoch in ("", resequencer.epoch):
            return False
        is_denied = since.epoch in epochs.denied or resequencer.has_refuted(since.epoch)
        return not (is_denied or epochs.answered > placing.epochs_begun or placing.given_up)

    async def _ask_epoch(self, placing: _Placing, since: StreamPosition) -> None:
        """Have the log say which epoch is the channel's. Anybody can claim another, so a pause follows. Raises PortError."""
        channel, epochs = placing.channel, placing.channel.epochs
        await self._share(
            placing,
            epochs,
            lambda: self._may_be_behind(placing),
            partial(self._read_epoch, channel),
        )
        if self._channels.get(channel.name) is not channel:
            raise _Evicted(f"channel {channel.name} was closed while a subscriber joined")
        assert channel.resequencer is not None
        if since.epoch not in ("", channel.resequencer.epoch) and since.epoch not in epochs.denied:
            epochs.denied.append(since.epoch)

    async def _read_epoch(self, channel: _Channel) -> None:
        resequencer, epochs = channel.resequencer, channel.epochs
        assert resequencer is not None, "an open channel stays open"
        number = epochs.begin()
        try:
            resolved = await self._log.resolve(channel.name)
        finally:
            epochs.pause()
        epochs.answered = number
        self._compare(channel, resequencer, resolved)

    async def _share(
        self,
        placing: _Placing,
        reads: _SharedReads,
        is_needed: Callable[[], bool],
        read: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        """Do `read` when it is its turn and no pause is left, unless what others read meanwhile is enough. Raises PortError."""
        channel = placing.channel
        while True:
            async with reads.turn:
                if not is_needed() or self._channels.get(channel.name) is not channel:
                    return
                pause_s = reads.next_at - asyncio.get_running_loop().time()
                if pause_s <= 0:
                    async with placing.places:
                        await read()
                    return
            await asyncio.sleep(pause_s)

    async def _read_back(
        self, placing: _Placing, resequencer: Resequencer, since: StreamPosition
    ) -> bool:
        """Read what a recovery needs; concurrent ones share the read. False = the log does not have it."""
        channel = placing.channel

        def is_needed() -> bool:
            visible = self._visible(channel, placing.window)
            answer = recover(since, resequencer.position, channel.ring, visible)
            return isinstance(answer, LogNeeded) and since.offset >= channel.unreachable

        await self._share(
            placing,
            channel.behind,
            is_needed,
            partial(self._read_window, channel, resequencer, placing.window),
        )
        return since.offset >= channel.unreachable

    async def _read_window(
        self, channel: _Channel, resequencer: Resequencer, window: Callable[[], Window]
    ) -> None:
        """Into the ring, the whole window at once: one read serves everybody who comes back."""
        top, hints = resequencer.top, channel.trim_hints
        wanted = min(window().limit, window().size, top)
        try:
            records, head = await asyncio.gather(
                self._log.read_before(channel.name, resequencer.epoch, top, wanted),
                self._log.head(channel.name),
            )
        except BaseException:
            # Failed, or nobody waits for it any more.
            channel.behind.pause()
            raise
        self._note_trim(channel, head, hints)
        older = [sent for record in records for sent in _as_sent(record) if sent.offset <= top]
        channel.ring.prepend(older, top)
        self._ring_used(channel)
        if channel.ring.first <= top + 1:
            # Otherwise so much came meanwhile that the ring has no room for what was read: try again.
            channel.unreachable = channel.ring.first - 1 if channel.ring else top

    def _visible(self, channel: _Channel, window: Callable[[], Window]) -> Window:
        visible = window()
        return replace(visible, trim=max(visible.trim, channel.trim))

    async def _reach(
        self, placing: _Placing, resequencer: Resequencer, since: StreamPosition
    ) -> bool:
        """Read on to a position that is ahead. False = the log does not reach it.

        Anybody can claim such a position, so reads that were in vain are followed by a pause. None of them is held
        against who came after it began: what it claims may have been appended since.
        """
        channel, ahead, begun = placing.channel, placing.channel.ahead, placing.channel.ahead.begun
        await self._share(
            placing,
            ahead,
            lambda: since.offset > resequencer.top and ahead.answered <= begun,
            partial(self._read_ahead, channel, resequencer, since),
        )
        return since.offset <= resequencer.top or not ahead.reached_end

    async def _read_ahead(
        self, channel: _Channel, resequencer: Resequencer, since: StreamPosition
    ) -> None:
        ahead, after = channel.ahead, resequencer.top
        number = ahead.begin()
        is_in_vain = True
        try:
            records = await self._log.read_after(
                channel.name, resequencer.epoch, after, _GAP_PUBLICATIONS_MAX
            )
            ahead.answered, ahead.reached_end = number, _count(records) < _GAP_PUBLICATIONS_MAX
            is_in_vain = ahead.reached_end and (not records or records[-1].last < since.offset)
        finally:
            if is_in_vain:
                ahead.pause()
        if self._channels.get(channel.name) is channel:
            self.offer(records)

    def _note_trim(self, channel: _Channel, head: Head | None, hints: int) -> None:
        """Take the head's word, also where it hides less than a hint did: anybody who publishes to the topic can make one
        up. `hints`: how many had come before the head was read; a later one may know more.
        """
        said = head.trim if head else 0
        channel.trim = said if channel.trim_hints == hints else max(channel.trim, said)
        channel.trim_read_at = self._clock.monotonic_s()

    # ---- holes and doubts

    def _attend(self, channel: _Channel) -> None:
        """Start or plan the read that the channel's resequencer asks for."""
        resequencer = channel.resequencer
        if resequencer is None or channel.task is not None:
            return
        if channel.timer is not None:
            channel.timer.cancel()
            channel.timer = None
        now_s = self._clock.monotonic_s()
        doubted, read_at = resequencer.doubted, resequencer.read_at
        if doubted is not None and channel.doubt_at <= now_s:
            channel.task = self._spawn(self._check_epoch(channel, resequencer, doubted))
        elif read_at is not None and read_at <= now_s:
            channel.task = self._spawn(self._fill_hole(channel, resequencer))
        else:
            next_at = min(
                inf if doubted is None else channel.doubt_at, inf if read_at is None else read_at
            )
            if next_at < inf:
                loop = asyncio.get_running_loop()
                channel.timer = loop.call_later(next_at - now_s, self._attend, channel)

    async def _fill_hole(self, channel: _Channel, resequencer: Resequencer) -> None:
        after, must_reach = resequencer.top, resequencer.reading()
        records: list[Record] = []
        failure: PortError | None = None
        try:
            records = await self._log.read_after(
                channel.name, resequencer.epoch, after, _GAP_PUBLICATIONS_MAX
            )
        except PortError as error:
            failure = error
        finally:
            channel.task = None
        if self._channels.get(channel.name) is not channel:
            # Forgotten meanwhile: whoever subscribes now has nothing to do with this hole.
            return
        if failure is not None:
            self._gap_read_failed(channel, resequencer, failure)
            return
        channel.failures = 0
        # A read that was cut off reaches as far as it reaches; the rest is another hole.
        is_cut_off = _count(records) >= _GAP_PUBLICATIONS_MAX
        reach = min(must_reach, records[-1].last) if is_cut_off else must_reach
        passed, whole = resequencer.read(records, reach, self._clock.monotonic_s())
        sent = self._sent(channel, passed)
        if sent:
            self.tally.gaps_filled += 1
            self.tally.gap_publications += len(sent)
            _log.info("gap_filled", channel=channel.name, after=after, publications=len(sent))
            self._hub.publish(channel.name, sent)
        if not whole and resequencer.top > max(after, records[-1].last if records else 0):
            # What the log has not any more came by another way meanwhile: the hole is a smaller one now.
            resequencer.exists(must_reach, self._clock.monotonic_s())
            self._attend(channel)
        elif not whole:
            self._lose(channel, "the log has a hole")
        else:
            if reach < must_reach:
                resequencer.exists(must_reach, self._clock.monotonic_s())
            self._attend(channel)

    def _gap_read_failed(
        self, channel: _Channel, resequencer: Resequencer, error: PortError
    ) -> None:
        channel.failures += 1
        self.tally.gap_read_failures += 1
        _log.warning(
            "gap_read_failed", channel=channel.name, failures=channel.failures, reason=str(error)
        )
        if channel.failures >= _GAP_FAILURES_MAX:
            self._lose(channel, "the log did not answer")
        else:
            pause = _GAP_RETRY_S * (0.5 + self._random())
            resequencer.postpone(self._clock.monotonic_s() + pause)
            self._attend(channel)

    async def _check_epoch(self, channel: _Channel, resequencer: Resequencer, doubted: str) -> None:
        resolved: Resolved | None = None
        try:
            resolved = await self._log.resolve(channel.name)
        except PortError as error:
            _log.warning("epoch_check_failed", channel=channel.name, reason=str(error))
        finally:
            channel.task = None
        if self._channels.get(channel.name) is not channel:
            return
        if resolved is None:
            self._epoch_check_failed(channel, resequencer)
        else:
            channel.doubt_failures, channel.doubt_at = 0, -inf
            resequencer.refute(doubted)
            self._compare(channel, resequencer, resolved)

    def _epoch_check_failed(self, channel: _Channel, resequencer: Resequencer) -> None:
        channel.doubt_failures += 1
        pause_s = _DOUBT_BACKOFF.pause_s(channel.doubt_failures, self._random())
        channel.doubt_at = self._clock.monotonic_s() + pause_s
        if channel.doubt_failures >= _DOUBT_FAILURES_MAX:
            # The next record of that epoch raises the doubt again; the periodic check does not forget it.
            channel.doubt_failures = 0
            resequencer.doubted = None
        self._attend(channel)

    async def check_tail(self, name: str) -> bool:
        """Look at the end of a channel's log now, if it is open. False = the log did not answer."""
        channel = self._channels.get(name)
        return channel is None or await self._check_tail(channel)

    async def _check_tail(self, channel: _Channel) -> bool:
        """Read the tail of a channel and catch up with it; keep a quiet channel's epoch alive. False = no answer."""
        resequencer = channel.resequencer
        if resequencer is None:
            return True
        try:
            resolved = await self._log.renew(channel.name)
        except PortError as error:
            self.tally.tail_checks["failed"] += 1
            _log.warning("tail_check_failed", channel=channel.name, reason=str(error))
            return False
        self.tally.tail_checks["answered"] += 1
        self._compare(channel, resequencer, resolved)
        await self._check_trim(channel)
        return True

    async def _check_trim(self, channel: _Channel) -> None:
        """Another node may have hidden what is in this one's ring."""
        age_s = self._clock.monotonic_s() - channel.trim_read_at
        is_open, hints = self._channels.get(channel.name) is channel, channel.trim_hints
        if not is_open or not len(channel.ring) or age_s < self._timings.tail_check_s / 2:
            return
        try:
            self._note_trim(channel, await self._log.head(channel.name), hints)
        except PortError as error:
            _log.warning("trim_check_failed", channel=channel.name, reason=str(error))

    def _compare(self, channel: _Channel, resequencer: Resequencer, resolved: Resolved) -> None:
        if self._channels.get(channel.name) is not channel:
            return
        if resolved.tail.epoch != resequencer.epoch:
            self._lose(channel, "another epoch began")
            return
        if resolved.tail.top > resequencer.top:
            resequencer.exists(resolved.tail.top, self._clock.monotonic_s())
            newest = record_of(resolved.newest) if resolved.newest else None
            if newest is not None:
                self.offer_one(newest)
        self._attend(channel)

    async def close(self) -> None:
        """Stop what is under way. For the end of a node."""
        for channel in self._channels.values():
            if channel.timer is not None:
                channel.timer.cancel()
        opening = [each.opening.task for each in self._channels.values() if each.opening]
        tasks = [*self._tasks, *opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- within

    def _sent(self, channel: _Channel, passed: Iterable[Next]) -> list[Sent]:
        """Encode what passed, and keep it in the ring."""
        sent = [_encoded(pub, each.ts) for each in passed for pub in each.publications]
        if sent:
            channel.ring.append(sent)
            self._ring_used(channel)
        return sent

    def _ring_used(self, channel: _Channel) -> None:
        """Of all rings, those of other channels go first. What is forgotten counts no more."""
        if self._channels.get(channel.name) is channel:
            self._rings.used(channel.ring)

    def _lose(self, channel: _Channel, why: str) -> None:
        self.tally.channels_lost += 1
        _log.warning("channel_lost", channel=channel.name, reason=why)
        self._forget(channel)
        self._hub.lost(channel.name)

    def _forget_if_idle(self, channel: _Channel) -> None:
        if channel.joining == 0 and not self._hub.has(channel.name):
            self._forget(channel)

    def _forget(self, channel: _Channel) -> None:
        if self._channels.get(channel.name) is channel:
            del self._channels[channel.name]
            self.tails.closed(channel.name)
        self._rings.drop(channel.ring)
        if channel.timer is not None:
            channel.timer.cancel()
            channel.timer = None

    def _spawn(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _opened(channel: _Channel) -> None:
    channel.opening = None


class _Evicted(PortError):
    """The channel was lost while a subscriber joined; the client tries again."""


def _count(records: Iterable[Record]) -> int:
    """Publications in them."""
    return sum(record.last - record.offset + 1 for record in records)


def _as_sent(record: Record) -> list[Sent]:
    return [_encoded(pub, record.ts) for pub in record.publications or ()]


def _encoded(publication: Publication, ts: int) -> Sent:
    try:
        return sent_of(publication, ts)
    except Unencodable:
        # Another writer may put into the log what no client could have sent. The offset must go out all the same.
        _log.warning("publication_unencodable", offset=publication.offset)
        return sent_of(replace(publication, data=None, info=None, text=None), ts)
