"""The spans of what comes to a node: one trace over two nodes, and what has no part in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from roomcast.delivery.envelope import checked_pubs, express_text, pack, record_text
from roomcast.log.item import LogItem, parse_log_item
from roomcast.observe.ports import Tracer
from roomcast.observe.spans import NO_TRACER
from roomcast.wire.trace_context import TraceContext
from tests.unit.recorder import Kept, Recorder
from tests.unit.worlds import Client, Fleet, settled, until

ROOM: Final = "room"
PLAIN: Final = "plain:room"


@dataclass
class World:
    """Node a, on which Ann publishes, and node b, on which Bob reads."""

    fleet: Fleet = field(default_factory=Fleet)
    writing: Recorder = field(default_factory=Recorder)
    reading: Recorder = field(default_factory=lambda: Recorder(first=1000))

    @asynccontextmanager
    async def running(
        self, writing: Tracer | None = None, reading: Tracer | None = None
    ) -> AsyncIterator[tuple[Client, Client]]:
        async with AsyncExitStack() as stack:
            a = self.fleet.node("a", tracer=writing or self.writing)
            b = self.fleet.node("b", tracer=reading or self.reading)
            await stack.enter_async_context(a.running())
            await stack.enter_async_context(b.running())
            yield await a.client(), await b.client()

    def carry(self, item: LogItem, lambda_ms: int = 0) -> None:
        """As stream, Lambda, topic and queue do, after `lambda_ms`."""
        [(body, _)] = pack(
            [record_text(item, checked_pubs(item))],
            at=self.fleet.clock.now_ms() + lambda_ms,
        )
        self.fleet.world.send(body)

    @property
    def newest(self) -> LogItem:
        return self.fleet.world.stream[-1]


@pytest.fixture
def world() -> World:
    return World()


def the(spans: list[Kept] | Any, name: str) -> Kept:
    [one] = [span for span in spans if span.name == name]
    assert isinstance(one, Kept)
    return one


async def test_one_trace_from_the_command_to_the_push_on_another_node(world: World) -> None:
    async with world.running() as (ann, bob):
        await bob.subscribe(ROOM)
        await ann.subscribe(ROOM)
        appended_at = world.fleet.clock.now_ms()
        await ann.publish(ROOM, "hello")
        world.fleet.clock.advance(0.2)
        lambda_at = world.fleet.clock.now_ms()
        world.carry(world.newest)
        await until(lambda: bob.socket.published(ROOM))
        await settled()
    append = the(world.writing.spans, "append")
    assert world.writing.below(append) == ["put_item", "deliver"]
    own = the(world.writing.spans, "deliver")
    assert own.attributes == {"roomcast.by": "table", "roomcast.subscribers": 1}
    way = the(world.reading.spans, "way")
    assert way.parent == append.context
    assert way.context.trace_id == the(world.writing.spans, "publish").context.trace_id
    assert world.reading.below(way) == ["stream", "lambda", "queue", "deliver"]
    assert (way.start_ms, way.attributes) == (appended_at, {"roomcast.by": "stream"})
    stream = the(world.reading.spans, "stream")
    assert (stream.start_ms, stream.end_ms) == (appended_at, lambda_at)
    deliver = the(world.reading.spans, "deliver")
    assert deliver.attributes == {"roomcast.by": "stream", "roomcast.subscribers": 1}
    assert deliver.start_ms == deliver.end_ms == way.end_ms == lambda_at


async def test_what_waits_for_a_hole_is_delivered_late(world: World) -> None:
    async with world.running() as (ann, bob):
        await bob.subscribe(ROOM)
        await ann.publish(ROOM, 1)
        first = world.newest
        await ann.publish(ROOM, 2)
        world.carry(world.newest)
        await until(lambda: world.fleet.world.published)
        await settled()
        assert world.reading.spans == [], "it is held: not delivered yet"
        world.fleet.clock.advance(0.1)
        world.carry(first)
        await until(lambda: len(bob.socket.published(ROOM)) == 2)
    held, short = sorted(world.reading.ended("deliver"), key=lambda span: span.start_ms or 0)
    assert (held.end_ms or 0) - (held.start_ms or 0) == pytest.approx(100)
    assert short.end_ms == short.start_ms


async def test_repeats_and_what_is_read_from_the_log_have_no_spans(world: World) -> None:
    async with world.running() as (ann, bob):
        at = await bob.subscribe(ROOM)
        await ann.publish(ROOM, 1)
        world.carry(world.newest)
        world.carry(world.newest)
        await until(lambda: bob.socket.published(ROOM))
        await settled()
        assert len(world.reading.ended("deliver")) == 1
        # A hole that is read, a recovery and a history.
        await ann.publish(ROOM, 2)
        await ann.publish(ROOM, 3)
        pointer = record_text(world.newest, None)
        assert "trace" not in pointer
        [(body, _)] = pack([pointer])
        world.fleet.world.send(body)
        await until(lambda: len(bob.socket.published(ROOM)) == 3)
        await bob.ask("unsubscribe", channel=ROOM)
        again = await bob.subscribe(ROOM, recover=True, epoch=at["epoch"], offset=0)
        assert len(again["publications"]) == 3
        assert (await bob.ask("history", channel=ROOM, limit=9))["publications"]
    assert len(world.reading.ended("deliver")) == 1


async def test_a_publication_without_history_is_traced_as_a_signal(world: World) -> None:
    async with world.running() as (ann, bob):
        await bob.subscribe(PLAIN)
        await ann.subscribe(PLAIN)
        await ann.publish(PLAIN, "now")
        await until(lambda: bob.socket.published(PLAIN))
    publish = the(world.writing.spans, "publish")
    assert publish.attributes == {"roomcast.outcome": "signalled", "roomcast.publications": 1}
    own = the(world.writing.spans, "deliver")
    assert (own.parent, own.attributes) == (
        publish.context,
        {"roomcast.by": "signal", "roomcast.subscribers": 1},
    )
    way = the(world.reading.spans, "way")
    assert way.parent == publish.context
    assert world.reading.below(way) == ["queue", "deliver"]


@pytest.mark.parametrize("reads", [True, False], ids=["only b traces", "only a traces"])
async def test_a_node_that_does_not_trace_changes_nothing(world: World, reads: bool) -> None:
    tracers = (NO_TRACER, None) if reads else (None, NO_TRACER)
    async with world.running(*tracers) as (ann, bob):
        for channel in (ROOM, PLAIN):
            await bob.subscribe(channel)
            await ann.publish(channel, channel)
        world.carry(world.newest)
        await until(lambda: bob.socket.published(ROOM) and bob.socket.published(PLAIN))
    assert (world.newest.trace is None) is reads
    assert world.reading.spans == []


def older_lambda(item: LogItem) -> LogItem:
    """As a Lambda before traces reads it."""
    attributes = {**item.attributes()}
    del attributes["trace"]
    return parse_log_item(attributes)


async def test_through_an_older_lambda_the_trace_ends_and_nothing_else(world: World) -> None:
    async with world.running() as (ann, bob):
        await bob.subscribe(ROOM)
        await ann.publish(ROOM, "hello")
        world.carry(older_lambda(world.newest))
        await until(lambda: bob.socket.published(ROOM))
    assert world.newest.trace is not None
    assert world.reading.spans == []


def forged(item: LogItem, trace: Any, **times: Any) -> str:
    """A message of another program, which may write to the topic."""
    record = json.loads(record_text(item, checked_pubs(item))) | {"trace": trace} | times
    return json.dumps({"v": 1, "at": times.get("at", 5), "records": [record]})


@pytest.mark.parametrize(
    "trace",
    [
        None,
        7,
        [],
        {"S": "00"},
        "",
        "x" * 100_000,
        f"00-{'0' * 32}-{'a' * 16}-01",
        f"00-{'a' * 32}-{'a' * 16}-00",
    ],
)
async def test_what_is_no_trace_is_delivered_without_one(world: World, trace: Any) -> None:
    async with world.running() as (ann, bob):
        await bob.subscribe(ROOM)
        await ann.publish(ROOM, "hello")
        world.fleet.world.send(forged(world.newest, trace))
        await until(lambda: bob.socket.published(ROOM))
    assert world.reading.spans == []


async def test_times_that_nobody_can_have_meant_make_no_stages(world: World) -> None:
    trace = TraceContext("a" * 32, "b" * 16)
    async with world.running() as (ann, bob):
        await bob.subscribe(ROOM)
        await ann.publish(ROOM, "hello")
        body = forged(world.newest, trace.traceparent(), ts=2**53 - 1, at=2**53 - 1)
        world.fleet.world.send(body)
        await until(lambda: bob.socket.published(ROOM))
    way = the(world.reading.spans, "way")
    assert (way.parent, world.reading.below(way)) == (trace, ["queue", "deliver"])


async def test_an_express_hint_is_traced_once(world: World) -> None:
    """The stream's record comes later, and is a repeat."""
    async with world.running() as (ann, bob):
        await bob.subscribe(ROOM)
        await ann.publish(ROOM, "hello")
        [(body, _)] = pack([express_text(world.newest)], express="a")
        world.fleet.clock.advance(0.05)
        world.fleet.world.send(body)
        await until(lambda: bob.socket.published(ROOM))
        world.carry(world.newest)
        await settled()
    way = the(world.reading.spans, "way")
    assert world.reading.below(way) == ["express", "queue", "deliver"]
    assert way.attributes == {"roomcast.by": "express"}
