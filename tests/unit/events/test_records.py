"""What stream records mean: events with ids of their own, and touches of channels."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.aws.presence import entry_item
from roomcast.events.records import plan
from roomcast.log.item import LogItem
from roomcast.presence.ports import Member
from roomcast.wire.event_kinds import CHANNEL_KINDS, MalformedMark, Mark, connections_of
from roomcast.wire.publication import ClientInfo, Publication

INFO = ClientInfo("ann", "c1", {"name": "Ann"}, None)
KEYS = ("key", "member", "channel", "offset")
KINDS = ("joined", "left", "occupied")


def entry(
    channel: str = "room", kinds: tuple[str, ...] = KINDS, write: int = 5, *, again: bool = False
) -> Any:
    item = entry_item(channel, Member("n1", INFO, 7, again), 1, kinds)
    return {**item, "write": {"N": str(write)}}


def record(before: Any, after: Any, sequence: str = "1") -> Any:
    some = before or after
    change = {
        "Keys": {name: some[name] for name in KEYS if name in some},
        "SequenceNumber": sequence,
        "ApproximateCreationDateTime": 1700000000.0,
        **({"OldImage": before} if before else {}),
        **({"NewImage": after} if after else {}),
    }
    name = "MODIFY" if before and after else "INSERT" if after else "REMOVE"
    return {"eventName": name, "dynamodb": change}


def told(*records: Any) -> list[dict[str, Any]]:
    planned = plan({"Records": records})
    assert not planned.skipped
    return [dict(event.fields) for event in planned.events]


def test_an_entry_comes_and_goes() -> None:
    came, left = told(record(None, entry()), record(entry(), None))
    assert came == {
        "id": "joined:n1:5",
        "type": "joined",
        "time_ms": 1700000000000,
        "channel": "room",
        "user": "ann",
        "client": "c1",
        "conn_info": {"name": "Ann"},
        "node": "n1",
        "since_ms": 7,
    }
    assert left == came | {"id": "left:n1:5", "type": "left"}


def test_who_is_kept_out_has_left_and_a_change_is_nothing() -> None:
    nobody = {name: entry()[name] for name in ("key", "member", "write")}
    assert [event["type"] for event in told(record(entry(), nobody))] == ["left"]
    assert [event["type"] for event in told(record(nobody, entry()))] == ["joined"]
    assert not told(record(nobody, None), record(entry(), entry(write=6)))


def test_a_moved_entry_tells_no_leave_and_the_next_one_says_again() -> None:
    old = entry() | {"moved": {"BOOL": True}}
    planned = plan({"Records": [record(old, None)]})
    assert not planned.events
    assert [touch.came for touch in planned.touches] == [False], "the channel is looked at"
    (again,) = told(record(None, entry(again=True)))
    assert again["again"] is True


def test_occupancy_is_its_states_coming_and_going() -> None:
    state = {
        "key": {"S": "occupancy#room#ann"},
        "member": {"S": "state"},
        "occupation": {"S": "o1"},
        "events": {"S": Mark(("occupied", "vacated")).text()},
    }
    occupied, vacated = told(record(None, state), record(state, None))
    assert (occupied["id"], occupied["channel"]) == ("occupied:o1", "room#ann")
    assert vacated["id"] == "vacated:o1"
    assert not told(record(state, state))


def test_a_connection_has_no_channel() -> None:
    channel = connections_of("n1")
    kinds = ("connected", "disconnected")
    planned = plan({"Records": [record(None, entry(channel, kinds))]})
    (event,) = planned.events
    assert event.fields["type"] == "connected"
    assert "channel" not in event.fields
    assert event.group == "c1"
    assert not planned.touches


@pytest.mark.parametrize("told_of", [True, False])
def test_a_log_item_is_told_when_it_is_marked(told_of: bool) -> None:
    pubs = [Publication({"n": 1}, tags={"a": "b"}).stored(), Publication(b"\0", info=INFO).stored()]
    item = LogItem("room", 4, 5, "e", json.dumps(pubs), "b", "n", 9, 99, told=told_of)
    events = told(record(None, item.attributes()))
    if not told_of:
        assert not events
        return
    assert [event["id"] for event in events] == ["published:room:e:4", "published:room:e:5"]
    assert events[0] | {"id": ""} == {
        "id": "", "type": "published", "time_ms": 9, "channel": "room", "epoch": "e", "offset": 4,
        "data": {"n": 1}, "tags": {"a": "b"},
    }  # fmt: skip
    assert events[1]["b64data"] == "AA=="
    assert events[1]["info"] == INFO.wire()


def test_a_damaged_record_is_skipped_and_the_others_are_told() -> None:
    broken = entry() | {"events": {"S": "["}}
    planned = plan({"Records": [record(None, broken), {}, record(None, entry(), "2")]})
    assert [event.sequence for event in planned.events] == ["2"]
    assert planned.skipped == {"MalformedMark": 1, "KeyError": 1}


@given(st.lists(st.sampled_from(CHANNEL_KINDS), unique=True), st.integers(0, 2**53), st.booleans())
def test_a_mark_says_what_it_said(kinds: list[str], since_ms: int, again: bool) -> None:
    mark = Mark(tuple(kind for kind in CHANNEL_KINDS if kind in kinds), since_ms, again)
    assert Mark.parse(mark.text()) == mark


@given(st.text() | st.sampled_from(["[]", "1", '{"kinds":1}', "null", '{"kinds":[],"since":{}}']))
def test_any_other_text_is_no_mark(text: str) -> None:
    with pytest.raises(MalformedMark):
        Mark.parse(text)


def test_the_function_needs_no_library_but_the_runtimes() -> None:
    """The zip is built without any."""
    code = (
        "import sys, roomcast.events.handler; "
        "print(sorted({'aiohttp', 'aioboto3', 'orjson', 'structlog'} & set(sys.modules)))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert seen.stdout.strip() == "[]"
