"""The spans of publications and of their appends, and what of it goes into the log."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from roomcast.log.appender import TRACED_WRITES_MAX, Appender
from roomcast.log.channel_log import NotAppended, OutcomeUnknown
from roomcast.ports import Rejected, Throttled
from roomcast.wire.publication import Publication, StreamPosition
from roomcast.wire.trace_context import TraceContext
from tests.unit.recorder import Recorder
from tests.unit.worlds import Fleet, log_over, no_jitter, settled

CHANNEL: Final = "room"
TTL_MS: Final = 300_000
CALLER: Final = TraceContext("c" * 32, "d" * 16)
UNSAMPLED: Final = TraceContext("e" * 32, "f" * 16, sampled=False)


class Writer:
    def __init__(self, fleet: Fleet, node: str = "a") -> None:
        self.tracer = Recorder()
        self.clock = fleet.clock
        log = log_over(fleet.world, fleet.clock, node=node, random=no_jitter)
        self.appender = Appender(
            log,
            fleet.clock,
            lambda _: None,
            generation="0",
            random=no_jitter,
            tracer=self.tracer,
        )

    def submit(
        self, data: Any, parent: TraceContext | None = None, key: str | None = None
    ) -> asyncio.Future[StreamPosition]:
        published = Publication(data=data)
        return self.appender.submit(
            CHANNEL, published, TTL_MS, key, received_ms=self.clock.now_ms() - 5, parent=parent
        )


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def writer(fleet: Fleet) -> Writer:
    return Writer(fleet)


async def test_a_publication_its_append_and_its_write_are_one_trace(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.submit("one")
    [publish, append, put_item] = writer.tracer.spans
    assert [span.name for span in writer.tracer.spans] == ["publish", "append", "put_item"]
    assert (publish.parent, publish.channel) == (None, CHANNEL)
    assert publish.start_ms == fleet.clock.now_ms() - 5, "since it was read"
    assert append.parent == publish.context
    assert put_item.parent == append.context
    assert publish.attributes == {"roomcast.outcome": "stored"}
    assert put_item.attributes == {"roomcast.outcome": "appended"}
    assert append.attributes == {
        "roomcast.publications": 1,
        "roomcast.attempts": 1,
        "roomcast.losses": 0,
        "roomcast.turn_ms": 0,
        "roomcast.writers": 0,
    }
    assert not any(span.failure for span in writer.tracer.spans)
    [item] = fleet.world.stream
    assert item.trace == append.context
    assert item.attributes()["trace"] == {"S": append.context.traceparent()}


async def test_a_caller_decides_for_its_publications(fleet: Fleet, writer: Writer) -> None:
    writer.tracer.ratio = 0.0
    await writer.submit("by chance")
    assert writer.tracer.spans == []
    await writer.submit("the caller traces", CALLER)
    publish = writer.tracer.spans[0]
    assert publish.parent == CALLER
    assert publish.context.trace_id == CALLER.trace_id
    writer.tracer.ratio, before = 1.0, len(writer.tracer.spans)
    await writer.submit("the caller does not", UNSAMPLED)
    assert len(writer.tracer.spans) == before
    assert [item.trace is not None for item in fleet.world.stream] == [False, True, False]


async def test_publications_that_share_an_append_are_linked_to_it(
    fleet: Fleet, writer: Writer
) -> None:
    writer.tracer.ratio = 0.0
    held = fleet.traffic.hold("put_item", "sent")
    waits = [writer.submit("alone")]
    await held.arrived()
    waits += [
        writer.submit("not traced"),
        writer.submit("the caller's", CALLER),
        writer.submit("of the same caller", CALLER),
    ]
    writer.tracer.ratio = 1.0
    waits.append(writer.submit("another's"))
    held.release()
    await asyncio.gather(*waits)
    [first, same, other] = writer.tracer.ended("publish")
    [append] = writer.tracer.ended("append")
    assert append.parent == first.context, "the first traced one"
    assert [first.links, same.links] == [[], []]
    assert other.links == [append.context]
    assert append.attributes is not None
    assert append.attributes["roomcast.publications"] == 4
    assert [item.trace for item in fleet.world.stream] == [None, append.context]


async def test_a_lost_race_and_its_turn_are_told(fleet: Fleet, writer: Writer) -> None:
    other = Writer(fleet, "b")
    await writer.submit("first")
    await other.submit("second")
    await writer.submit("third")
    append = writer.tracer.ended("append")[-1]
    writes = [span for span in writer.tracer.ended("put_item") if span.parent == append.context]
    assert [span.attributes for span in writes] == [
        {"roomcast.outcome": "lost"},
        {"roomcast.outcome": "appended"},
    ]
    assert append.attributes is not None
    assert append.attributes["roomcast.attempts"] == 2
    assert append.attributes["roomcast.losses"] == 1


async def test_only_the_first_writes_have_spans(fleet: Fleet, writer: Writer) -> None:
    fleet.world.fail_next("put_item", Throttled(), times=TRACED_WRITES_MAX + 3)
    await writer.submit("patient")
    [append] = writer.tracer.ended("append")
    assert append.attributes is not None
    assert append.attributes["roomcast.attempts"] == TRACED_WRITES_MAX + 4
    assert len(writer.tracer.below(append)) == TRACED_WRITES_MAX


async def test_what_is_not_in_says_so_and_every_span_ends(fleet: Fleet, writer: Writer) -> None:
    fleet.world.fail_next("put_item", Rejected("no"))
    with pytest.raises(NotAppended):
        await writer.submit("refused")
    [publish, append, put_item] = writer.tracer.spans
    assert (publish.attributes, publish.failure) == (
        {"roomcast.outcome": "not_stored"},
        "not_stored",
    )
    assert append.failure
    assert (put_item.attributes, bool(put_item.failure)) == ({"roomcast.outcome": "failed"}, True)
    assert all(span.ended for span in writer.tracer.spans)


async def test_a_publication_that_was_there_before_is_no_second_one(
    fleet: Fleet, writer: Writer
) -> None:
    await writer.submit("once", key="k")
    await writer.submit("once", key="k")
    first, second = writer.tracer.ended("publish")
    assert first.attributes == {"roomcast.outcome": "stored"}
    assert second.attributes == {"roomcast.outcome": "repeated"}
    assert all(span.ended for span in writer.tracer.spans)


async def test_the_latencies_of_traced_publications_are_exemplars(
    fleet: Fleet, writer: Writer
) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    position = writer.submit("slow")
    await held.arrived()
    fleet.clock.advance(0.3)
    held.release()
    await position
    counters, trace_id = writer.appender.counters, writer.tracer.spans[0].context.trace_id
    [exemplar] = counters.latency_s.exemplars.values()
    assert exemplar.value == pytest.approx(0.3)
    assert exemplar.trace_id == trace_id
    assert exemplar.at_s == fleet.clock.now_ms() / 1000
    [turn] = counters.turn_s.exemplars.values()
    assert turn.trace_id == trace_id


async def test_a_node_that_stops_ends_its_spans(fleet: Fleet, writer: Writer) -> None:
    held = fleet.traffic.hold("put_item", "sent")
    position = writer.submit("cut off")
    await held.arrived()
    [task] = [each for each in asyncio.all_tasks() if each.get_name() == f"append {CHANNEL}"]
    task.cancel()
    with pytest.raises(OutcomeUnknown):
        await position
    await settled()
    assert all(span.ended for span in writer.tracer.spans)
