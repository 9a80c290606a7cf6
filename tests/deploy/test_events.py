"""The events Lambda in deploy/template.yaml: its filters let through what it tells and no more, it
may do what it does and no more, and without a target there is none of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import pytest

from roomcast.aws.presence import channel_key, entry_item, member_key, node_key
from roomcast.dev.event_source import MappingOptions, is_told
from roomcast.events.records import OCCUPANCY, plan
from roomcast.events.targets import NoTarget, target_of
from roomcast.log.item import LogItem
from roomcast.presence.ports import Member
from roomcast.stream_batch import CALL_S_MAX
from roomcast.wire.event_kinds import CHANNEL_KINDS, CONNECTION_KINDS, Mark, connections_of
from roomcast.wire.publication import ClientInfo, Publication
from tests.deploy.cloudformation import DATA, ROOT, imported, load, matches, references, statements
from tests.deploy.iam import Call, allowed
from tests.deploy.test_template import NOT_OURS, PARAMETERS, RESOURCES, TEMPLATE, evaluated, role

BUS: Final = "arn:aws:events:eu-central-1:123456789012:event-bus/back-end"
QUEUE: Final = "arn:aws:sqs:eu-central-1:123456789012:events"
PRESENCE, CHANNELS = "PresenceEventsMapping", "PublishedEventsMapping"
MAPPINGS: Final = {PRESENCE: "PresenceStreamArn", CHANNELS: "ChannelsStreamArn"}
INFO: Final = ClientInfo("ann", "c1", {"name": "Ann"}, None)
Image = Mapping[str, Any]


# ---- filters


def filters(mapping: str) -> list[dict[str, Any]]:
    criteria = RESOURCES[mapping]["Properties"]["FilterCriteria"]["Filters"]
    # As many as Lambda takes.
    assert 0 < len(criteria) <= 5
    return [json.loads(each["Pattern"]) for each in criteria]


def passes(mapping: str, record: Mapping[str, Any]) -> bool:
    return any(matches(pattern, record) for pattern in filters(mapping))


def record(before: Image | None, after: Image | None) -> dict[str, Any]:
    """A record as the streams have it, with both images."""
    some = after or before or {}
    change = {
        "ApproximateCreationDateTime": 1700000000.0,
        "Keys": {
            name: some[name] for name in ("key", "member", "channel", "offset") if name in some
        },
        "SequenceNumber": "1",
        "StreamViewType": "NEW_AND_OLD_IMAGES",
        **({"NewImage": after} if after else {}),
        **({"OldImage": before} if before else {}),
    }
    name = "MODIFY" if before and after else "INSERT" if after else "REMOVE"
    return {"eventName": name, "eventVersion": "1.1", "dynamodb": change}


def entry(channel: str, *kinds: str, write: int = 5) -> Image:
    return {**entry_item(channel, Member("n1", INFO, 7), 1, kinds), "write": {"N": str(write)}}


def appended(*, told: bool) -> Image:
    pubs = json.dumps([Publication({"n": 1}).stored()])
    return LogItem("room", 4, 4, "e", pubs, "b", "n", 9, 99, told=told).attributes()


WANTED: Final = entry("room", *CHANNEL_KINDS)
CONNECTION: Final = entry(connections_of("n1"), *CONNECTION_KINDS)
UNWANTED: Final = entry("room")
NOBODY: Final = {name: WANTED[name] for name in ("key", "member", "write")}
MOVED: Final = {**WANTED, "moved": {"BOOL": True}}
STATE: Final = {
    "key": {"S": f"{OCCUPANCY}#room"},
    "member": {"S": "state"},
    "occupation": {"S": "o1"},
    "touched": {"N": "1"},
    "partitions": {"SS": ["channel#room"]},
    "events": {"S": Mark(("occupied", "vacated")).text()},
}
SHARDS: Final = {
    "key": {"S": channel_key("room", 0)},
    "member": {"S": member_key("n1", "")},
    "shards": {"N": "4"},
    "write": {"N": "1"},
}
OF_NODE: Final = {"key": {"S": node_key("n1")}, "member": {"S": "room"}, "write": {"N": "1"}}


@pytest.mark.parametrize(
    "before, after",
    [
        (None, WANTED),
        (WANTED, None),
        (MOVED, None),
        (WANTED, NOBODY),
        (NOBODY, WANTED),
        (None, CONNECTION),
        (CONNECTION, None),
        (None, STATE),
        (STATE, None),
    ],
)
def test_what_comes_and_goes_and_is_wanted_passes(
    before: Image | None, after: Image | None
) -> None:
    each = record(before, after)
    planned = plan({"Records": [each]})
    assert planned.events or planned.touches
    assert not planned.skipped
    assert passes(PRESENCE, each)
    assert is_told(each)


@pytest.mark.parametrize(
    "before, after",
    [
        (None, UNWANTED),
        (UNWANTED, None),
        (UNWANTED, NOBODY),
        (None, NOBODY),
        (NOBODY, None),
        (WANTED, entry("room", *CHANNEL_KINDS, write=6)),
        (WANTED, MOVED),
        (STATE, {**STATE, "touched": {"N": "2"}}),
        (None, SHARDS),
        (SHARDS, {**SHARDS, "write": {"N": "2"}}),
        (SHARDS, None),
        (None, OF_NODE),
        (OF_NODE, None),
    ],
)
def test_nothing_else_of_the_presence_table_is_paid_for(
    before: Image | None, after: Image | None
) -> None:
    each = record(before, after)
    planned = plan({"Records": [each]})
    assert not planned.events
    assert not planned.touches
    assert not passes(PRESENCE, each)
    assert not is_told(each)


@pytest.mark.parametrize("told", [True, False])
def test_only_marked_appends_pass(told: bool) -> None:
    came, gone = record(None, appended(told=told)), record(appended(told=told), None)
    assert passes(CHANNELS, came) is told
    assert bool(plan({"Records": [came]}).events) is told
    # What TTL removes.
    assert not passes(CHANNELS, gone)
    head = {"channel": {"S": "room"}, "offset": {"N": "0"}, "epoch": {"S": "e"}}
    assert not passes(CHANNELS, record(None, head))
    assert not passes(CHANNELS, record(head, {**head, "last": {"N": "1"}}))


def test_the_filters_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    documented = [
        json.loads(line) for line in re.findall(r'^\{"eventName".*\}$', text, re.MULTILINE)
    ]
    assert filters(PRESENCE) == documented
    assert filters(CHANNELS) == documented[:1]


def test_the_matcher_asks_exists_of_leaves_as_aws_does() -> None:
    there, absent = ({"a": {"b": [{"exists": asked}]}} for asked in (True, False))
    for full in ({"a": {"b": "x"}}, {"a": {"b": ""}}):
        assert matches(there, full)
        assert not matches(absent, full)
    none: list[dict[str, Any]] = [{"a": {"c": "x"}}, {"a": {}}, {}]
    for empty in none:
        assert not matches(there, empty)
        assert matches(absent, empty)
    with pytest.raises(NotImplementedError):
        matches({"a": [{"prefix": "x"}]}, {"a": "x"})


# ---- mappings


@pytest.mark.parametrize("name, stream", MAPPINGS.items())
def test_a_mapping_is_that_of_the_development_set_up(name: str, stream: str) -> None:
    mapping, ours = RESOURCES[name]["Properties"], MappingOptions()
    assert mapping["EventSourceArn"] == imported(stream)
    assert mapping["BatchSize"] == ours.batch_size
    assert mapping["BisectBatchOnFunctionError"] is ours.bisect_on_error
    assert (ours.retries_max, mapping["MaximumRetryAttempts"]) == (None, -1)
    assert mapping["MaximumRecordAgeInSeconds"] == ours.record_age_max_s
    assert mapping["StartingPosition"] == "TRIM_HORIZON"
    assert mapping["ParallelizationFactor"] == 1
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["FunctionName"] == {"Ref": "EventsLambda"}
    destination = mapping["DestinationConfig"]["OnFailure"]["Destination"]
    assert destination == {"Fn::GetAtt": ["FailureBucket", "Arn"]}


def test_it_has_time_for_a_call_that_hangs() -> None:
    assert RESOURCES["EventsLambda"]["Properties"]["Timeout"] > 2 * CALL_S_MAX


def test_the_presence_table_s_stream_is_lent_with_both_images() -> None:
    kept = load(DATA)
    table = kept["Resources"]["PresenceTable"]["Properties"]
    assert table["StreamSpecification"] == {"StreamViewType": "NEW_AND_OLD_IMAGES"}
    lent = kept["Outputs"]["PresenceStreamArn"]["Value"]
    assert lent == {"Fn::GetAtt": ["PresenceTable", "StreamArn"]}


# ---- target


@pytest.mark.parametrize("target", [BUS, QUEUE, f"{QUEUE}.fifo", QUEUE.replace("aws", "aws-cn")])
def test_a_target_is_what_the_function_takes(target: str) -> None:
    assert re.fullmatch(PARAMETERS["EventsTargetArn"]["AllowedPattern"], target)
    told = evaluated(TEMPLATE, "chat", EventsTargetArn=target).properties("EventsLambda")
    assert target_of(told["Environment"]["Variables"]["ROOMCAST_EVENTS_TARGET"])
    assert told["Environment"]["Variables"]["ROOMCAST_PRESENCE_TABLE"] == "roomcast-presence"


@pytest.mark.parametrize(
    "target",
    ["x", "arn:aws:sns:eu-central-1:123456789012:topic", f"{QUEUE}*", f"{BUS}*", f"{QUEUE},{BUS}"],
)
def test_nothing_else_is_a_target(target: str) -> None:
    assert not re.fullmatch(PARAMETERS["EventsTargetArn"]["AllowedPattern"], target)
    with pytest.raises(NoTarget):
        target_of(target)


def test_without_a_target_there_is_none_of_it() -> None:
    without = evaluated(TEMPLATE, "chat")
    more = evaluated(TEMPLATE, "chat", EventsTargetArn=BUS).resources() - without.resources()
    assert {"EventsLambda", "EventsRole", "EventsLogs", *MAPPINGS} < more
    assert more == {
        name for name, each in RESOURCES.items() if each.get("Condition") == "HasEvents"
    }
    # A data stack of before need not lend its stream to whoever wants none.
    assert "PresenceStreamArn" not in str([RESOURCES[name] for name in without.resources()])


def test_every_part_that_can_fail_has_an_alarm_that_is_there_with_it() -> None:
    watched = {
        (each["Properties"]["MetricName"], str(references(each["Properties"]["Dimensions"])))
        for each in RESOURCES.values()
        if each["Type"] == "AWS::CloudWatch::Alarm" and each.get("Condition") == "HasEvents"
    }
    assert watched == {
        ("IteratorAge", "{'EventsLambda'}"),
        ("Errors", "{'EventsLambda'}"),
        *(
            (metric, str({mapping}))
            for metric in ("OnFailureDestinationDeliveredEventCount", "DroppedEventCount")
            for mapping in MAPPINGS
        ),
    }


# ---- rights


def test_its_role_may_what_it_calls_and_nothing_more() -> None:
    source = ROOT / "service" / "roomcast" / "events"
    operations = {"put_events": "events:PutEvents", "send_message_batch": "sqs:SendMessage"}
    called: set[str] = set()
    for stem in ("handler", "occupancy"):
        text = (source / f"{stem}.py").read_text(encoding="utf-8")
        for operation in re.findall(r"\b_?client\.([a-z]+_[a-z_]+|query)\(", text):
            words = "".join(word.title() for word in operation.split("_"))
            called.add(operations.get(operation, f"dynamodb:{words}"))
    assert len(called) == 6
    may = {action for statement in role("EventsRole") for action in statement.actions}
    assert may - NOT_OURS == called


@pytest.mark.parametrize("target", [BUS, QUEUE])
@pytest.mark.parametrize(
    "action, key, verdict",
    [
        ("UpdateItem", "occupancy#room", True),
        ("GetItem", "occupancy#room", True),
        ("DeleteItem", "occupancy#room", True),
        ("Query", "channel#room", True),
        ("Query", "channel-12#room", True),
        # What nodes and the reaper write, it does not touch.
        ("DeleteItem", "channel#room", False),
        ("UpdateItem", "channel-1#room", False),
        ("Query", "node#n1", False),
        ("DeleteItem", "node#n1", False),
        ("PutItem", "occupancy#room", False),
    ],
)
def test_it_writes_its_own_items_only(target: str, action: str, key: str, verdict: bool) -> None:
    stack = evaluated(TEMPLATE, "chat", EventsTargetArn=target)
    documents = [each["PolicyDocument"] for each in stack.properties("EventsRole")["Policies"]]
    context = {"dynamodb:leadingkeys": key}
    table, other = "PresenceTable.Arn", "ChannelsTable.Arn"
    assert allowed(documents, Call(f"dynamodb:{action}", table, context)) is verdict
    assert not allowed(documents, Call(f"dynamodb:{action}", other, context))
    tells = Call("events:PutEvents" if target == BUS else "sqs:SendMessage", target)
    assert allowed(documents, tells)
    assert not allowed(documents, Call(tells.action, f"{target}2"))
    assert [each.sid for each in statements("EventsRole", RESOURCES["EventsRole"])]
