"""One publishing transaction, from the tails of its channels to its outcome, call by call.

Theory of operation. Each channel gets one log item behind its tail, with the condition of every
append: the offset is free (docs/architecture.md, "Append"). The items go into the application's own
transaction, so all of it is in, or none. An offset that is taken means that nothing was written,
and that the tail must be looked for anew. After a lost answer only the same transaction may follow,
with the same batch: what stands at the offset then tells whether it was ours.

This module does no I/O. `Conversation` says which call comes next, and is told its answer or its
error. service/roomcast/transactions/channels.py carries the calls out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from roomcast.backoff import FROM_NOTHING, Backoff
from roomcast.log.item import (
    HEAD_OFFSET,
    OFFSET_MAX,
    Head,
    LogItem,
    MalformedItem,
    parse_head,
    parse_item,
)
from roomcast.log.rules import (
    Pending,
    Tail,
    append_item,
    head_tail,
    item_tail,
    new_epoch,
    next_head,
)
from roomcast.transactions.verdict import (
    Verdict,
    is_condition_failure,
    reasons_of,
    verdict,
    was_repeated,
)

__all__ = [
    "ACTIONS_MAX",
    "Answer",
    "Call",
    "Conversation",
    "NothingWritten",
    "OutcomeUnknown",
    "Pause",
    "Sources",
    "Step",
    "TailExpired",
    "Wanted",
]

# DynamoDB, TransactWriteItems: "up to 100 actions".
ACTIONS_MAX: Final = 100
# Rotations after which the search for a tail gives up. For each one that it lost, another writer
# has won.
_RESOLVE_ROUNDS_MAX: Final = 8
# The first race that is lost is run again at once: what was known of the tail may have been old.
_BACKOFF: Final = Backoff(0.02, 1.0, FROM_NOTHING)

Answer = Mapping[str, Any] | None
T = TypeVar("T")


class NothingWritten(Exception):
    """Known: neither the application's writes nor the publications are in. Try again."""


class OutcomeUnknown(Exception):
    """Either all of it is in, now or later, or none. The application's own items will tell."""


class TailExpired(Exception):
    """Raised into the conversation: a call came too late to be sent. It was not sent."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of DynamoDB: `operation` as the client's method is called, and its parameters.

    `send_until_ms`: it must not be sent later (wall clock). None = at any time.
    """

    operation: str
    parameters: Mapping[str, Any]
    send_until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """So many seconds."""

    seconds: float


Step = Call | Pause


@dataclass(frozen=True, slots=True)
class Sources:
    """Time, chance and ids. `now_ms`: wall clock. `random`: from [0, 1). `new_id`: 32 characters
    at most, each one different.
    """

    now_ms: Callable[[], int]
    monotonic_s: Callable[[], float]
    random: Callable[[], float]
    new_id: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be written. `writes`: the application's own TransactItems. `channels`: what each
    channel is to get. `node`: who writes, for the log items. `told`: back ends are told of it.
    """

    table: str
    generation: str
    history_ttl_ms: int
    within_s: float
    node: str
    writes: Sequence[Mapping[str, Any]]
    channels: Mapping[str, Sequence[Pending]]
    told: bool = False


class _Lost(Exception):
    """Nothing of this attempt is in, nor will be. Others are ahead in `channels`."""

    def __init__(self, channels: Sequence[str]) -> None:
        super().__init__()
        self.channels = channels


class Conversation:
    """One transaction under way.

    `next` gives the next step. After a call, `answer` or `failure` is set before it is asked again,
    and `sends` with a `failure`: how often the client sent the call by then, as far as known.
    """

    def __init__(self, wanted: Wanted, sources: Sources) -> None:
        self._wanted = wanted
        self._sources = sources
        self._deadline_s = sources.monotonic_s() + wanted.within_s
        self._steps = self._run()
        self.answer: Answer = None
        self.failure: Exception | None = None
        self.sends = 0
        # The log item that each channel got, at the end.
        self.items: Mapping[str, LogItem] = {}

    def next(self) -> Step | None:
        """The next step. None = all is in.

        Raises NothingWritten, OutcomeUnknown, or the client's own error: when a read failed, or
        when the application's own write was refused. Nothing is written then either.
        """
        answer, failure = self.answer, self.failure
        self.answer = self.failure = None
        try:
            return self._steps.send(answer) if failure is None else self._steps.throw(failure)
        except StopIteration:
            return None

    def _run(self) -> Generator[Step, Answer, None]:
        tails: dict[str, Tail] = {}
        losses = 0
        while True:
            for channel in self._wanted.channels:
                if channel not in tails:
                    tails[channel] = yield from self._tail(channel)
            try:
                self.items = yield from self._write(tails)
                return
            except _Lost as lost:
                losses += 1
                for channel in lost.channels:
                    del tails[channel]
            if self._is_late():
                raise NothingWritten(
                    f"others were ahead {losses} times within {self._wanted.within_s:g} s"
                )
            if losses > 1:
                yield Pause(_BACKOFF.pause_s(losses - 1, self._sources.random()))

    # ---- writing

    def _write(self, tails: Mapping[str, Tail]) -> Generator[Step, Answer, Mapping[str, LogItem]]:
        """Try one transaction until its outcome is known.

        Raises _Lost, OutcomeUnknown, or the client's error, when nothing is in.
        """
        batch = self._sources.new_id()
        items = {channel: self._item(channel, tail, batch) for channel, tail in tails.items()}
        call = Call(
            "transact_write_items",
            {
                "TransactItems": [
                    *self._wanted.writes,
                    *({"Put": self._put(item)} for item in items.values()),
                ],
                # The same for each attempt of this transaction, and for no other.
                "ClientRequestToken": batch,
            },
            min(tail.valid_until for tail in tails.values()),
        )
        maybe_in = False
        failures = 0
        while True:
            try:
                yield call
                return items
            except TailExpired as error:
                # The client may have sent it before, and had no answer.
                if maybe_in or self.sends:
                    raise OutcomeUnknown("the tail of a channel is too old to try again") from error
                raise _Lost(list(items)) from error
            except Exception as error:  # the client's, whichever client it is
                maybe_in = maybe_in or self.sends > 1 or was_repeated(error)
                said = verdict(error, sent=self.sends > 0)
                if said is Verdict.CANCELED and (yield from self._is_in(error, items, maybe_in)):
                    return items
                maybe_in = maybe_in or said is Verdict.UNKNOWN
                if not maybe_in:
                    if said is Verdict.REFUSED:
                        raise
                    # It is busy there: mostly with another's write at an offset of ours.
                    raise _Lost(list(items)) from error
                if said in (Verdict.CANCELED, Verdict.REFUSED) or self._is_late():
                    # The application's own condition says no, and an earlier attempt may be late.
                    raise OutcomeUnknown(str(error)) from error
            failures += 1
            yield Pause(_BACKOFF.pause_s(failures, self._sources.random()))

    def _is_in(
        self, error: Exception, items: Mapping[str, LogItem], maybe_in: bool
    ) -> Generator[Step, Answer, bool]:
        """Whether a transaction that was canceled by `error` is in by an earlier attempt.

        False: that cannot be told, as it is `maybe_in`. Raises _Lost, or `error` when the
        application's own write was refused and nothing is in.
        """
        own = len(self._wanted.writes)
        reasons = reasons_of(error, own + len(items))
        if reasons is None:
            if maybe_in:
                return False
            raise error
        ahead = []
        for (channel, item), reason in zip(items.items(), reasons[own:], strict=True):
            if reason.held:
                continue
            try:
                holder = reason.item or (yield from self._get(channel, item.offset))
            except Exception as failure:
                if maybe_in:
                    raise OutcomeUnknown(str(failure)) from failure
                raise
            if (holder or {}).get("batch", {}).get("S") == item.batch:
                return True
            ahead.append(channel)
        if ahead:
            # Who is ahead stays there, so no attempt of ours can get in. If the application's own
            # write was refused as well, it will be again.
            raise _Lost(ahead) from error
        if not maybe_in:
            raise error
        return False

    def _item(self, channel: str, tail: Tail, batch: str) -> LogItem:
        pending = self._wanted.channels[channel]
        if tail.top + len(pending) > OFFSET_MAX:
            raise NothingWritten(f"the log of {channel} has no offsets left")
        return append_item(
            channel,
            tail,
            pending,
            batch=batch,
            node=self._wanted.node,
            now=self._sources.now_ms(),
            history_ttl_ms=self._wanted.history_ttl_ms,
            told=self._wanted.told,
        )

    def _put(self, item: LogItem) -> Mapping[str, Any]:
        return {
            "TableName": self._wanted.table,
            "Item": item.attributes(),
            "ConditionExpression": "attribute_not_exists(#offset)",
            "ExpressionAttributeNames": {"#offset": "offset"},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    # ---- tails

    def _tail(self, channel: str) -> Generator[Step, Answer, Tail]:
        """The channel's tail, by consistent reads. If none is valid, a new epoch begins.

        Raises NothingWritten, or the client's error.
        """
        for _ in range(_RESOLVE_ROUNDS_MAX):
            read_at = self._sources.now_ms()
            found = yield from self._newest(channel)
            newest = found if isinstance(found, LogItem) else None
            now, generation = self._sources.now_ms(), self._wanted.generation
            tail = item_tail(newest, now, generation) if newest else None
            if tail is not None:
                return tail
            head = found if isinstance(found, Head) else (yield from self._head(channel))
            tail = head_tail(head, newest, self._sources.now_ms(), generation)
            if tail is not None:
                return tail
            yield from self._rotate(channel, head, newest, read_at)
        raise NothingWritten(
            f"the tail of {channel} changed {_RESOLVE_ROUNDS_MAX} times while it was looked for"
        )

    def _rotate(
        self, channel: str, head: Head | None, newest: LogItem | None, read_at: int
    ) -> Generator[Step, Answer, None]:
        """Begin an epoch, unless another writer wrote the head meanwhile."""
        epoch = new_epoch(self._wanted.generation, self._sources.new_id())
        rotated = next_head(
            channel, head, newest, epoch=epoch, version=self._sources.new_id(), read_at=read_at
        )
        condition: dict[str, Any] = {
            "ConditionExpression": "attribute_not_exists(#offset)",
            "ExpressionAttributeNames": {"#offset": "offset"},
        }
        if head is not None:
            condition = {
                "ConditionExpression": "#version = :expected",
                "ExpressionAttributeNames": {"#version": "version"},
                "ExpressionAttributeValues": {":expected": {"S": head.version}},
            }
        try:
            yield Call(
                "put_item",
                {"TableName": self._wanted.table, "Item": rotated.attributes(), **condition},
            )
        except Exception as error:
            if not is_condition_failure(error):
                raise

    def _newest(self, channel: str) -> Generator[Step, Answer, LogItem | Head | None]:
        answer = yield Call(
            "query",
            {
                "TableName": self._wanted.table,
                "KeyConditionExpression": "#channel = :channel",
                "ExpressionAttributeNames": {"#channel": "channel"},
                "ExpressionAttributeValues": {":channel": {"S": channel}},
                "ScanIndexForward": False,
                "Limit": 1,
                "ConsistentRead": True,
            },
        )
        found = (answer or {}).get("Items") or []
        return _parsed(parse_item, found[0]) if found else None

    def _head(self, channel: str) -> Generator[Step, Answer, Head | None]:
        found = yield from self._get(channel, HEAD_OFFSET)
        return _parsed(parse_head, found) if found else None

    def _get(
        self, channel: str, offset: int
    ) -> Generator[Step, Answer, Mapping[str, Mapping[str, Any]] | None]:
        answer = yield Call(
            "get_item",
            {
                "TableName": self._wanted.table,
                "Key": {"channel": {"S": channel}, "offset": {"N": str(offset)}},
                "ConsistentRead": True,
            },
        )
        found: Mapping[str, Mapping[str, Any]] | None = (answer or {}).get("Item")
        return found

    def _is_late(self) -> bool:
        return self._sources.monotonic_s() >= self._deadline_s


def _parsed(parse: Callable[[Mapping[str, Mapping[str, Any]]], T], found: Any) -> T:
    """Raises NothingWritten for an item that no writer wrote."""
    try:
        return parse(found)
    except MalformedItem as error:
        raise NothingWritten(f"the log has an item that cannot be read: {error}") from error
