"""Group commit: appends the publications of a channel, many at a time.

Each channel has a lane, with one append in flight. Publications that come meanwhile go into the
next append. An offset is never tried before the one below it is known to be in the log. So a
channel's rate is bound by appends of many publications, not by single writes. If other nodes write
to the channel as well, the lanes take turns (service/roomcast/log/contention.py). Publications that
come while a lane waits for its turn join the append.

A node makes APPENDS_AT_ONCE appends at once. Further lanes wait for a place, each in the lines of
all callers who have publications in it, and these lines take turns. So whoever publishes to very
many channels waits behind itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from roomcast.concurrency import FairPlaces, Portions
from roomcast.log.channel_log import (
    APPEND_DEADLINE_S,
    Appended,
    ChannelLog,
    KeysTaken,
    Lost,
    NotAppended,
    OutcomeUnknown,
    Postponed,
    not_appended,
)
from roomcast.log.contention import Contention, RoundTrip
from roomcast.log.idempotency import COMMIT_WITHIN_MS
from roomcast.log.item import ITEM_BYTES_MAX, LogItem
from roomcast.log.lane import FIRST_BYTES, LANE_BYTES_MAX, Lane, Waiting
from roomcast.log.rules import Pending, Tail, item_tail
from roomcast.log.versions import fresh
from roomcast.observe.counters import AppendCounters
from roomcast.observe.ports import Attributes, Span, Tracer
from roomcast.observe.spans import (
    APPEND,
    ATTEMPTS,
    LOSSES,
    NO_TRACER,
    OUTCOME,
    PUBLICATIONS,
    PUBLISH,
    PUT_ITEM,
    TURN_MS,
    WRITERS,
)
from roomcast.ports import Clock, PortError, Throttled, UnknownOutcome
from roomcast.wire.encoding import encode_stored
from roomcast.wire.keys import is_valid_key
from roomcast.wire.publication import Publication, StreamPosition
from roomcast.wire.trace_context import TraceContext
from roomcast.wire.versions import Version

__all__ = [
    "ANSWERED_AT_ONCE",
    "APPENDS_AT_ONCE",
    "LITTLE_BYTES",
    "MUCH_BYTES_MAX",
    "NODE_BYTES_MAX",
    "TRACED_WRITES_MAX",
    "Appender",
    "Full",
    "TooLarge",
]

# Appends that a node makes at once, with the reads of their tails: as many as it has connections to
# the table. So they do not wait there, where calls are made in the order in which they were asked
# for.
APPENDS_AT_ONCE: Final = 64
# Of those that waited, so many begin in one turn of the event loop. An append is up to three calls,
# of which aws/calls.py begins eight in a turn: so appends wait here, in the lines of their callers,
# and their calls do not wait there.
APPENDS_A_TURN: Final = 2
# An append of more publications than these is delivered and answered in a turn for itself, which
# takes up to 20 ms. A table that answers again after a while answers all appends at once.
ANSWERED_AT_ONCE: Final = 16

# Bytes of publications that may wait on the whole node. The last of this room is for callers who
# have little waiting, or a few others could fill it.
NODE_BYTES_MAX: Final = 64 * 1024 * 1024
MUCH_BYTES_MAX: Final = 48 * 1024 * 1024
LITTLE_BYTES: Final = ITEM_BYTES_MAX
# The largest publication, without the brackets around it. An empty lane must have room for it.
_PUBLICATION_BYTES_MAX: Final = ITEM_BYTES_MAX - 2
assert _PUBLICATION_BYTES_MAX <= LANE_BYTES_MAX <= MUCH_BYTES_MAX < NODE_BYTES_MAX
# Idle lanes that are kept. They know a tail, so that the next append needs no read.
_IDLE_LANES_MAX: Final = 10_000
# A tail that was learned at most so many round trips ago usually has few items behind it. They are
# all read, and local subscribers get them at once. Otherwise, or if there are more after all, only
# the newest item is read.
_FOLLOW_ROUND_TRIPS: Final = 32
# Writes of one append that have spans of their own. The append's says how many there were.
TRACED_WRITES_MAX: Final = 16

# Of a write, for its span. None = it raised.
_OUTCOMES: Final[Mapping[type, str]] = {
    Appended: "appended",
    Lost: "lost",
    KeysTaken: "keys_taken",
    Postponed: "throttled",
    type(None): "failed",
}

_log = structlog.get_logger(__name__)


class Full(Exception):
    """The lane or the node has no room. The publication was not accepted: try later."""


class TooLarge(Exception):
    """The publication is too large to be stored or sent. It will never be accepted."""


class _TailUnread(Exception):
    """The channel's tail could not be read, or a key behind which something stale may stand."""

    def __init__(self, error: PortError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class _Append:
    """The state of one append: its publications, and the effort so far.

    As long as the append is known not to be in the log, `batch` may change.

    `superseded`: those of `batch` that are not written with the others, because one of these has a
    newer version; each with the number of publications that are written before it.

    `writers`: other nodes that were seen writing in the channel, when it went in.
    `looked`: the tail was read since the last pause; from then on, each lost race shows the new
    one. `doubted`: it must be read, because something would be stale by an old one. `postponed`:
    refusals in a row because the table was throttled. `why`: the last of them. `span`: None = none
    of its publications is traced, or none was written yet.
    """

    batch: list[Waiting] = field(default_factory=list)
    superseded: list[tuple[Waiting, int]] = field(default_factory=list)
    attempts: int = 0
    losses: int = 0
    turn_s: float = 0.0
    writers: int = 0
    looked: bool = False
    doubted: bool = False
    postponed: int = 0
    why: Throttled | None = None
    span: Span | None = None

    @property
    def written(self) -> list[Waiting]:
        """The publications that go into the log."""
        if not self.superseded:
            return self.batch
        superseded = {id(waiting) for waiting, _ in self.superseded}
        return [waiting for waiting in self.batch if id(waiting) not in superseded]


class Appender:
    """The lanes of all channels on this node.

    `offer` gets each committed item at once, so that local subscribers need not wait for the queue.
    `appended` gets those of them that this node wrote. Both only take note.

    `random` gives fractions of 1. `tracer` records spans of publications and appends.
    """

    def __init__(
        self,
        log: ChannelLog,
        clock: Clock,
        offer: Callable[[LogItem], None],
        *,
        generation: str,
        random: Callable[[], float],
        appended: Callable[[LogItem], None] = lambda _item: None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._tracer = tracer
        # Looked at by each publication.
        self._traces = tracer.is_on
        self._log = log
        self._clock = clock
        self._offer = offer
        self._note_appended = appended
        self._generation = generation
        self._random = random
        self._round_trip = RoundTrip()
        self._places = FairPlaces(APPENDS_AT_ONCE, APPENDS_A_TURN)
        self._answers = Portions(1)
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._bytes = 0
        # The same by caller; none of them is 0.
        self._bytes_of: Counter[str] = Counter()
        self.counters = AppendCounters()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of publications that are not answered yet."""
        return self._bytes

    def submit(
        self,
        channel: str,
        publication: Publication,
        history_ttl_ms: int,
        key: str | None = None,
        *,
        received_ms: int | None = None,
        caller: str = "",
        parent: TraceContext | None = None,
        version: Version | None = None,
    ) -> asyncio.Future[StreamPosition]:
        """Queue `publication`. The future gets its position when it is committed.

        `key` (see service/roomcast/log/idempotency.py): if a publication was made with it in this
        channel before, nothing is published, and the future gets the position of the earlier one.
        `received_ms`: when the publication was read from the client (wall clock; None = now). With
        a key, nothing is sent later than COMMIT_WITHIN_MS after that. `caller`: who publishes. If
        too many append at once, callers take turns. `parent`: the caller's span; None = it
        has none. `version`: if the log has a newer one, or this one, nothing is published, and the
        future gets the position of the log's end.

        Raises Full and TooLarge (not accepted) and Unencodable at once. The future raises
        NotAppended (known not to be in the log) or OutcomeUnknown. The first write begins within
        APPEND_DEADLINE_S of this call, or not at all. A write that may be in is tried again for as
        long. Cancelling the future does not take the publication back.
        """
        assert key is None or is_valid_key(key), "a malformed key is refused before"
        pending = Pending.of(encode_stored(publication), key, version)
        if pending.size > _PUBLICATION_BYTES_MAX:
            self.counters.publications["too_large"] += 1
            raise TooLarge("a publication that exceeds a log item")
        lane = self._lanes.get(channel) or Lane(Contention(self._round_trip))
        if not (lane.has_room(pending.size, caller) and self._has_room(pending.size, caller)):
            # A channel of which nothing waits has no lane, or refusals would fill the memory.
            self.counters.publications["full"] += 1
            raise Full("too many publications wait to be appended")
        self._lanes[channel] = lane
        self._lanes.move_to_end(channel)
        position: asyncio.Future[StreamPosition] = asyncio.get_running_loop().create_future()
        commit_by_ms = (
            self._clock.now_ms() if received_ms is None else received_ms
        ) + COMMIT_WITHIN_MS
        submitted_s = self._clock.monotonic_s()
        span = None
        if self._traces:
            span = self._tracer.root(PUBLISH, channel, parent, start_ms=received_ms)
        lane.add(Waiting(pending, position, submitted_s, commit_by_ms, caller, span))
        self._bytes += pending.size
        self._bytes_of[caller] += pending.size
        lane.history_ttl_ms = history_ttl_ms
        if lane.task is None or lane.task.done():
            lane.task = asyncio.create_task(self._run(channel, lane), name=f"append {channel}")
        elif lane.turn is not None:
            self._places.join(lane.turn, caller)
        return position

    def _has_room(self, size: int, caller: str) -> bool:
        of_caller = self._bytes_of[caller] + size
        if of_caller == size <= FIRST_BYTES:
            return True
        bytes_max = NODE_BYTES_MAX if of_caller <= LITTLE_BYTES else MUCH_BYTES_MAX
        return self._bytes + size <= bytes_max

    async def drain(self) -> None:
        """Wait until every accepted publication was answered.

        For the end of a node, after the last submit.
        """
        while tasks := [
            lane.task for lane in self._lanes.values() if lane.task and not lane.task.done()
        ]:
            await asyncio.wait(tasks)

    async def _run(self, channel: str, lane: Lane) -> None:
        try:
            while lane.queue:
                await self._append_next(channel, lane)
        finally:
            lane.task = None
            self._forget_idle()

    async def _append_next(self, channel: str, lane: Lane) -> None:
        """Append waiting publications of the lane, and answer them when the outcome is known."""
        append = _Append()
        try:
            item = await self._commit(channel, lane, append)
        except asyncio.CancelledError:
            self._fail(lane, append.batch, OutcomeUnknown("the node stopped"))
            waiting = list(lane.queue)
            lane.queue.clear()
            self._fail(lane, waiting, NotAppended("the node stopped"))
            raise
        except _TailUnread as unread:
            # The publications that wait behind were not sent either. Each would cost as many
            # attempts.
            append.batch += lane.queue
            lane.queue.clear()
            self._failed(channel, lane, append.batch, not_appended(unread.error))
        except (NotAppended, OutcomeUnknown) as error:
            self._failed(channel, lane, append.batch, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not leave publishers without an answer
            _log.exception("append_broken", channel=channel, publications=len(append.batch))
            lane.tail = None
            if not append.batch:
                # Otherwise the lane would meet the same bug again at once, for ever.
                append.batch += lane.queue
                lane.queue.clear()
            self._fail(lane, append.batch, OutcomeUnknown(str(error)))
        else:
            if item is not None:
                self._appended(lane, append, item)
        finally:
            if append.span is not None:
                # Unless it went in: then it has ended.
                append.span.end(failure="not appended")

    async def _commit(self, channel: str, lane: Lane, append: _Append) -> LogItem | None:
        """Append waiting publications of the lane behind the tail, in this node's turn.

        Returns None when nothing was left to write.

        Raises _TailUnread, NotAppended, OutcomeUnknown. Then that is the outcome of all of
        `append.batch`.
        """
        await self._pause(append, lane.contention.wait_s(self._clock.monotonic_s()))
        while append.batch or lane.queue:
            if not await self._has_place(lane, append):
                self._refill(channel, lane, append)
                continue
            span: Span | None = None
            outcome: Appended | Lost | KeysTaken | Postponed | None = None
            try:
                tail = await self._end_of_log(channel, lane, append)
                self._refill(channel, lane, append)
                newest_version = None
                if lane.versions or append.superseded:
                    newest_version = await self._leave_out_stale(channel, lane, append, tail)
                if not append.batch or append.doubted:
                    continue
                append.attempts += 1
                sent_s = self._clock.monotonic_s()
                if self._traces:
                    span = self._write_span(channel, append)
                outcome = await self._log.append(
                    channel,
                    tail,
                    [waiting.pending for waiting in append.written],
                    lane.history_ttl_ms,
                    commit_by_ms=min(
                        (
                            waiting.commit_by_ms
                            for waiting in append.batch
                            if waiting.pending.key is not None
                        ),
                        default=None,
                    ),
                    within_s=APPEND_DEADLINE_S - (sent_s - append.batch[-1].submitted_s),
                    trace=None if append.span is None else append.span.context,
                    newest_version=newest_version,
                )
            finally:
                self._places.give_back()
                if span is not None:
                    failure = "not known to be in" if outcome is None else ""
                    span.end({OUTCOME: _OUTCOMES[type(outcome)]}, failure=failure)
            now_s = self._clock.monotonic_s()
            if len(append.batch) > ANSWERED_AT_ONCE:
                await self._answers.wait()
            if isinstance(outcome, Appended):
                lane.learn(self._tail_of(outcome.item), now_s)
                self._tell_safely(self._offer, outcome.item)
                self._tell_safely(self._note_appended, outcome.item)
                append.writers = lane.contention.won(sent_s, now_s, self._random())
                return outcome.item
            if isinstance(outcome, KeysTaken):
                self._repeated(lane, append, outcome)
                if outcome.holder is not None:
                    self._beaten(lane, append, outcome.holder)
            elif isinstance(outcome, Lost):
                self._beaten(lane, append, outcome.holder)
                append.postponed, append.why = 0, None
                await self._pause(append, lane.contention.lose(sent_s, now_s, self._random()))
            else:
                append.looked = False
                append.why = outcome.error
                self.counters.throttled += 1
                lane.contention.throttled()
                await self._log.back_off(append.postponed)
                append.postponed += 1
        return None

    def _write_span(self, channel: str, append: _Append) -> Span | None:
        """The span of the next write, below the append's. None = it has none.

        The append has its place in the trace of its first traced publication. The others' traces
        have a link to it.
        """
        if append.span is None:
            first = next((each.span for each in append.batch if each.span is not None), None)
            if first is None:
                return None
            append.span = self._tracer.span(APPEND, channel, first.context)
        if append.attempts > TRACED_WRITES_MAX:
            return None
        return self._tracer.span(PUT_ITEM, channel, append.span.context)

    async def _has_place(self, lane: Lane, append: _Append) -> bool:
        """Take a place for the next attempt. False = one of them was overdue before.

        The lane waits in the lines of all who have publications in it: nobody waits behind what
        another publishes elsewhere.
        """
        if self._places.free:
            self._places.free -= 1
            return True
        oldest = append.batch[0] if append.batch else lane.queue[0]
        left_s = APPEND_DEADLINE_S - (self._clock.monotonic_s() - oldest.submitted_s)
        lane.turn = self._places.stand(lane.callers(append.batch))
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                await self._places.wait(lane.turn)
        except TimeoutError:
            return False
        finally:
            lane.turn = None
        return True

    async def _end_of_log(self, channel: str, lane: Lane, append: _Append) -> Tail:
        """The tail to append behind. It is read again if other nodes write to the channel, or if
        it would make something stale that came after it was learned.

        Raises _TailUnread.
        """
        known = lane.tail
        if known is not None and known.valid_until <= self._clock.now_ms():
            known = None
        if known is not None and (
            append.looked
            or not (append.doubted or lane.contention.must_look(self._clock.monotonic_s()))
        ):
            return known
        append.looked, append.doubted = True, False
        try:
            return await self._read_end(channel, lane, known)
        except (Throttled, UnknownOutcome) as error:
            if known is None:
                raise _TailUnread(error) from error
            # The look only helps other writers. The known tail is valid, and costs a lost race at
            # worst.
            return known
        except PortError as error:
            raise _TailUnread(error) from error

    async def _read_end(self, channel: str, lane: Lane, known: Tail | None) -> Tail:
        """Read on from `known` if it was learned lately, and resolve otherwise.

        Raises PortError.
        """
        young_s = _FOLLOW_ROUND_TRIPS * self._round_trip.s
        if known is not None and self._clock.monotonic_s() - lane.known_s <= young_s:
            items = await self._log.follow(channel, known)
            if items is not None:
                for item in items:
                    self._met(lane, item)
                if lane.tail is not None:
                    return lane.tail
        resolved = await self._log.resolve(channel)
        now_s = self._clock.monotonic_s()
        if resolved.newest is not None:
            self._saw(lane, resolved.newest, now_s)
        lane.learn(resolved.tail, now_s)
        return resolved.tail

    def _beaten(self, lane: Lane, append: _Append, holder: LogItem | None) -> None:
        """The append lost a race to `holder`; None = the winner and its item are not known."""
        append.losses += 1
        self.counters.races += 1
        if holder is not None:
            self._met(lane, holder)
        else:
            lane.tail = None

    def _met(self, lane: Lane, item: LogItem) -> None:
        """Take `item`, which follows the known tail.

        It gives the new tail, and local subscribers get its record.
        """
        now_s = self._clock.monotonic_s()
        lane.learn(self._tail_of(item), now_s)
        self._saw(lane, item, now_s)
        self._tell_safely(self._offer, item)

    def _saw(self, lane: Lane, item: LogItem, now_s: float) -> None:
        if item.node != self._log.node:
            lane.contention.saw(item.node, now_s)

    def _tail_of(self, item: LogItem) -> Tail | None:
        return item_tail(item, self._clock.now_ms(), self._generation)

    async def _pause(self, append: _Append, seconds: float) -> None:
        """Wait, so that others can write."""
        if seconds > 0:
            append.looked = False
            append.turn_s += seconds
            await asyncio.sleep(seconds)

    def _refill(self, channel: str, lane: Lane, append: _Append) -> None:
        """Add publications that came meanwhile to the append, and fail the overdue ones.

        The overdue ones are known not to be in the log.
        """
        overdue = lane.refill(append.batch, self._clock.monotonic_s(), self._clock.now_ms())
        if overdue:
            _log.warning("append_overdue", channel=channel, publications=len(overdue))
            why = (
                not_appended(append.why)
                if append.why
                else NotAppended("waited too long for its turn")
            )
            self._fail(lane, overdue, why)

    async def _leave_out_stale(
        self, channel: str, lane: Lane, append: _Append, tail: Tail
    ) -> Version | None:
        """Answer the publications at the front of `append` that are stale behind `tail`.

        Returns the newest version behind the others. Those of them that are stale are not written
        either, and are answered with the others' outcome. Nothing is answered if the append is now
        `doubted`.

        Raises _TailUnread.
        """
        kept, newest = fresh((each.pending.version for each in append.batch), tail.newest_version)
        first = kept.index(True) if True in kept else len(kept)
        stale = append.batch[:first]
        if stale:
            if not append.looked and lane.known_s <= max(each.submitted_s for each in stale):
                append.doubted = True
                return None
            places = [await self._place_of(channel, each, tail.position) for each in stale]
            if first > ANSWERED_AT_ONCE:
                await self._answers.wait()
            del append.batch[:first]
            self._stale(lane, list(zip(stale, places, strict=True)))
        append.superseded, written = [], 0
        for index, waiting in enumerate(append.batch):
            if kept[first + index]:
                written += 1
            elif waiting.pending.key is None:
                append.superseded.append((waiting, written))
            else:
                # Its key is looked up when those before it are in. Those behind it wait as well, or
                # they would decide about it.
                lane.give_back(append.batch, index)
                before = (each.pending.version for each in append.batch)
                newest = fresh(before, tail.newest_version)[1]
                break
        return newest

    async def _place_of(
        self, channel: str, waiting: Waiting, end: StreamPosition
    ) -> StreamPosition:
        """What a stale publication is answered: the log's `end`, or where an earlier attempt with
        its key is. Raises _TailUnread.
        """
        if waiting.pending.key is None:
            return end
        try:
            return await self._log.key_position(channel, waiting.pending.key) or end
        except PortError as error:
            raise _TailUnread(error) from error

    def _tell_safely(self, who: Callable[[LogItem], None], item: LogItem) -> None:
        """Give an item that is in the log to the dispatcher, or to the express hints.

        What waits is only kept as text, so it is decoded there. An error must not leave a publisher
        without an answer.
        """
        try:
            who(item)
        except Exception:  # noqa: BLE001  # a fault of ours; the stream brings the record once more
            _log.exception("offer_broken", channel=item.channel)

    # ---- answers

    def _appended(self, lane: Lane, append: _Append, item: LogItem) -> None:
        now_s = self._clock.monotonic_s()
        written = append.written
        self.counters.appended(
            [now_s - waiting.submitted_s for waiting in written],
            attempts=append.attempts,
            losses=append.losses,
            turn_s=append.turn_s,
            writers=append.writers,
        )
        if append.span is not None:
            self._trace(append, append.span, now_s)
        for index, waiting in enumerate(written):
            _answer(waiting, StreamPosition(item.epoch, item.offset + index))
        self._leave(lane, written)
        if append.superseded:
            ends = (
                (waiting, StreamPosition(item.epoch, item.offset + before - 1))
                for waiting, before in append.superseded
            )
            self._stale(lane, list(ends))

    def _trace(self, append: _Append, span: Span, now_s: float) -> None:
        """End the spans of an append that went in, and keep exemplars of its latencies."""
        attributes: Attributes = {
            PUBLICATIONS: len(append.written),
            ATTEMPTS: append.attempts,
            LOSSES: append.losses,
            TURN_MS: round(append.turn_s * 1000, 3),
            WRITERS: append.writers,
        }
        span.end(attributes)
        now = self._clock.now_ms() / 1000
        trace_id = span.context.trace_id
        self.counters.turn_s.exemplify(append.turn_s, trace_id, now)
        for waiting in append.written:
            if waiting.span is None:
                continue
            own = waiting.span.context.trace_id
            self.counters.latency_s.exemplify(now_s - waiting.submitted_s, own, now)
            if own != trace_id:
                waiting.span.link(span.context)
            waiting.span.end({OUTCOME: "stored"})

    def _repeated(self, lane: Lane, append: _Append, taken: KeysTaken) -> None:
        """Answer the publications whose keys were used before. The others stay in the append."""
        now_s = self._clock.monotonic_s()
        repeated = [waiting for waiting in append.batch if waiting.pending.key in taken.positions]
        append.batch = [
            waiting for waiting in append.batch if waiting.pending.key not in taken.positions
        ]
        self.counters.repeated(now_s - waiting.submitted_s for waiting in repeated)
        for waiting in repeated:
            assert waiting.pending.key is not None
            if waiting.span is not None:
                waiting.span.end({OUTCOME: "repeated"})
            _answer(waiting, taken.positions[waiting.pending.key])
        self._leave(lane, repeated)

    def _stale(self, lane: Lane, stale: Sequence[tuple[Waiting, StreamPosition]]) -> None:
        """Answer publications that are not in the log, because it has a newer version."""
        self.counters.publications["stale"] += len(stale)
        for waiting, position in stale:
            if waiting.span is not None:
                waiting.span.end({OUTCOME: "stale"})
            _answer(waiting, position)
        self._leave(lane, [waiting for waiting, _ in stale])

    def _failed(self, channel: str, lane: Lane, batch: Sequence[Waiting], error: Exception) -> None:
        _log.warning("append_failed", channel=channel, publications=len(batch), reason=str(error))
        lane.tail = None
        self._fail(lane, batch, error)

    def _fail(self, lane: Lane, batch: Sequence[Waiting], error: Exception) -> None:
        outcome = "not_stored" if isinstance(error, NotAppended) else "unknown"
        self.counters.publications[outcome] += len(batch)
        for waiting in batch:
            if waiting.span is not None:
                waiting.span.end({OUTCOME: outcome}, failure=outcome)
            if not waiting.position.done():
                waiting.position.set_exception(error)
                # The publisher may have gone. Mark the exception as retrieved.
                waiting.position.exception()
        self._leave(lane, batch)

    def _leave(self, lane: Lane, answered: Sequence[Waiting]) -> None:
        """Free the room of answered publications."""
        for waiting in answered:
            lane.left(waiting)
            size = waiting.pending.size
            self._bytes -= size
            self._bytes_of[waiting.caller] -= size
            if not self._bytes_of[waiting.caller]:
                del self._bytes_of[waiting.caller]

    def _forget_idle(self) -> None:
        while len(self._lanes) > _IDLE_LANES_MAX:
            oldest = next(iter(self._lanes))
            if self._lanes[oldest].task is not None:
                self._lanes.move_to_end(oldest)
                return
            del self._lanes[oldest]


def _answer(waiting: Waiting, position: StreamPosition) -> None:
    if not waiting.position.done():
        waiting.position.set_result(position)
