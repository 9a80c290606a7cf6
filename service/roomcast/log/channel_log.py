"""The channel log over the `channels` table: resolves and renews tails, appends, and reads.

The rules are in service/roomcast/log/rules.py. This module follows them over a network: with
bounded retries, lost answers, and writers that lose a race. See docs/architecture.md, "The log".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final, TypeVar

import orjson
import structlog

from roomcast.backoff import FROM_NOTHING, Backoff
from roomcast.frozen import frozen
from roomcast.log.idempotency import key_items, stored_key
from roomcast.log.item import OFFSET_MAX, Head, LogItem
from roomcast.log.ports import ChannelTable, Holders, TailExpired
from roomcast.log.rules import (
    MARGIN_MS,
    Pending,
    Tail,
    append_item,
    contiguous,
    head_tail,
    item_tail,
    new_epoch,
    next_head,
    renewal_due,
)
from roomcast.log.times import Look, Span
from roomcast.ports import Clock, Contended, NewId, PortError, Rejected, Throttled, UnknownOutcome
from roomcast.wire.publication import (
    MalformedPublication,
    Publication,
    Record,
    StreamPosition,
)
from roomcast.wire.trace_context import TraceContext
from roomcast.wire.versions import Version

__all__ = [
    "APPEND_DEADLINE_S",
    "DECODED_A_TURN_BYTES",
    "FOLLOWED_ITEMS_MAX",
    "ITEMS_A_PAGE",
    "READ_DEADLINE_S",
    "Appended",
    "ChannelLog",
    "KeysTaken",
    "Lost",
    "NeverAppended",
    "NotAppended",
    "OffsetsUsedUp",
    "OutcomeUnknown",
    "Postponed",
    "Resolved",
    "decode_publications",
    "not_appended",
    "record_of",
]

# How long one append may be tried. Then its publishers are told that the outcome is not known.
APPEND_DEADLINE_S: Final = 30.0
# How long a read may take. A client may wait for it, whose SDK gives up after 5 s.
READ_DEADLINE_S: Final = 4.0
# Log items in one read. With small publications they are well below DynamoDB's page of 1 MB.
ITEMS_A_PAGE: Final = 100
# Bytes of stored publications that are decoded before other tasks have their turn. One item of 128
# KiB takes up to 10 ms, if its payloads are nested arrays.
DECODED_A_TURN_BYTES: Final = 32 * 1024
# Items that are read behind a known tail. A node that is further behind reads only the newest.
FOLLOWED_ITEMS_MAX: Final = 32
# Rotations after which a resolve gives up. For each one that it lost, another node has won.
_RESOLVE_ROUNDS_MAX: Final = 8
# Pauses are a random part of 25 ms, 50 ms, … up to a second, so that nodes do not come back
# together.
_BACKOFF: Final = Backoff(0.025, 1.0, FROM_NOTHING)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class NotAppended(Exception):
    """Known not to be in the log."""


class NeverAppended(NotAppended):
    """Known not to be in the log.

    The table would refuse it again, so trying once more is no use.
    """


class OffsetsUsedUp(NeverAppended):
    """Known not to be in the log, which has no offset left.

    Appends alone never get there: another program wrote the item.
    """


class OutcomeUnknown(Exception):
    """May be in the log, now or later.

    Only its client may publish it again.
    """


@frozen
class Appended:
    """`item` is in the log."""

    item: LogItem


@dataclass(frozen=True, slots=True)
class Lost:
    """Another append, `holder`, took the offset. Ours is not in the log.

    `holder` None: another write was in progress there, and its outcome is not known.
    """

    holder: LogItem | None


@dataclass(frozen=True, slots=True)
class KeysTaken:
    """Some idempotency keys were used before: none of this append is in the log.

    `positions`: the position of the earlier publication, by key. `holder`: the item that took the
    offset as well, if it is known.
    """

    positions: Mapping[str, StreamPosition]
    holder: LogItem | None


@dataclass(frozen=True, slots=True)
class Postponed:
    """The table throttled the write: ours is not in the log."""

    error: Throttled


@dataclass(frozen=True, slots=True)
class Resolved:
    """A tail that was read. `newest`: the newest log item, if there is one."""

    tail: Tail
    newest: LogItem | None


def not_appended(error: PortError) -> NotAppended:
    """The outcome of an append that failed by `error` and is known not to be in the log."""
    return (NeverAppended if isinstance(error, Rejected) else NotAppended)(str(error))


def _is_in(item: LogItem, holders: Holders) -> bool:
    """Whether `holders` are `item` itself and its keys.

    If so, an earlier attempt succeeded, and its answer was lost.
    """
    winner = holders.item
    return (winner is not None and winner.batch == item.batch) or any(
        key.batch == item.batch for key in holders.keys
    )


def record_of(item: LogItem) -> Record | None:
    """The item as a record for the dispatcher.

    None when its publications are broken. Readers skip them.
    """
    try:
        publications = decode_publications(item.pubs, item.offset)
        if len(publications) != item.last - item.offset + 1:
            raise MalformedPublication("not one publication an offset")
        return Record(item.channel, item.epoch, item.offset, item.last, item.ts, publications)
    except MalformedPublication:
        _log.warning("log_item_broken", channel=item.channel, offset=item.offset)
        return None


def _itself(record: Record) -> Record:
    return record


def _never(_: object) -> bool:
    return False


class _Turn:
    """What one read has decoded since other tasks had their turn."""

    __slots__ = ("_decoded",)

    def __init__(self) -> None:
        self._decoded = 0

    async def keep(self, size: int) -> None:
        """Before `size` bytes are decoded: let others run, if this turn is used up."""
        if self._decoded and self._decoded + size > DECODED_A_TURN_BYTES:
            self._decoded = 0
            await asyncio.sleep(0)
        self._decoded += size


class ChannelLog:
    """All channels' logs, as one node sees them. Holds no state of its own.

    `told`: whether back ends are told what is published in a channel.
    """

    def __init__(
        self,
        table: ChannelTable,
        clock: Clock,
        new_id: NewId,
        random: Callable[[], float],
        *,
        node: str,
        generation: str,
        told: Callable[[str], bool] = _never,
    ) -> None:
        self._table = table
        self._clock = clock
        self._new_id = new_id
        self._random = random
        self.node = node
        self._generation = generation
        self._told = told

    async def resolve(self, channel: str) -> Resolved:
        """The channel's tail, by a consistent read. If no tail is valid, a new epoch begins.

        Raises PortError when the table does not answer within READ_DEADLINE_S.
        """
        deadline = self._clock.monotonic_s() + READ_DEADLINE_S
        for attempt in range(_RESOLVE_ROUNDS_MAX):
            try:
                read_at = self._clock.now_ms()
                newest, head = await self._newest(channel)
                now = self._clock.now_ms()
                tail = item_tail(newest, now, self._generation) if newest else None
                if tail is None:
                    if newest is not None:
                        head = await self._table.head(channel)
                    tail = head_tail(head, newest, now, self._generation)
                if tail is not None:
                    return Resolved(tail, newest)
                rotated = await self._rotate(channel, head, newest, read_at)
                if rotated is not None and head is None and newest is None:
                    # The channel is new. Nobody can have appended before it had a head.
                    return Resolved(
                        Tail(rotated.epoch, 0, rotated.tail_valid_until - MARGIN_MS, 0), None
                    )
            except (Throttled, UnknownOutcome):
                if attempt == _RESOLVE_ROUNDS_MAX - 1 or self._clock.monotonic_s() > deadline:
                    raise
                await self.back_off(attempt)
        raise UnknownOutcome(
            f"the tail of a channel changed {_RESOLVE_ROUNDS_MAX} times while it was looked for"
        )

    async def renew(self, channel: str) -> Resolved:
        """Resolve, and renew the head of a quiet channel before its epoch ends.

        That is when under half of its life remains.
        """
        read_at = self._clock.now_ms()
        resolved = await self.resolve(channel)
        if not renewal_due(resolved.tail, read_at):
            return resolved
        try:
            await self._renew_head(channel, resolved, read_at)
        except PortError as error:
            # The tail is still valid, and hours remain to renew it.
            _log.warning("renewal_failed", channel=channel, reason=str(error))
        return resolved

    async def _renew_head(self, channel: str, resolved: Resolved, read_at: int) -> None:
        head, tail = await self._table.head(channel), resolved.tail
        head_says = head_tail(head, resolved.newest, read_at, self._generation)
        if head_says is not None and not renewal_due(head_says, read_at):
            return
        renewed = next_head(
            channel,
            head,
            resolved.newest,
            epoch=tail.epoch,
            version=self._new_id(),
            read_at=read_at,
        )
        if renewed.floor == tail.top:
            # Another node may win this write, or have appended meanwhile. Either keeps the epoch,
            # too.
            await self._table.put_head(renewed, head.version if head else None)

    async def remove_history(self, channel: str) -> StreamPosition:
        """Hide everything up to the tail from readers.

        Nothing is deleted, so no offset can be used twice.

        Returns the tail's position. Raises PortError.
        """
        for _ in range(_RESOLVE_ROUNDS_MAX):
            read_at = self._clock.now_ms()
            resolved = await self.resolve(channel)
            head = await self.head(channel)
            tail = resolved.tail
            hiding = next_head(
                channel,
                head,
                resolved.newest,
                epoch=tail.epoch,
                version=self._new_id(),
                read_at=read_at,
                trim=tail.top,
            )
            if hiding.floor == tail.top and await self._retried(
                partial(self._table.put_head, hiding, head.version if head else None)
            ):
                return tail.position
        raise UnknownOutcome(
            f"the head of a channel changed {_RESOLVE_ROUNDS_MAX} times while it was written"
        )

    async def append(
        self,
        channel: str,
        tail: Tail,
        publications: Sequence[Pending],
        history_ttl_ms: int,
        *,
        commit_by_ms: int | None = None,
        within_s: float = APPEND_DEADLINE_S,
        trace: TraceContext | None = None,
        newest_version: Version | None = None,
    ) -> Appended | Lost | KeysTaken | Postponed:
        """Append `publications` as one item behind `tail`, unless one of their keys is taken.

        When the outcome of a write is unknown, the same write is tried for `within_s`, until its
        outcome is known. With keys, nothing is sent after `commit_by_ms` (wall clock): a used key
        may have expired by then and look free. `trace`: the span of this append, for the item.
        `newest_version`: of `publications`, none of which is stale behind `tail`; None = none has a
        version.

        Raises NotAppended, OutcomeUnknown. After either, and after Lost with a tail that is not
        valid, the tail must be resolved anew.
        """
        if tail.top + len(publications) > OFFSET_MAX:
            raise OffsetsUsedUp(
                f"the log ends at offset {tail.top}, and there are none beyond {OFFSET_MAX}"
            )
        item = append_item(
            channel,
            tail,
            publications,
            batch=self._new_id(),
            node=self.node,
            now=self._clock.now_ms(),
            history_ttl_ms=history_ttl_ms,
            trace=trace,
            newest_version=newest_version,
            told=self._told(channel),
        )
        if all(each.key is None for each in publications):
            put = partial(self._put, item, tail.valid_until)
        else:
            keys = key_items(item, [each.key for each in publications])
            send_until = (
                tail.valid_until if commit_by_ms is None else min(tail.valid_until, commit_by_ms)
            )
            put = partial(self._table.put_keyed_item, item, keys, send_until)
        holders = await self._known(put, within_s)
        if isinstance(holders, (Lost, Postponed)):
            return holders
        if holders is None or _is_in(item, holders):
            return Appended(item)
        if holders.keys:
            taken = {holder.key: holder.position for holder in holders.keys}
            by_key = {
                each.key: taken.get(stored_key(channel, each.key))
                for each in publications
                if each.key
            }
            return KeysTaken(
                {key: at for key, at in by_key.items() if at is not None}, holders.item
            )
        return Lost(holders.item)

    async def _put(self, item: LogItem, tail_valid_until_ms: int) -> Holders | None:
        holder = await self._table.put_item(item, tail_valid_until_ms)
        return None if holder is None else Holders(holder)

    async def _known(
        self, put: Callable[[], Awaitable[Holders | None]], within_s: float
    ) -> Holders | Lost | Postponed | None:
        """Try a write, and repeat it as long as an earlier attempt may be in the log.

        Raises NotAppended, OutcomeUnknown.
        """
        deadline = self._clock.monotonic_s() + within_s
        maybe_in = False
        attempt = 0
        while True:
            failure: PortError
            try:
                return await put()
            except UnknownOutcome as error:
                maybe_in, failure = True, error
            # With the errors below, this attempt is not in the log; an earlier one may be.
            except Contended as error:
                if not maybe_in:
                    return Lost(None)
                failure = error
            except Throttled as error:
                if not maybe_in:
                    return Postponed(error)
                failure = error
            except (Rejected, TailExpired) as error:
                raise (OutcomeUnknown(str(error)) if maybe_in else not_appended(error)) from error
            if self._clock.monotonic_s() < deadline:
                await self.back_off(attempt)
                attempt += 1
            if self._clock.monotonic_s() >= deadline:
                raise OutcomeUnknown(str(failure)) from failure

    async def follow(self, channel: str, tail: Tail) -> Sequence[LogItem] | None:
        """The items behind `tail`, ascending and without a hole.

        None = there are too many, or another epoch began: the caller must resolve.

        Raises PortError when the table does not answer within READ_DEADLINE_S.
        """
        page = await self._retried(
            partial(self._table.read_behind, channel, tail.top, FOLLOWED_ITEMS_MAX)
        )
        run = contiguous(page.items, tail.epoch)
        whole = len(run) == len(page.items) and not page.more
        return run if whole and (not run or run[0].offset == tail.top + 1) else None

    async def read_after(
        self, channel: str, epoch: str, after: int, publications_max: int
    ) -> list[Record]:
        """The records of `epoch` behind offset `after`; see `forms_after`. Raises PortError."""
        return await self.forms_after(_itself, channel, epoch, after, publications_max)

    async def forms_after(
        self,
        form: Callable[[Record], T],
        channel: str,
        epoch: str,
        after: int,
        publications_max: int,
        is_enough: Callable[[T], bool] = _never,
    ) -> list[T]:
        """The records of `epoch` behind offset `after`, each in the form that `form` makes of it.

        They are ascending, and have no hole behind the first one. Each is made as soon as its item
        is decoded, so that few decoded payloads are kept at once.

        The read stops with the page that has the last of `publications_max` publications, and at
        once with a form that `is_enough`, which is asked of each in turn. The first record may
        begin at or before `after`, or beyond `after` + 1 when the log has a hole there. Raises
        PortError.
        """
        forms: list[T] = []
        turn = _Turn()
        start, count, last = after + 1, 0, 0
        while count < publications_max:
            page = await self._retried(
                partial(self._table.read_forward, channel, start, ITEMS_A_PAGE)
            )
            for item in page.items:
                if item.epoch != epoch or (forms and item.offset != last + 1):
                    return forms
                await turn.keep(len(item.pubs))
                record = record_of(item)
                if record is None:
                    return forms
                forms.append(form(record))
                if is_enough(forms[-1]):
                    return forms
                last = item.last
                count += item.last - item.offset + 1
            if not page.more or not page.items:
                break
            start = page.items[-1].last + 1
        return forms

    async def forms_before(
        self,
        form: Callable[[Record], T],
        channel: str,
        epoch: str,
        top: int,
        publications_max: int,
        bytes_max: float = inf,
    ) -> list[T]:
        """The run of `epoch` that ends at offset `top`, ascending, as in `forms_after`.

        It has at least the last `publications_max` publications of the run, or the last `bytes_max`
        stored bytes. Raises PortError.
        """
        items: list[LogItem] = []
        end, count, size = top, 0, 0
        while count < publications_max and size < bytes_max and end >= 1:
            page = await self._retried(
                partial(
                    self._table.read_backward,
                    channel,
                    end,
                    # An item has one publication at least.
                    min(ITEMS_A_PAGE, publications_max - count),
                )
            )
            run = contiguous((*page.items, *items), epoch)
            items = list(run)
            if len(run) < len(page.items) or not page.more or not page.items:
                break
            count = sum(item.last - item.offset + 1 for item in items)
            size = sum(len(item.pubs) for item in items)
            end = items[0].offset - 1
        forms: list[T] = []
        turn = _Turn()
        size = 0
        # From the newest on: what is beyond `bytes_max`, or behind a broken item, is not decoded.
        for item in reversed(items):
            if size >= bytes_max:
                break
            await turn.keep(len(item.pubs))
            record = record_of(item)
            if record is None:
                break
            forms.append(form(record))
            size += len(item.pubs)
        forms.reverse()
        return forms

    async def read_at(self, channel: str, epoch: str, offset: int) -> Record | None:
        """The record of `epoch` with `offset`, if the log has it and it is not broken.

        Raises PortError.
        """
        page = await self._retried(partial(self._table.read_forward, channel, offset, 1))
        if not page.items or page.items[0].offset > offset or page.items[0].epoch != epoch:
            return None
        return record_of(page.items[0])

    async def spans(self, channel: str, epoch: str, look: Look) -> list[Span]:
        """The items of `epoch` that `look` asks for; what they hold is not decoded.

        Raises PortError.
        """
        if look.items_max == 1:
            # One query, where reading forward takes two.
            read = partial(self._table.read_backward, channel, look.offset, 1)
        else:
            read = partial(self._table.read_forward, channel, look.offset, look.items_max)
        run: list[Span] = []
        following = look.offset
        for item in (await self._retried(read)).items:
            is_next = item.offset == following if run else item.offset <= following <= item.last
            if item.epoch != epoch or not is_next:
                break
            run.append(Span(item.offset, item.last, item.ts))
            following = item.last + 1
        return run

    async def head(self, channel: str) -> Head | None:
        """The channel's head, which tells what was trimmed. Raises PortError."""
        return await self._retried(partial(self._table.head, channel))

    async def key_position(self, channel: str, key: str) -> StreamPosition | None:
        """The position of the publication that was made with `key` in the channel, if any.

        Raises PortError.
        """
        item = await self._retried(partial(self._table.key, stored_key(channel, key)))
        return item.position if item is not None else None

    async def _newest(self, channel: str) -> tuple[LogItem | None, Head | None]:
        newest = await self._table.newest(channel)
        if isinstance(newest, LogItem):
            return newest, None
        return None, newest

    async def _rotate(
        self, channel: str, head: Head | None, newest: LogItem | None, read_at: int
    ) -> Head | None:
        """Begin an epoch. None = another node wrote the head meanwhile."""
        epoch = new_epoch(self._generation, self._new_id())
        rotated = next_head(
            channel, head, newest, epoch=epoch, version=self._new_id(), read_at=read_at
        )
        if not await self._table.put_head(rotated, head.version if head else None):
            return None
        if head or newest:
            _log.info("epoch_rotated", channel=channel, floor=rotated.floor)
        return rotated

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        deadline = self._clock.monotonic_s() + READ_DEADLINE_S
        attempt = 0
        while True:
            try:
                return await call()
            except (Throttled, UnknownOutcome):
                if self._clock.monotonic_s() > deadline:
                    raise
            await self.back_off(attempt)
            attempt += 1

    async def back_off(self, attempt: int) -> None:
        """Wait before another attempt of a failed call or a lost race. `attempt` counts from 0."""
        await asyncio.sleep(_BACKOFF.pause_s(attempt + 1, self._random()))


def decode_publications(pubs: str, offset: int) -> tuple[Publication, ...]:
    """The publications of a log item whose first has `offset`. Raises MalformedPublication."""
    try:
        stored = orjson.loads(pubs)
    except orjson.JSONDecodeError as error:
        raise MalformedPublication("pubs is not JSON") from error
    if not isinstance(stored, list):
        raise MalformedPublication("pubs is not an array")
    return tuple(
        Publication.from_stored(entry, offset + index) for index, entry in enumerate(stored)
    )
