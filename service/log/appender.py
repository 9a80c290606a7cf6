"""Group commit: what is published to a channel while one append is under way goes into the next.

A lane a channel: one append in flight, the next offset never tried before the last one is known to be in.
So a channel's rate is bound by appends of many publications, not by single writes. A publication with an
idempotency key takes its turn in the same lane, and is appended alone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Final

import structlog

from service.core.idempotency import COMMIT_WITHIN_MS, is_valid_key
from service.core.log import Pending, Tail, fill, item_tail
from service.core.log_item import ITEM_BYTES_MAX, ITEM_PUBLICATIONS_MAX, LogItem
from service.core.protocol import encode_stored
from service.core.publication import Publication, Record, StreamPosition
from service.core.tallies import AppendTally
from service.log.channel_log import (
    APPEND_DEADLINE_S,
    Appended,
    ChannelLog,
    KeyTaken,
    Lost,
    NotAppended,
    OutcomeUnknown,
    not_appended,
    record_of,
)
from service.ports import Clock, PortError

__all__ = [
    "LANE_BYTES_MAX",
    "LANE_PUBLICATIONS_MAX",
    "NODE_BYTES_MAX",
    "Appender",
    "Full",
    "TooLarge",
]

# What may wait in one lane: about ten full items. A channel at its ceiling drains that in a second or two.
LANE_PUBLICATIONS_MAX: Final = 5000
LANE_BYTES_MAX: Final = 1280 * 1024
# What may wait on the whole node.
NODE_BYTES_MAX: Final = 64 * 1024 * 1024
# One publication, with the brackets around it; it must find room in a lane that is empty.
_PUBLICATION_BYTES_MAX: Final = ITEM_BYTES_MAX - 2
assert _PUBLICATION_BYTES_MAX <= LANE_BYTES_MAX <= NODE_BYTES_MAX
# Lanes kept for the tail they know, so that the next append needs no read.
_IDLE_LANES_MAX: Final = 10_000
# Races that one append may lose in a row: each loss means that another node's append went in.
_RACES_MAX: Final = 50
_RACES_BEFORE_RESOLVE: Final = 3
# After the first few a writer waits before it tries again, so that many writers of one channel do not spin. Not as
# long as when the table fails: somebody who lost often would lose to those who are new.
_RACES_BEFORE_BACK_OFF: Final = 3
_RACE_BACK_OFF_MAX: Final = 3  # doublings: up to 0.2 s


_log = structlog.get_logger(__name__)


class Full(Exception):
    """The lane or the node has no room: not accepted, try later."""


class TooLarge(Exception):
    """It exceeds what can be stored or sent: not accepted, now or later."""


class _TailUnread(Exception):
    """The channel's tail could not be read."""

    def __init__(self, error: PortError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(slots=True)
class _Waiting:
    pending: Pending
    publication: Publication
    position: asyncio.Future[StreamPosition]
    submitted_s: float
    # Its idempotency key, and until when (wall clock) its append may be sent.
    key: str | None = None
    commit_by_ms: int = 0


class _Lane:
    __slots__ = ("bytes", "history_ttl_ms", "queue", "tail", "task")

    def __init__(self) -> None:
        self.queue: deque[_Waiting] = deque()
        self.bytes = 0
        self.history_ttl_ms = 0
        self.tail: Tail | None = None
        self.task: asyncio.Task[None] | None = None


class Appender:
    """Every channel's lane on this node. `offer` gets each committed record at once: the local fast path."""

    def __init__(
        self, log: ChannelLog, clock: Clock, offer: Callable[[Record], None], *, generation: str
    ) -> None:
        self._log = log
        self._clock = clock
        self._offer = offer
        self._generation = generation
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._bytes = 0
        self.tally = AppendTally()

    @property
    def waiting_bytes(self) -> int:
        """Of publications that are not answered yet."""
        return self._bytes

    def submit(
        self,
        channel: str,
        publication: Publication,
        history_ttl_ms: int,
        key: str | None = None,
        *,
        received_ms: int | None = None,
    ) -> asyncio.Future[StreamPosition]:
        """Queue `publication`; the future has its position once it is committed.

        `key` (see service/core/idempotency.py): what was published with it in this channel before is not
        published again; the future then has the position of that. `received_ms`: when it was read from the
        client (wall clock; None: now). COMMIT_WITHIN_MS later its append is not sent any more.

        Raises Full and TooLarge (not accepted) and Unencodable at once. The future raises NotAppended (known
        not to be in the log) or OutcomeUnknown: what waits for APPEND_DEADLINE_S until its turn comes is not
        tried, and its own append is tried for no longer. Cancelling it does not take the publication back.
        """
        assert key is None or is_valid_key(key), "a malformed key is refused before"
        pending = Pending.of(encode_stored(publication))
        if pending.size > _PUBLICATION_BYTES_MAX:
            self.tally.publications["too_large"] += 1
            raise TooLarge("a publication that exceeds a log item")
        lane = self._lanes.get(channel)
        if lane is None:
            lane = self._lanes[channel] = _Lane()
        self._lanes.move_to_end(channel)
        if (
            len(lane.queue) >= LANE_PUBLICATIONS_MAX
            or lane.bytes + pending.size > LANE_BYTES_MAX
            or self._bytes + pending.size > NODE_BYTES_MAX
        ):
            self.tally.publications["full"] += 1
            raise Full("too many publications wait to be appended")
        position: asyncio.Future[StreamPosition] = asyncio.get_running_loop().create_future()
        commit_by_ms = (self._clock.now_ms() if received_ms is None else received_ms) + COMMIT_WITHIN_MS
        submitted_s = self._clock.monotonic_s()
        lane.queue.append(_Waiting(pending, publication, position, submitted_s, key, commit_by_ms))
        lane.bytes += pending.size
        self._bytes += pending.size
        lane.history_ttl_ms = history_ttl_ms
        if lane.task is None:
            lane.task = asyncio.create_task(self._run(channel, lane), name=f"append {channel}")
        return position

    async def drain(self) -> None:
        """Wait until every accepted publication was answered. For the end of a node, after the last submit."""
        while tasks := [lane.task for lane in self._lanes.values() if lane.task is not None]:
            await asyncio.wait(tasks)

    async def _run(self, channel: str, lane: _Lane) -> None:
        try:
            while lane.queue:
                await self._append_next(channel, lane)
        finally:
            lane.task = None
            self._forget_idle()

    async def _append_next(self, channel: str, lane: _Lane) -> None:
        """Append what is at the front of the lane, as often as it takes; then answer its publishers."""
        self._fail_overdue(channel, lane)
        if not lane.queue:
            return
        count = fill([waiting.pending for waiting in _front(lane.queue)])
        taken = [lane.queue.popleft() for _ in range(count)]
        try:
            outcome = await self._commit(channel, lane, taken)
        except asyncio.CancelledError:
            self._fail(taken, OutcomeUnknown("the node stopped"))
            raise
        except _TailUnread as unread:
            # Of what waits behind it nothing was sent either, and each would pay for as many attempts.
            taken += lane.queue
            lane.queue.clear()
            self._failed(channel, lane, taken, not_appended(unread.error))
        except (NotAppended, OutcomeUnknown) as error:
            self._failed(channel, lane, taken, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not leave publishers without an answer
            _log.exception("append_broken", channel=channel, publications=count)
            lane.tail = None
            self._fail(taken, OutcomeUnknown(str(error)))
        else:
            if isinstance(outcome, LogItem):
                self._offer_safely(channel, _record(outcome, taken))
            self._count(outcome, taken)
            for index, waiting in enumerate(taken):
                if not waiting.position.done():
                    waiting.position.set_result(StreamPosition(outcome.epoch, outcome.offset + index))
        finally:
            self._leave(lane, taken)

    def _offer_safely(self, channel: str, record: Record) -> None:
        """It is in the log, and its publishers are to be answered, whatever becomes of delivering it here."""
        try:
            self._offer(record)
        except Exception:  # noqa: BLE001  # a fault of ours; the stream brings the record once more
            _log.exception("offer_broken", channel=channel)

    def _fail_overdue(self, channel: str, lane: _Lane) -> None:
        """Answer those in front whose time is over before their turn came: they were never sent."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        overdue: list[_Waiting] = []
        while lane.queue and _is_overdue(lane.queue[0], now_s, now_ms):
            overdue.append(lane.queue.popleft())
        if overdue:
            _log.warning("append_overdue", channel=channel, publications=len(overdue))
            self._leave(lane, overdue)
            self._fail(overdue, NotAppended("waited too long for its turn"))

    def _failed(self, channel: str, lane: _Lane, taken: list[_Waiting], error: Exception) -> None:
        _log.warning("append_failed", channel=channel, publications=len(taken), reason=str(error))
        lane.tail = None
        self._fail(taken, error)

    def _fail(self, taken: list[_Waiting], error: Exception) -> None:
        outcome = "not_stored" if isinstance(error, NotAppended) else "unknown"
        self.tally.publications[outcome] += len(taken)
        _fail(taken, error)

    def _count(self, outcome: LogItem | StreamPosition, taken: list[_Waiting]) -> None:
        tally, now_s = self.tally, self._clock.monotonic_s()
        if isinstance(outcome, LogItem):
            tally.batches.add(len(taken))
            tally.publications["stored"] += len(taken)
        else:
            tally.publications["repeated"] += len(taken)
        for waiting in taken:
            tally.latency_s.add(now_s - waiting.submitted_s)

    def _leave(self, lane: _Lane, taken: list[_Waiting]) -> None:
        """What was answered takes no room any more."""
        size = sum(waiting.pending.size for waiting in taken)
        lane.bytes -= size
        self._bytes -= size

    async def _commit(self, channel: str, lane: _Lane, taken: list[_Waiting]) -> LogItem | StreamPosition:
        """What is in the log now, or where the key of what was taken already is.

        Raises _TailUnread, NotAppended, OutcomeUnknown, within APPEND_DEADLINE_S and what the last call takes.
        """
        give_up_s = self._clock.monotonic_s() + APPEND_DEADLINE_S
        for lost in range(_RACES_MAX):
            if lost and lost % _RACES_BEFORE_RESOLVE == 0:
                # Far behind: a read finds the tail sooner than one lost race an item.
                lane.tail = None
            if lost >= _RACES_BEFORE_BACK_OFF:
                await self._log.back_off(min(lost - _RACES_BEFORE_BACK_OFF, _RACE_BACK_OFF_MAX))
            if lane.tail is None or lane.tail.believed_until <= self._clock.now_ms():
                try:
                    lane.tail = (await self._log.resolve(channel)).tail
                except PortError as error:
                    raise _TailUnread(error) from error
            left_s = give_up_s - self._clock.monotonic_s()
            if left_s <= 0:
                # Lost until now, or not sent at all: known not to be in.
                raise NotAppended(f"not done within {APPEND_DEADLINE_S:.0f} s")
            outcome = await self._append(channel, lane.tail, lane.history_ttl_ms, taken, left_s)
            if isinstance(outcome, KeyTaken):
                return outcome.position
            item = outcome.item if isinstance(outcome, Appended) else outcome.holder
            lane.tail = item_tail(item, self._clock.now_ms(), self._generation)
            if isinstance(outcome, Appended):
                return item
            self.tally.races += 1
            # The winner's item came with the refusal: a free catch-up for local subscribers.
            record = record_of(item)
            if record is not None:
                self._offer(record)
        raise NotAppended(f"lost {_RACES_MAX} races for the next offset")

    async def _append(
        self, channel: str, tail: Tail, history_ttl_ms: int, taken: list[_Waiting], within_s: float
    ) -> Appended | Lost | KeyTaken:
        first = taken[0]
        if first.key is None:
            pending = [waiting.pending for waiting in taken]
            return await self._log.append(channel, tail, pending, history_ttl_ms, within_s=within_s)
        return await self._log.append_keyed(
            channel,
            tail,
            first.pending,
            history_ttl_ms,
            key=first.key,
            commit_by_ms=first.commit_by_ms,
            within_s=within_s,
        )

    def _forget_idle(self) -> None:
        while len(self._lanes) > _IDLE_LANES_MAX:
            oldest = next(iter(self._lanes))
            if self._lanes[oldest].task is not None:
                self._lanes.move_to_end(oldest)
                return
            del self._lanes[oldest]


def _is_overdue(waiting: _Waiting, now_s: float, now_ms: int) -> bool:
    """Whether it waited for longer than an append is tried, or its key might be forgotten when it is sent."""
    if waiting.key is not None and now_ms >= waiting.commit_by_ms:
        return True
    return now_s - waiting.submitted_s > APPEND_DEADLINE_S


def _front(queue: deque[_Waiting]) -> list[_Waiting]:
    """What may go into the next item: one publication with a key, or those before the next one with a key."""
    if queue[0].key is not None:
        return [queue[0]]
    return list(takewhile(lambda waiting: waiting.key is None, islice(queue, ITEM_PUBLICATIONS_MAX)))


def _record(item: LogItem, taken: list[_Waiting]) -> Record:
    """The committed item as a record, without parsing what this node has just written."""
    publications = tuple(
        replace(waiting.publication, offset=item.offset + index) for index, waiting in enumerate(taken)
    )
    return Record(item.channel, item.epoch, item.offset, item.last, item.ts, publications)


def _fail(taken: list[_Waiting], error: Exception) -> None:
    for waiting in taken:
        if not waiting.position.done():
            waiting.position.set_exception(error)
            # The publisher may have gone: an outcome that nobody reads is no fault.
            waiting.position.exception()
