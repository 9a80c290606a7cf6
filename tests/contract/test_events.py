"""The marks of entries and the states of channels, in a table of the emulator."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from roomcast.aws.presence import DynamoPresence
from roomcast.aws.schema import presence_table
from roomcast.dev.provision import DUMMY_CREDENTIALS, client
from roomcast.events.handler import Outcome, send
from roomcast.events.occupancy import DynamoStates, State, look
from roomcast.events.records import Event, Touch
from roomcast.events.targets import bodies, target_of
from roomcast.presence.ports import Member
from roomcast.wire.publication import ClientInfo
from tests.contract.backends import REGION, AwsBackend

pytestmark = pytest.mark.parametrize("backend", ["aws"], indirect=True)
CHANNEL = "room"


def table(backend: AwsBackend) -> Any:
    return client("dynamodb", backend.clients.tables.meta.endpoint_url, REGION, DUMMY_CREDENTIALS)


async def test_entries_of_who_is_elsewhere_are_marked_before_they_go(backend: AwsBackend) -> None:
    written: list[tuple[str, bool]] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend.clients.tables, name)

        async def update_item(self, **params: Any) -> Any:
            answer = await backend.clients.tables.update_item(**params, ReturnValues="ALL_NEW")
            attributes = answer["Attributes"]
            written.append((attributes["member"]["S"], attributes["moved"]["BOOL"]))
            return answer

    presence = DynamoPresence(
        Watched(), presence_table(backend.prefix), events=lambda _: ("joined", "left")
    )
    one, two = (Member("n1", ClientInfo("ann", name), 5) for name in ("c1", "c2"))
    await presence.add(CHANNEL, one)
    await presence.add(CHANNEL, two)
    assert await presence.clear("n1", CHANNEL, {"c1"})
    assert written == [("n1#c1", True)]
    # What is gone does not come back by its mark.
    await presence.moved(CHANNEL, two)
    assert not await presence.members(CHANNEL)


async def test_a_state_goes_when_nobody_is_there(backend: AwsBackend) -> None:
    name = presence_table(backend.prefix)
    presence = DynamoPresence(backend.clients.tables, name, events=lambda _: ("occupied",))
    numbers = iter("123")
    states = DynamoStates(table(backend), name, lambda: next(numbers))
    member = Member("n1", ClientInfo("ann", "c1"), 5)
    touch = Touch(CHANNEL, f"channel#{CHANNEL}", True, ("occupied",), "1")
    await presence.add(CHANNEL, member)
    for _ in range(2):
        states.count(touch)
    look(states, CHANNEL)
    state = states.read(CHANNEL)
    assert state == State("1", 2, (f"channel#{CHANNEL}",))
    await presence.remove(CHANNEL, member)
    states.remove(CHANNEL, State("0", 2, ()))
    states.remove(CHANNEL, State("1", 1, ()))
    assert states.read(CHANNEL) == state, "another one, or touched since"
    look(states, CHANNEL)
    assert states.read(CHANNEL) is None


# More than one call takes.
EVENTS: Final = [
    Event({"id": f"joined:n1:{number}", "type": "joined", "channel": "å"}, str(number), "å")
    for number in range(12)
]


def received(backend: AwsBackend, queue: str) -> list[Any]:
    sqs = client("sqs", backend.clients.tables.meta.endpoint_url, REGION, DUMMY_CREDENTIALS)
    found: list[Any] = []
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        found += [json.loads(message["Body"]) for message in messages]
        for message in messages:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return found


async def test_a_bus_routes_events_by_source_and_kind(backend: AwsBackend) -> None:
    made = await backend.clients.sqs.create_queue(QueueName=f"{backend.prefix}bus")
    events = client("events", backend.clients.tables.meta.endpoint_url, REGION, DUMMY_CREDENTIALS)
    bus = events.create_event_bus(Name=f"{backend.prefix}bus")["EventBusArn"]
    rule = {"Name": f"{backend.prefix}rule", "EventBusName": f"{backend.prefix}bus"}
    pattern = {"source": ["roomcast"], "detail-type": ["joined"]}
    events.put_rule(**rule, EventPattern=json.dumps(pattern))
    queue_arn = bus.replace(":events:", ":sqs:").replace("event-bus/", "")
    events.put_targets(
        Rule=rule["Name"], EventBusName=bus, Targets=[{"Id": "queue", "Arn": queue_arn}]
    )
    other = Event({"id": "left:n1:1", "type": "left", "channel": "å"}, "99", "å")
    assert send(events, target_of(bus), bodies([*EVENTS, other])) == Outcome(13)
    assert [each["detail"] for each in received(backend, made["QueueUrl"])] == [
        event.fields for event in EVENTS
    ]


async def test_a_fifo_queue_takes_an_event_once_and_keeps_the_order_of_a_channel(
    backend: AwsBackend,
) -> None:
    made = await backend.clients.sqs.create_queue(
        QueueName=f"{backend.prefix}out.fifo", Attributes={"FifoQueue": "true"}
    )
    sqs = client("sqs", backend.clients.tables.meta.endpoint_url, REGION, DUMMY_CREDENTIALS)
    target = target_of(made["QueueUrl"])
    assert target.is_fifo
    for _ in range(2):
        assert send(sqs, target, bodies(EVENTS)) == Outcome(12)
    assert received(backend, target.name) == [event.fields for event in EVENTS]
