"""Group commit: what is published to a channel while one append is under way goes into the next.

A lane a channel: one append in flight, the next offset never tried before the last one is known to be in.
So a channel's rate is bound by appends of many publications, not by single writes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import structlog

from service.core.log import Pending, Tail, fill, item_tail
from service.core.log_item import ITEM_PUBLICATIONS_MAX, LogItem
from service.core.protocol import encode_stored
from service.core.publication import Publication, Record, StreamPosition
from service.log.channel_log import Appended, ChannelLog, NotAppended, OutcomeUnknown, record_of
from service.ports import Clock, PortError

__all__ = [
    "LANE_BYTES_MAX",
    "LANE_PUBLICATIONS_MAX",
    "NODE_BYTES_MAX",
    "Appender",
    "Full",
]

# What may wait in one lane: about ten full items. A channel at its ceiling drains that in a second or two.
LANE_PUBLICATIONS_MAX: Final = 5000
LANE_BYTES_MAX: Final = 1280 * 1024
# What may wait on the whole node.
NODE_BYTES_MAX: Final = 64 * 1024 * 1024
# Lanes kept for the tail they know, so that the next append needs no read.
_IDLE_LANES_MAX: Final = 10_000
# Races that one append may lose in a row: each loss means that another node's append went in.
_RACES_MAX: Final = 50
_RACES_BEFORE_RESOLVE: Final = 3


_log = structlog.get_logger(__name__)


class Full(Exception):
    """The lane or the node has no room: not accepted, try later."""


@dataclass(slots=True)
class _Waiting:
    pending: Pending
    publication: Publication
    position: asyncio.Future[StreamPosition]


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

    def submit(
        self, channel: str, publication: Publication, history_ttl_ms: int
    ) -> asyncio.Future[StreamPosition]:
        """Queue `publication`; the future has its position once it is committed.

        Raises Full (not accepted) and Unencodable at once. The future raises NotAppended (known not to be in
        the log) or OutcomeUnknown. Cancelling the future does not take the publication back.
        """
        pending = Pending.of(encode_stored(publication))
        lane = self._lanes.get(channel)
        if lane is None:
            lane = self._lanes[channel] = _Lane()
        self._lanes.move_to_end(channel)
        if (
            len(lane.queue) >= LANE_PUBLICATIONS_MAX
            or lane.bytes + pending.size > LANE_BYTES_MAX
            or self._bytes + pending.size > NODE_BYTES_MAX
        ):
            raise Full("too many publications wait to be appended")
        position: asyncio.Future[StreamPosition] = asyncio.get_running_loop().create_future()
        lane.queue.append(_Waiting(pending, publication, position))
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
        count = fill([waiting.pending for waiting in _front(lane.queue)])
        taken = [lane.queue.popleft() for _ in range(count)]
        try:
            item = await self._commit(channel, lane, [waiting.pending for waiting in taken])
        except asyncio.CancelledError:
            _fail(taken, OutcomeUnknown("the node stopped"))
            raise
        except (NotAppended, OutcomeUnknown) as error:
            _log.warning("append_failed", channel=channel, publications=count, reason=str(error))
            lane.tail = None
            _fail(taken, error)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not leave publishers without an answer
            _log.exception("append_broken", channel=channel, publications=count)
            lane.tail = None
            _fail(taken, OutcomeUnknown(str(error)))
        else:
            self._offer(_record(item, taken))
            for index, waiting in enumerate(taken):
                if not waiting.position.done():
                    waiting.position.set_result(StreamPosition(item.epoch, item.offset + index))
        finally:
            size = sum(waiting.pending.size for waiting in taken)
            lane.bytes -= size
            self._bytes -= size

    async def _commit(self, channel: str, lane: _Lane, publications: list[Pending]) -> LogItem:
        """Raises NotAppended, OutcomeUnknown."""
        for lost in range(_RACES_MAX):
            if lost and lost % _RACES_BEFORE_RESOLVE == 0:
                # Far behind: a read finds the tail sooner than one lost race an item.
                lane.tail = None
            if lane.tail is None or lane.tail.believed_until <= self._clock.now_ms():
                try:
                    lane.tail = (await self._log.resolve(channel)).tail
                except PortError as error:
                    raise NotAppended(str(error)) from error
            outcome = await self._log.append(channel, lane.tail, publications, lane.history_ttl_ms)
            item = outcome.item if isinstance(outcome, Appended) else outcome.holder
            lane.tail = item_tail(item, self._clock.now_ms(), self._generation)
            if isinstance(outcome, Appended):
                return item
            # The winner's item came with the refusal: a free catch-up for local subscribers.
            record = record_of(item)
            if record is not None:
                self._offer(record)
        raise NotAppended(f"lost {_RACES_MAX} races for the next offset")

    def _forget_idle(self) -> None:
        while len(self._lanes) > _IDLE_LANES_MAX:
            oldest = next(iter(self._lanes))
            if self._lanes[oldest].task is not None:
                self._lanes.move_to_end(oldest)
                return
            del self._lanes[oldest]


def _front(queue: deque[_Waiting]) -> list[_Waiting]:
    return list(islice(queue, ITEM_PUBLICATIONS_MAX))


def _record(item: LogItem, taken: list[_Waiting]) -> Record:
    """The committed item as a record, without parsing what this node has just written."""
    publications = tuple(
        Publication(
            data=waiting.publication.data,
            offset=item.offset + index,
            info=waiting.publication.info,
            tags=waiting.publication.tags,
            time=waiting.publication.time,
        )
        for index, waiting in enumerate(taken)
    )
    return Record(item.channel, item.epoch, item.offset, item.last, item.ts, publications)


def _fail(taken: list[_Waiting], error: Exception) -> None:
    for waiting in taken:
        if not waiting.position.done():
            waiting.position.set_exception(error)
            # The publisher may have gone: an outcome that nobody reads is no fault.
            waiting.position.exception()
