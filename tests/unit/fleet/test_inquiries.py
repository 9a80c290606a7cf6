"""Asking all nodes: what they tell, what did not answer, and the bounds of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.delivery.envelope import Signal
from roomcast.fleet import inquiries as inquiries_module
from roomcast.fleet.inquiries import (
    ANSWERING_MAX,
    DEAD_MAX,
    INQUIRIES_MAX,
    KEPT_S,
    LATE_S,
    Inquiries,
)
from roomcast.fleet.inquiry_signals import (
    REPORT_BYTES_MAX,
    Inquiry,
    inquiry_signal,
    report_signal,
)
from roomcast.fleet.lease_record import Lease
from roomcast.ports import Rejected
from roomcast.rates import Bucket, Rate
from tests.unit.worlds import Fleet, LocalNode, signals_at_any_rate, until

LATER_MS = 10**15
FIGURES = Inquiry("figures")


def asked_by(node: LocalNode) -> Inquiries:
    return node.assembly.node.inquiries


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def nodes(fleet: Fleet) -> AsyncIterator[tuple[LocalNode, LocalNode]]:
    """Two nodes that hear each other, and whose leases are there."""
    made = (fleet.node("a"), fleet.node("b"))
    async with AsyncExitStack() as running:
        running.enter_context(signals_at_any_rate())
        for node in made:
            await running.enter_async_context(node.running())
        for name, node in zip("ab", made, strict=True):
            queue = node.queue_names[-1]
            fleet.world.leases[name] = Lease(name, queue, "live", 1, 1, LATER_MS)
        yield made
        for node in made:
            for connection in list(node.assembly.node._connections):
                node.assembly.node.closed(connection)


async def test_all_nodes_tell_how_they_do(nodes: tuple[LocalNode, LocalNode]) -> None:
    here, there = nodes
    await there.client()
    told = await asked_by(here).ask(FIGURES)
    assert told is not None
    assert told.own == "a"
    assert [lease.node for lease in told.leases] == ["a", "b"]
    assert {name: report["connections"] for name, report in told.reports.items()} == {
        "a": 0,
        "b": 1,
    }


async def test_reports_go_to_the_node_that_asked_alone(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = nodes
    posted: list[tuple[str, str]] = []
    send = there.assembly.node.inquiries._post.send

    async def note(node: str, signal: Signal) -> None:
        posted.append((node, signal.kind))
        await send(node, signal)

    monkeypatch.setattr(there.assembly.node.inquiries._post, "send", note)
    published = there.assembly.broadcaster.counters.signals["sent"]
    await asked_by(here).ask(FIGURES)
    assert posted == [("a", "report")]
    assert there.assembly.broadcaster.counters.signals["sent"] == published


async def test_who_does_not_answer_in_time_is_named(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a release without inquiries, or dead, or slow.
    fleet.world.leases["c"] = Lease("c", "q-c", "live", 2, 1, LATER_MS)
    fleet.world.leases["d"] = Lease("d", "q-d", "starting", 3, 1, LATER_MS)
    monkeypatch.setattr(inquiries_module, "REPORTS_WAIT_S", 0.2)
    told = await asked_by(nodes[0]).ask(FIGURES)
    assert told is not None
    assert [lease.node for lease in told.leases] == ["a", "b", "c", "d"]
    assert set(told.reports) == {"a", "b"}


async def test_the_last_of_the_dead_are_named_and_not_asked(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    for number in range(DEAD_MAX + 3):
        fleet.world.leases[f"d{number}"] = Lease(f"d{number}", "q", "live", 1, number, 1)
    told = await asked_by(nodes[0]).ask(FIGURES)
    assert told is not None
    assert [lease.node for lease in told.leases] == ["a", "b"]
    assert len(told.dead) == DEAD_MAX
    assert told.dead[0].node == f"d{DEAD_MAX + 2}"


async def test_a_report_that_comes_late_is_told_with_its_age(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (asked_by(node) for node in nodes)
    monkeypatch.setattr(inquiries_module, "REPORTS_WAIT_S", 0.1)
    told = there._reporter.report
    go = asyncio.Event()

    async def late(inquiry: Inquiry) -> Mapping[str, Any]:
        await go.wait()
        return await told(inquiry)

    monkeypatch.setattr(there._reporter, "report", late)
    first = await here.ask(FIGURES)
    assert first is not None
    assert set(first.reports) == {"a"}
    go.set()
    await until(lambda: "b" in here._newest)
    go.clear()
    fleet.clock.advance(5)
    second = await here.ask(FIGURES)
    assert second is not None
    assert set(second.reports) == {"a", "b"}
    assert second.late == {"b": pytest.approx(5)}
    # After a while it tells nothing any more.
    fleet.clock.advance(LATE_S)
    third = await here.ask(FIGURES)
    assert third is not None
    assert set(third.reports) == {"a"}
    go.set()
    await until(lambda: there._answering == 0)


async def test_leases_that_cannot_be_read_are_those_of_before(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = asked_by(nodes[0])
    monkeypatch.setattr(inquiries_module, "LEASES_WAIT_S", 0.05)
    assert await here.ask(FIGURES) is not None
    read = here._nodes.nodes_and_dead
    go = asyncio.Event()

    async def slow() -> tuple[Sequence[Lease], Sequence[Lease]]:
        await go.wait()
        return await read()

    monkeypatch.setattr(here._nodes, "nodes_and_dead", slow)
    fleet.clock.advance(10)
    told = await here.ask(FIGURES)
    assert told is not None
    assert told.leases_age_s == pytest.approx(10)
    assert set(told.reports) == {"a", "b"}
    go.set()
    await until(lambda: here._reading is None)

    async def refused() -> tuple[Sequence[Lease], Sequence[Lease]]:
        raise Rejected("no")

    monkeypatch.setattr(here._nodes, "nodes_and_dead", refused)
    fleet.clock.advance(10)
    assert await here.ask(FIGURES) is not None
    # A node that never read them has nobody to ask.
    other = asked_by(nodes[1])
    monkeypatch.setattr(other._nodes, "nodes_and_dead", refused)
    with pytest.raises(Rejected):
        await other.ask(FIGURES)


async def test_equal_questions_share_an_answer_for_a_while(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    here, _ = nodes
    first, second = await asyncio.gather(asked_by(here).ask(FIGURES), asked_by(here).ask(FIGURES))
    assert first is second
    assert await asked_by(here).ask(FIGURES) is first
    fleet.clock.advance(KEPT_S)
    assert await asked_by(here).ask(FIGURES) is not first


async def test_a_large_fleet_is_asked_less_often(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiries_module, "REPORTS_PER_S", 0.1)
    first = await asked_by(nodes[0]).ask(FIGURES)
    fleet.clock.advance(19)
    assert await asked_by(nodes[0]).ask(FIGURES) is first


async def test_a_fleet_has_a_bound(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiries_module, "NODES_MAX", 1)
    told = await asked_by(nodes[0]).ask(FIGURES)
    assert told is not None
    assert (len(told.leases), told.more) == (1, 1)


async def test_the_reports_of_one_answer_have_a_bound(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (asked_by(node) for node in nodes)
    large = {"count": 3, "clients": ["x" * 200]}

    async def report(_: Inquiry) -> Mapping[str, Any]:
        return large

    monkeypatch.setattr(there._reporter, "report", report)
    monkeypatch.setattr(inquiries_module, "REPORTS_BYTES_MAX", 200)
    told = await here.ask(Inquiry("clients", user="ann"))
    assert told is not None
    assert told.reports["b"] == {"count": 3}, "what it counts is told"
    large = {"names": ["x" * 200]}
    told = await here.ask(Inquiry("busiest"))
    assert told is not None
    assert set(told.reports) == {"a"}


async def test_whoever_asks_one_thing_after_the_other_causes_so_many_reports_and_no_more(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    inquiries = asked_by(nodes[0])
    inquiries._reports_asked = Bucket(Rate(1.0, 8.0), fleet.clock.monotonic_s())
    told = [await inquiries.ask(Inquiry("channel", channel=f"c{number}")) for number in range(9)]
    assert [each is not None for each in told] == [True] * 4 + [False] * 5
    assert await inquiries.ask(Inquiry("channel", channel="c3")) is not None, "that is known"


async def test_too_many_questions_at_once_are_refused(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.world.leases["c"] = Lease("c", "q-c", "live", 2, 1, LATER_MS)
    monkeypatch.setattr(inquiries_module, "REPORTS_WAIT_S", 0.2)
    inquiries = asked_by(nodes[0])
    asking = [
        asyncio.create_task(inquiries.ask(Inquiry("channel", channel=f"c{number}")))
        for number in range(INQUIRIES_MAX)
    ]
    await until(lambda: len(inquiries._asked) == INQUIRIES_MAX)
    assert await inquiries.ask(Inquiry("channel", channel="one more")) is None
    assert all(await asyncio.gather(*asking))
    # What is kept is bounded too.
    assert len(inquiries._kept) <= INQUIRIES_MAX


async def test_a_node_answers_few_at_once(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    inquiries = asked_by(nodes[1])
    hold = asyncio.Event()
    reported = 0

    async def report(_: Inquiry) -> Mapping[str, Any]:
        nonlocal reported
        reported += 1
        await hold.wait()
        return {}

    monkeypatch.setattr(inquiries._reporter, "report", report)
    with capture_logs() as lines:
        for number in range(ANSWERING_MAX + 5):
            inquiries.heard(inquiry_signal(FIGURES, "a", f"id{number}", "a"))
        await until(lambda: reported)
        hold.set()
        await until(lambda: inquiries._answering == 0)
    assert reported == ANSWERING_MAX
    assert [line["event"] for line in lines if line["event"] == "inquiry_passed_over"]


async def test_a_report_that_is_too_long_is_not_sent(
    nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (asked_by(node) for node in nodes)
    monkeypatch.setattr(inquiries_module, "REPORTS_WAIT_S", 0.1)

    async def long(_: Inquiry) -> Mapping[str, Any]:
        return {"a": "x" * REPORT_BYTES_MAX}

    monkeypatch.setattr(there._reporter, "report", long)
    with capture_logs() as lines:
        told = await here.ask(FIGURES)
        await until(lambda: there._answering == 0)
    assert told is not None
    assert set(told.reports) == {"a"}
    assert [line["event"] for line in lines] == ["report_not_sent"]


async def test_what_is_made_up_changes_nothing(nodes: tuple[LocalNode, LocalNode]) -> None:
    inquiries = asked_by(nodes[0])
    with capture_logs() as lines:
        inquiries.heard(report_signal({}, "b", "1", "b", "nobody asked"))
        inquiries.heard(replace(report_signal({}, "b", "2", "b", "x"), body=[]))
        inquiries.heard(inquiry_signal(Inquiry("weather"), "b", "3", "b"))
    assert [line["event"] for line in lines] == ["inquiry_malformed"]
    assert inquiries._answering == 0
