"""Event source mapping semantics, after the Lambda developer guide's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.dev.event_source import (
    EventSourceMapping,
    Idle,
    Invoke,
    MappingOptions,
    StreamRecord,
    Wait,
    event_record,
    failure_document,
    is_append,
)

NOW_S = 1_000_000.0


def record(number: int, *, age_s: float = 0.0, size: int = 100) -> StreamRecord:
    return {
        "eventName": "INSERT",
        "dynamodb": {
            "ApproximateCreationDateTime": NOW_S - age_s,
            "Keys": {"channel": {"S": "c"}, "offset": {"N": str(number)}},
            "SequenceNumber": str(number),
            "SizeBytes": size,
        },
    }


def numbers(records: Sequence[StreamRecord]) -> list[int]:
    return [int(each["dynamodb"]["SequenceNumber"]) for each in records]


def failed(*identifiers: Any) -> dict[str, Any]:
    return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in identifiers]}


def mapping_of(count: int, options: MappingOptions | None = None) -> EventSourceMapping:
    mapping = EventSourceMapping(options or MappingOptions(), is_append)
    mapping.add(record(number) for number in range(1, count + 1))
    return mapping


def invoked(mapping: EventSourceMapping, now_s: float = NOW_S) -> list[int]:
    """The records of the next invocation, which must be due at `now_s`."""
    step = mapping.step(now_s)
    assert isinstance(step, Invoke), step
    return numbers(step.records)


def retried(mapping: EventSourceMapping, now_s: float = NOW_S) -> tuple[list[int], float]:
    """The records of the next invocation after its back-off, and when it is."""
    step = mapping.step(now_s)
    assert isinstance(step, Wait), step
    assert step.until_s > now_s
    return invoked(mapping, step.until_s), step.until_s


def test_batches_are_of_the_batch_size_and_in_order() -> None:
    mapping = mapping_of(5, MappingOptions(batch_size=2))
    seen = []
    for _ in range(3):
        seen.append(invoked(mapping))
        mapping.answered(None, NOW_S)
    assert seen == [[1, 2], [3, 4], [5]]
    assert mapping.step(NOW_S) == Idle()


def test_a_batch_stays_below_six_megabytes() -> None:
    mapping = EventSourceMapping(MappingOptions(), is_append)
    mapping.add(record(number, size=3 * 1024 * 1024) for number in (1, 2, 3))
    assert invoked(mapping) == [1, 2]


def test_a_record_larger_than_that_goes_alone() -> None:
    mapping = EventSourceMapping(MappingOptions(), is_append)
    mapping.add(record(number, size=7 * 1024 * 1024) for number in (1, 2))
    assert invoked(mapping) == [1]


def test_the_filter_drops_before_batches_are_formed() -> None:
    mapping = EventSourceMapping(MappingOptions(batch_size=2), is_append)
    mapping.add([record(0), record(1), {**record(2), "eventName": "REMOVE"}, record(3)])
    assert invoked(mapping) == [1, 3]


def test_nothing_that_passes_the_filter_is_idle() -> None:
    mapping = EventSourceMapping(MappingOptions(), is_append)
    mapping.add([record(0)])
    assert mapping.step(NOW_S) == Idle()


@pytest.mark.parametrize(
    "response", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}, {"else": 1}]
)
def test_what_counts_as_complete_success(response: object) -> None:
    mapping = mapping_of(3)
    invoked(mapping)
    mapping.answered(response, NOW_S)
    assert mapping.step(NOW_S) == Idle()


@pytest.mark.parametrize(
    "response",
    [
        failed(""),
        failed(None),
        failed("no such record"),
        failed("2", "no such record"),
        {"batchItemFailures": [{"other": "2"}]},
        {"batchItemFailures": ["2"]},
        "text",
    ],
)
def test_what_counts_as_complete_failure(response: object) -> None:
    mapping = mapping_of(3)
    invoked(mapping)
    mapping.answered(response, NOW_S)
    assert retried(mapping)[0] == [1, 2, 3]


@pytest.mark.parametrize("identifiers", [("3",), ("3", "4"), ("4", "3")])
def test_a_partial_failure_goes_on_from_the_lowest_reported_record(
    identifiers: tuple[str, ...],
) -> None:
    mapping = mapping_of(5)
    invoked(mapping)
    mapping.answered(failed(*identifiers), NOW_S)
    assert retried(mapping)[0] == [3, 4, 5]


def test_no_later_record_overtakes_a_failed_one() -> None:
    mapping = mapping_of(4, MappingOptions(batch_size=2))
    invoked(mapping)
    mapping.answered(failed("2"), NOW_S)
    assert retried(mapping)[0] == [2]


def test_an_error_halves_the_batch_until_the_culprit_is_alone() -> None:
    mapping = mapping_of(4, MappingOptions(retries_max=1))
    now_s = NOW_S
    seen = [invoked(mapping)]
    while not mapping.take_discarded():
        if 3 in seen[-1]:
            mapping.raised(now_s)
            step = mapping.step(now_s)
            assert isinstance(step, (Wait, Invoke))
            if isinstance(step, Wait):
                now_s = step.until_s
                seen.append(invoked(mapping, now_s))
            else:
                seen.append(numbers(step.records))
        else:
            mapping.answered(None, now_s)
            seen.append(invoked(mapping, now_s))
    # Halving did not use up the retry: the culprit alone was tried twice. Then the shard went on.
    assert seen == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [3], [4]]


def test_without_bisecting_the_whole_batch_is_repeated() -> None:
    mapping = mapping_of(4, MappingOptions(bisect_on_error=False))
    invoked(mapping)
    mapping.raised(NOW_S)
    assert retried(mapping)[0] == [1, 2, 3, 4]


def test_retries_without_bound_back_off_up_to_a_bound() -> None:
    options = MappingOptions(backoff_first_s=1, backoff_max_s=4, record_age_max_s=None)
    mapping = mapping_of(1, options)
    now_s = NOW_S
    invoked(mapping)
    waits = []
    for _ in range(100):
        mapping.raised(now_s)
        records, due_s = retried(mapping, now_s)
        assert records == [1]
        waits.append(due_s - now_s)
        now_s = due_s
    assert waits[:4] == [1, 2, 4, 4]
    assert waits[-1] == 4
    assert mapping.take_discarded() == []


def test_success_ends_the_backing_off() -> None:
    mapping = mapping_of(2, MappingOptions(batch_size=1, backoff_first_s=1))
    invoked(mapping)
    mapping.raised(NOW_S)
    _, now_s = retried(mapping)
    mapping.answered(None, now_s)
    assert invoked(mapping, now_s) == [2]


def test_exhausted_retries_go_to_the_on_failure_destination_and_the_shard_goes_on() -> None:
    mapping = mapping_of(3, MappingOptions(batch_size=2, retries_max=2, bisect_on_error=False))
    now_s = NOW_S
    invoked(mapping)
    for _ in range(2):
        mapping.raised(now_s)
        _, now_s = retried(mapping, now_s)
    mapping.raised(now_s)
    assert invoked(mapping, now_s) == [3]
    (discarded,) = mapping.take_discarded()
    assert discarded.condition == "RetryAttemptsExhausted"
    assert discarded.invocations == 3
    assert numbers(discarded.records) == [1, 2]
    assert mapping.take_discarded() == []


def test_too_old_records_are_given_up_before_the_next_attempt() -> None:
    mapping = EventSourceMapping(MappingOptions(record_age_max_s=60), is_append)
    mapping.add([record(1, age_s=50), record(2, age_s=10)])
    assert invoked(mapping) == [1, 2]
    mapping.answered(failed("1"), NOW_S)
    assert invoked(mapping, NOW_S + 20) == [2]
    (discarded,) = mapping.take_discarded()
    assert discarded.condition == "RecordAgeExceeded"
    assert numbers(discarded.records) == [1]


def test_a_shard_of_too_old_records_ends_up_idle() -> None:
    mapping = EventSourceMapping(MappingOptions(batch_size=1, record_age_max_s=60), is_append)
    mapping.add([record(1, age_s=100), record(2, age_s=100)])
    assert mapping.step(NOW_S) == Idle()
    assert [numbers(discarded.records) for discarded in mapping.take_discarded()] == [[1], [2]]


@given(
    count=st.integers(0, 30),
    batch_size=st.integers(1, 8),
    bisect=st.booleans(),
    retries_max=st.none() | st.integers(0, 3),
    choices=st.lists(st.integers(-2, 7), max_size=60),
)
def test_every_record_is_done_with_or_discarded_in_order(
    count: int, batch_size: int, bisect: bool, retries_max: int | None, choices: list[int]
) -> None:
    """Whatever the function does: no record is lost, none is done with before an earlier one."""
    options = MappingOptions(batch_size, bisect_on_error=bisect, retries_max=retries_max)
    mapping = mapping_of(count, options)
    now_s = NOW_S
    settled: list[int] = []
    remaining = iter(choices)
    while not isinstance(step := mapping.step(now_s), Idle):
        settled.extend(
            number for each in mapping.take_discarded() for number in numbers(each.records)
        )
        if isinstance(step, Wait):
            now_s = step.until_s
            continue
        batch = numbers(step.records)
        assert len(batch) <= batch_size
        assert batch[0] == len(settled) + 1
        choice = next(remaining, -1)
        if choice == -2:
            mapping.raised(now_s)
        elif 0 <= choice < len(batch):
            mapping.answered(failed(str(batch[choice])), now_s)
            settled.extend(batch[:choice])
        else:
            mapping.answered(None, now_s)
            settled.extend(batch)
    settled.extend(number for each in mapping.take_discarded() for number in numbers(each.records))
    assert settled == list(range(1, count + 1))


def test_a_record_becomes_what_lambda_sends() -> None:
    made = event_record(
        {
            "eventID": "1",
            "eventName": "INSERT",
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "",
            "dynamodb": {
                "ApproximateCreationDateTime": datetime.fromtimestamp(1_700_000_000, UTC),
                "Keys": {"offset": {"N": "1"}},
                "NewImage": {"raw": {"B": b"\x00\xff"}, "set": {"NS": {"1"}}},
                "SequenceNumber": "1",
            },
        },
        "arn:stream",
        "eu-west-1",
    )
    again = json.loads(json.dumps(made))
    assert again == made
    assert made["dynamodb"]["ApproximateCreationDateTime"] == 1_700_000_000.0
    assert made["dynamodb"]["NewImage"] == {"raw": {"B": "AP8="}, "set": {"NS": ["1"]}}
    assert (made["eventSourceARN"], made["awsRegion"]) == ("arn:stream", "eu-west-1")


def test_the_failure_document_names_the_records() -> None:
    mapping = EventSourceMapping(MappingOptions(retries_max=0, bisect_on_error=False), is_append)
    mapping.add([record(7), record(9)])
    invoked(mapping)
    mapping.raised(NOW_S)
    document = failure_document(mapping.take_discarded()[0], "arn:stream", "shard-1", NOW_S)
    assert json.loads(json.dumps(document)) == document
    assert document["requestContext"] == {
        "condition": "RetryAttemptsExhausted",
        "approximateInvokeCount": 1,
    }
    assert document["timestamp"] == "1970-01-12T13:46:40.000Z"
    info = document["DDBStreamBatchInfo"]
    assert (info["startSequenceNumber"], info["endSequenceNumber"], info["batchSize"]) == (
        "7",
        "9",
        2,
    )
    assert numbers(document["payload"]["Records"]) == [7, 9]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda mapping: mapping.answered(None, NOW_S),
        lambda mapping: (mapping.step(NOW_S), mapping.step(NOW_S)),
    ],
)
def test_one_invocation_at_a_time(misuse: Callable[[EventSourceMapping], object]) -> None:
    with pytest.raises(AssertionError):
        misuse(mapping_of(1))
