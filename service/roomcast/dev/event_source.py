"""Models Lambda's event source mapping for the records of one stream shard, without any I/O.

    mapping = EventSourceMapping(MappingOptions(), is_append)
    mapping.add(records)                 # as read from the shard, in order, once `step` says Idle
    match mapping.step(now_s):           # what to do next
        case Invoke(records): …          # call the function, then `answered` or `raised`
        case Wait(until_s): …            # a retry is due then
        case Idle(): …                   # read more
    mapping.take_discarded()             # what the on-failure destination receives

The rules are those of the Lambda developer guide ("Using AWS Lambda with Amazon DynamoDB"):

- A shard has one batch at a time, strictly in order.
- An error repeats the batch.
- A partial batch response moves the start to the lowest reported sequence number.
- Bisecting halves a failing batch without using up its retries.
- Records that are too old or were tried too often go to the on-failure destination, and the shard
  goes on.

Times are wall clock seconds, because a record's age counts from its ApproximateCreationDateTime.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from roomcast.wire.event_kinds import EVENTS_ATTRIBUTE

__all__ = [
    "Discarded",
    "EventSourceMapping",
    "Idle",
    "Invoke",
    "MappingOptions",
    "StreamRecord",
    "Wait",
    "event_record",
    "failure_document",
    "is_append",
    "is_told",
]

# A stream record in the function's form: only plain JSON values.
StreamRecord = Mapping[str, Any]

# Lambda's limit on the event of one invocation.
_EVENT_BYTES_MAX: Final = 6 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MappingOptions:
    """Parameters of an event source mapping. None = without bound.

    `retries_max` is MaximumRetryAttempts, `record_age_max_s` MaximumRecordAgeInSeconds. AWS does
    not publish the back-off between attempts. This one is short, because a developer waits for it.
    """

    batch_size: int = 100
    bisect_on_error: bool = True
    retries_max: int | None = None
    record_age_max_s: float | None = 3600.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Invoke:
    """Call the function with these records, then call `answered` or `raised`."""

    records: Sequence[StreamRecord]


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before `until_s`: the next attempt backs off."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """No records left: read the shard."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """Records given up on after `invocations` calls. `condition` as AWS names it."""

    condition: str
    invocations: int
    records: Sequence[StreamRecord]


@dataclass(slots=True)
class _Batch:
    records: Sequence[StreamRecord]
    invocations: int = 0
    retries: int = 0


class EventSourceMapping:
    """One shard's records on their way to the function."""

    def __init__(self, options: MappingOptions, accepts: Callable[[StreamRecord], bool]) -> None:
        self._options = options
        self._accepts = accepts
        self._fresh: deque[StreamRecord] = deque()
        # The present batch and, after bisecting, its later parts. The batch size bounds them.
        self._batches: deque[_Batch] = deque()
        self._discarded: list[Discarded] = []
        self._failures_in_a_row = 0
        self._not_before_s = 0.0
        self._invoking = False

    def add(self, records: Iterable[StreamRecord]) -> None:
        """Takes the next records of the shard. The filter drops others, as on AWS."""
        self._fresh.extend(record for record in records if self._accepts(record))

    def step(self, now_s: float) -> Invoke | Wait | Idle:
        """The next action."""
        assert not self._invoking, "one invocation of a shard at a time"
        if not self._batches:
            self._form_batch()
        while self._batches and self._drop_aged(self._batches[0], now_s):
            self._batches.popleft()
            if not self._batches:
                self._form_batch()
        if not self._batches:
            return Idle()
        if now_s < self._not_before_s:
            return Wait(self._not_before_s)
        self._invoking = True
        return Invoke(self._batches[0].records)

    def answered(self, response: object, now_s: float) -> None:
        """The function returned `response`: success, a partial batch response, or an
        invalid one.
        """
        batch = self._invoked()
        done = _records_done(response, batch.records)
        if done == len(batch.records):
            self._batches.popleft()
            self._failures_in_a_row = 0
        elif done > 0:
            # Progress: the remaining records start again with all of their retries.
            self._batches[0] = _Batch(batch.records[done:], batch.invocations)
            self._failures_in_a_row = 0
            self._back_off(now_s)
        else:
            self._retry(batch, now_s)

    def raised(self, now_s: float) -> None:
        """The function raised, timed out, or could not be called."""
        batch = self._invoked()
        if self._options.bisect_on_error and len(batch.records) > 1:
            middle = len(batch.records) // 2
            halves = (batch.records[:middle], batch.records[middle:])
            self._batches.popleft()
            self._batches.extendleft(
                _Batch(half, batch.invocations, batch.retries) for half in reversed(halves)
            )
            self._back_off(now_s)
        else:
            self._retry(batch, now_s)

    def take_discarded(self) -> Sequence[Discarded]:
        """The records given up on since the last call, for the on-failure destination."""
        discarded, self._discarded = self._discarded, []
        return discarded

    def _form_batch(self) -> None:
        records: list[StreamRecord] = []
        used = 0
        while self._fresh and len(records) < self._options.batch_size:
            size = int(self._fresh[0]["dynamodb"].get("SizeBytes", 0))
            if records and used + size > _EVENT_BYTES_MAX:
                break
            records.append(self._fresh.popleft())
            used += size
        if records:
            self._batches.append(_Batch(records))

    def _drop_aged(self, batch: _Batch, now_s: float) -> bool:
        """Discards the records at the front of `batch` that are too old. True = none is left."""
        if self._options.record_age_max_s is None:
            return False
        oldest_s = now_s - self._options.record_age_max_s
        aged = 0
        while aged < len(batch.records) and _created_s(batch.records[aged]) < oldest_s:
            aged += 1
        if aged:
            self._discarded.append(
                Discarded("RecordAgeExceeded", batch.invocations, batch.records[:aged])
            )
            batch.records = batch.records[aged:]
        return not batch.records

    def _invoked(self) -> _Batch:
        assert self._invoking, "nothing was invoked"
        self._invoking = False
        batch = self._batches[0]
        batch.invocations += 1
        return batch

    def _retry(self, batch: _Batch, now_s: float) -> None:
        if self._options.retries_max is not None and batch.retries >= self._options.retries_max:
            self._batches.popleft()
            self._discarded.append(
                Discarded("RetryAttemptsExhausted", batch.invocations, batch.records)
            )
            self._failures_in_a_row = 0
            return
        batch.retries += 1
        self._back_off(now_s)

    def _back_off(self, now_s: float) -> None:
        wait_s = min(
            self._options.backoff_first_s * 2.0 ** min(self._failures_in_a_row, 30),
            self._options.backoff_max_s,
        )
        self._failures_in_a_row += 1
        self._not_before_s = now_s + wait_s


def is_append(record: StreamRecord) -> bool:
    """The filter of the mapping in production: INSERTs, except of a channel's head (offset 0)."""
    return bool(
        record["eventName"] == "INSERT" and record["dynamodb"]["Keys"]["offset"]["N"] != "0"
    )


def is_told(record: StreamRecord) -> bool:
    """The filter of the events Lambda's mappings: what comes or goes with the attribute."""
    change = record["dynamodb"]
    before = EVENTS_ATTRIBUTE in change.get("OldImage", {})
    after = EVENTS_ATTRIBUTE in change.get("NewImage", {})
    return before != after


def event_record(record: Mapping[str, Any], stream_arn: str, region: str) -> StreamRecord:
    """A record of boto3's GetRecords in the function's form: times in s, binaries in base64."""
    plain: StreamRecord = {
        **{name: _plain(value) for name, value in record.items()},
        "eventSource": "aws:dynamodb",
        "awsRegion": region,
        "eventSourceARN": stream_arn,
    }
    return plain


def failure_document(
    discarded: Discarded, stream_arn: str, shard_id: str, now_s: float
) -> dict[str, Any]:
    """The document that AWS writes to an S3 on-failure destination: metadata and the records
    themselves.
    """
    first, last = discarded.records[0], discarded.records[-1]
    return {
        "requestContext": {
            "condition": discarded.condition,
            "approximateInvokeCount": discarded.invocations,
        },
        "version": "1.0",
        "timestamp": _iso(now_s),
        "DDBStreamBatchInfo": {
            "shardId": shard_id,
            "startSequenceNumber": first["dynamodb"]["SequenceNumber"],
            "endSequenceNumber": last["dynamodb"]["SequenceNumber"],
            "approximateArrivalOfFirstRecord": _iso(_created_s(first)),
            "approximateArrivalOfLastRecord": _iso(_created_s(last)),
            "batchSize": len(discarded.records),
            "streamArn": stream_arn,
        },
        "payload": {"Records": list(discarded.records)},
    }


def _records_done(response: object, records: Sequence[StreamRecord]) -> int:
    """The number of records, from the first, that are done.

    The guide's rules for ReportBatchItemFailures:

    - null, {} and an empty or null list are success.
    - An identifier that is missing, empty or not in this batch means that the whole batch failed.
    - Otherwise the lowest identifier is the place to go on.
    """
    if response is None:
        return len(records)
    if not isinstance(response, Mapping):
        return 0
    failures = response.get("batchItemFailures")
    if not failures:
        return len(records)
    positions = {
        record["dynamodb"]["SequenceNumber"]: index for index, record in enumerate(records)
    }
    done = len(records)
    for failure in failures:
        identifier = failure.get("itemIdentifier") if isinstance(failure, Mapping) else None
        if identifier not in positions:
            return 0
        done = min(done, positions[identifier])
    return done


def _created_s(record: StreamRecord) -> float:
    return float(record["dynamodb"]["ApproximateCreationDateTime"])


def _iso(time_s: float) -> str:
    return (
        datetime.fromtimestamp(time_s, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | set | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
