"""Events in calls, and what the function answers where a target does not take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.events.handler import send
from roomcast.events.records import Event
from roomcast.events.targets import (
    CALL_BYTES_MAX,
    CALL_ENTRIES_MAX,
    EVENT_BYTES_MAX,
    NoTarget,
    bodies,
    calls,
    target_of,
)
from roomcast.stream_batch import CALL_S_MAX

BUS = "arn:aws:events:eu-central-1:123456789012:event-bus/back-end"
ENDPOINT = "https://sqs.eu-central-1.amazonaws.com"
QUEUE = f"{ENDPOINT}/123456789012/events"
QUEUE_ARN = "arn:aws:sqs:eu-central-1:123456789012:events"


def event(number: int, data: Any = None, user: str = "ann") -> Event:
    fields = {"id": f"published:room:e:{number}", "type": "published", "user": user, "data": data}
    return Event(fields, str(number), "room")


class Client:
    """A target's client that refuses events by their number."""

    def __init__(self, refused: Sequence[int] = (), fails_at: int = 0) -> None:
        self.meta = SimpleNamespace(endpoint_url=ENDPOINT)
        self.taken: list[Mapping[str, Any]] = []
        self._refused = {f"published:room:e:{number}" for number in refused}
        self._fails_at = fails_at
        self._calls = 0

    def _take(self, text: str) -> bool:
        self._calls += 1
        if self._calls == self._fails_at:
            raise ConnectionError
        detail = json.loads(text)
        if detail["id"] in self._refused:
            return False
        self.taken.append(detail)
        return True

    def put_events(self, *, Entries: list[Any]) -> Any:  # noqa: N803 - as boto3 has it
        assert all(each["Source"] == "roomcast" and each["EventBusName"] == BUS for each in Entries)
        return {
            "Entries": [
                {"EventId": "1"} if self._take(each["Detail"]) else {"ErrorCode": "Throttled"}
                for each in Entries
            ]
        }

    def send_message_batch(
        self,
        *,
        QueueUrl: str,  # noqa: N803 - as boto3 has it
        Entries: list[Any],  # noqa: N803 - as boto3 has it
    ) -> Any:
        assert QueueUrl.startswith(QUEUE)
        answer: dict[str, list[Any]] = {"Successful": [], "Failed": []}
        for each in Entries:
            if self._take(each["MessageBody"]):
                answer["Successful"].append({"Id": each["Id"]})
            else:
                answer["Failed"].append({"Id": each["Id"], "Code": "Throttled"})
        return answer


@given(st.lists(st.integers(0, 2 * EVENT_BYTES_MAX), max_size=25))
def test_every_event_goes_out_once_within_the_bounds(sizes: list[int]) -> None:
    texts = bodies([event(number, "x" * size) for number, size in enumerate(sizes)])
    split = list(calls(texts))
    assert [body for call in split for body in call] == texts
    for call in split:
        assert 1 <= len(call) <= CALL_ENTRIES_MAX
        assert sum(body.size for body in call) <= CALL_BYTES_MAX
    for body, size in zip(texts, sizes, strict=True):
        assert body.truncated == ("truncated" in json.loads(body.text))
        assert body.truncated or len(json.loads(body.text)["data"]) == size


def test_a_user_without_measure_fits_as_well() -> None:
    (body,) = bodies([event(1, user="u" * 2 * EVENT_BYTES_MAX)])
    assert json.loads(body.text) == {
        "id": "published:room:e:1", "type": "published", "user": "", "truncated": True,
    }  # fmt: skip


@pytest.mark.parametrize("name", [BUS, QUEUE, f"{QUEUE}.fifo", QUEUE_ARN, f"{QUEUE_ARN}.fifo"])
def test_what_is_refused_comes_again_and_all_behind_it(name: str) -> None:
    target = target_of(name)
    texts = bodies([event(number) for number in range(1, 25)])
    client = Client(refused=[14, 12])
    outcome = send(client, target, texts)
    assert outcome.failed[:2] == ("12", "14")
    assert set(outcome.failed) == {"12", "14", *map(str, range(21, 25))}
    assert outcome.reason == "Throttled"
    assert outcome.done == len(client.taken) == 18


def test_an_error_at_first_is_raised_and_later_leaves_the_rest() -> None:
    texts = bodies([event(number) for number in range(20)])
    with pytest.raises(ConnectionError):
        send(Client(fails_at=1), target_of(BUS), texts)
    outcome = send(Client(fails_at=11), target_of(BUS), texts)
    assert outcome.done == 10
    assert outcome.failed == tuple(map(str, range(10, 20)))


def test_without_time_no_further_call_is_made() -> None:
    texts = bodies([event(number) for number in range(20)])
    outcome = send(Client(), target_of(BUS), texts, lambda: CALL_S_MAX - 1)
    assert (outcome.done, len(outcome.failed), outcome.reason) == (10, 10, "no time left")


def test_a_fifo_queue_gets_a_group_and_an_id_of_what_it_takes() -> None:
    (body,) = bodies([event(1)])
    entry = target_of(f"{QUEUE}.fifo").entry(0, body)
    assert len(entry["MessageDeduplicationId"]) == len(entry["MessageGroupId"]) == 64
    assert (
        target_of(f"{QUEUE}.fifo").entry(1, body)["MessageDeduplicationId"]
        == (entry["MessageDeduplicationId"])
    )
    assert "MessageGroupId" not in target_of(QUEUE).entry(0, body)


@pytest.mark.parametrize(
    "partition, endpoint",
    [
        ("aws", ENDPOINT),
        ("aws-cn", "https://sqs.cn-north-1.amazonaws.com.cn"),
        ("aws", "http://127.0.0.1:4566/"),
    ],
)
@pytest.mark.parametrize("name", ["events", "events.fifo"])
def test_a_queue_s_url_follows_from_its_arn_in_every_partition(
    partition: str, endpoint: str, name: str
) -> None:
    target = target_of(f"arn:{partition}:sqs:some-region-1:123456789012:{name}")
    assert target.queue_url(endpoint) == f"{endpoint.rstrip('/')}/123456789012/{name}"
    assert (target.is_bus, target.is_fifo) == (False, name.endswith(".fifo"))
    assert target_of(QUEUE).queue_url(endpoint) == QUEUE


@pytest.mark.parametrize("name", ["", "events", "arn:aws:sqs:eu-central-1:1:q", "ftp://a/b"])
def test_another_name_is_no_target(name: str) -> None:
    with pytest.raises(NoTarget):
        target_of(name)
