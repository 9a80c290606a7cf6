"""The pump between a stream and the function: shards and their order,
and what it does when reading fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from roomcast.dev.event_source import MappingOptions
from roomcast.dev.stream_pump import StreamPump


class Trimmed(Exception):
    """In place of the client's TrimmedDataAccessException."""


class FakeStreams:
    """DynamoDB Streams' client over shards in memory; one shard a page.
    Iterators are "shard/position".
    """

    exceptions = SimpleNamespace(TrimmedDataAccessException=Trimmed)

    def __init__(self) -> None:
        self.shards: dict[str, dict[str, Any]] = {}
        self.trimmed = False
        self.failing = False
        self.positions: list[str] = []

    def add_shard(
        self, shard_id: str, *offsets: int, parent: str = "", closed: bool = False
    ) -> None:
        self.shards[shard_id] = {"parent": parent, "offsets": list(offsets), "closed": closed}

    def describe_stream(self, **request: str) -> dict[str, Any]:
        ids = list(self.shards)
        start = request.get("ExclusiveStartShardId")
        index = ids.index(start) + 1 if start else 0
        shard: dict[str, Any] = {"ShardId": ids[index]}
        if self.shards[ids[index]]["parent"]:
            shard["ParentShardId"] = self.shards[ids[index]]["parent"]
        page: dict[str, Any] = {"Shards": [shard]}
        if index + 1 < len(ids):
            page["LastEvaluatedShardId"] = ids[index]
        return {"StreamDescription": page}

    def get_shard_iterator(self, **request: str) -> dict[str, str]:
        self.positions.append(request["ShardIteratorType"])
        after = 0
        if request["ShardIteratorType"] == "AFTER_SEQUENCE_NUMBER":
            if self.trimmed:
                raise Trimmed
            offsets = self.shards[request["ShardId"]]["offsets"]
            after = offsets.index(int(request["SequenceNumber"])) + 1
        return {"ShardIterator": f"{request['ShardId']}/{after}"}

    def get_records(self, **request: Any) -> dict[str, Any]:
        if self.failing:
            raise ClientError({"Error": {"Code": "ExpiredIteratorException"}}, "GetRecords")
        shard_id, _, position = request["ShardIterator"].partition("/")
        shard = self.shards[shard_id]
        start, end = int(position), int(position) + request["Limit"]
        answer: dict[str, Any] = {
            "Records": [self._record(offset) for offset in shard["offsets"][start:end]]
        }
        if not (shard["closed"] and end >= len(shard["offsets"])):
            answer["NextShardIterator"] = f"{shard_id}/{min(end, len(shard['offsets']))}"
        return answer

    @staticmethod
    def _record(offset: int) -> dict[str, Any]:
        return {
            "eventName": "INSERT",
            "dynamodb": {
                "ApproximateCreationDateTime": 1.0,
                "Keys": {"offset": {"N": str(offset)}},
                "SequenceNumber": str(offset),
            },
        }


class Function:
    """Notes the offsets it got; raises for the first `failures` invocations."""

    def __init__(self, failures: int = 0) -> None:
        self.batches: list[list[int]] = []
        self.failures = failures

    def __call__(self, event: Mapping[str, Any], context: object) -> object:
        self.batches.append([int(each["dynamodb"]["SequenceNumber"]) for each in event["Records"]])
        if len(self.batches) <= self.failures:
            raise RuntimeError("no")
        return None


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def pump_of(
    streams: FakeStreams, function: Function, clock: Clock, options: MappingOptions | None = None
) -> tuple[StreamPump, list[Mapping[str, Any]]]:
    failures: list[Mapping[str, Any]] = []
    pump = StreamPump(
        streams, "arn", "us-east-1", function, failures.append, options or MappingOptions(), clock
    )
    return pump, failures


def drain(pump: StreamPump) -> None:
    for _ in range(100):
        if not pump.turn():
            return
    raise AssertionError("the pump is never idle")


def test_everything_since_the_oldest_record_is_delivered_once() -> None:
    streams, function = FakeStreams(), Function()
    streams.add_shard("s", *range(1, 8))
    pump, _ = pump_of(
        streams, function, Clock(), MappingOptions(batch_size=3, record_age_max_s=None)
    )
    drain(pump)
    streams.shards["s"]["offsets"] += [8]
    drain(pump)
    assert function.batches == [[1, 2, 3], [4, 5, 6], [7], [8]]
    assert streams.positions == ["TRIM_HORIZON"]


def test_children_wait_for_their_parent() -> None:
    streams, function, clock = FakeStreams(), Function(failures=1), Clock()
    streams.add_shard("child", 3, 4, parent="parent")
    streams.add_shard("parent", 1, 2, closed=True)
    pump, _ = pump_of(
        streams, function, clock, MappingOptions(bisect_on_error=False, record_age_max_s=None)
    )
    drain(pump)
    assert function.batches == [[1, 2]]  # read to its end, but not delivered
    clock.now_s += 1
    drain(pump)
    assert function.batches == [[1, 2], [1, 2], [3, 4]]


def test_a_shard_that_comes_later_is_found() -> None:
    streams, function, clock = FakeStreams(), Function(), Clock()
    streams.add_shard("s", 1)
    pump, _ = pump_of(streams, function, clock, MappingOptions(record_age_max_s=None))
    drain(pump)
    streams.add_shard("t", 2)
    drain(pump)
    assert function.batches == [[1]]
    clock.now_s += 60
    drain(pump)
    assert function.batches == [[1], [2]]


def test_a_failed_read_backs_off_and_goes_on_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    streams, function, clock = FakeStreams(), Function(), Clock()
    streams.add_shard("s", 1, 2)
    pump, _ = pump_of(streams, function, clock, MappingOptions(record_age_max_s=None))
    drain(pump)
    streams.failing = True
    for _ in range(5):
        assert not pump.turn()
        clock.now_s += 10
    assert len(caplog.records) == 1  # told once, not for every attempt
    streams.failing = False
    streams.shards["s"]["offsets"] += [3]
    drain(pump)
    assert function.batches == [[1, 2], [3]]
    assert streams.positions[-1] == "AFTER_SEQUENCE_NUMBER"


def test_a_pump_that_slept_too_long_goes_on_with_the_oldest_record_there_is() -> None:
    streams, function, clock = FakeStreams(), Function(), Clock()
    streams.add_shard("s", 1)
    pump, _ = pump_of(streams, function, clock, MappingOptions(record_age_max_s=None))
    drain(pump)
    streams.failing = True
    pump.turn()
    streams.failing = False
    streams.trimmed = True
    streams.shards["s"]["offsets"] = [5, 6]
    clock.now_s += 10
    drain(pump)
    assert function.batches == [[1], [5, 6]]


def test_what_is_given_up_on_reaches_the_destination() -> None:
    streams, function, clock = FakeStreams(), Function(failures=1), Clock()
    streams.add_shard("s", 1, 2)
    options = MappingOptions(retries_max=0, bisect_on_error=False, record_age_max_s=None)
    pump, failures = pump_of(streams, function, clock, options)
    drain(pump)
    assert [document["requestContext"]["condition"] for document in failures] == [
        "RetryAttemptsExhausted"
    ]
    assert failures[0]["DDBStreamBatchInfo"]["shardId"] == "s"
