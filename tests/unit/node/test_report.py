"""What a node tells of itself: its figures, its busiest channels, and its connections."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from roomcast.client.connection import Connection
from roomcast.fleet.inquiry_signals import Inquiry, fits_report
from roomcast.node import report as report_module
from roomcast.node.report import _CLIENTS_A_TURN, BUSIEST_MAX, CHANNELS_SHOWN_MAX, NodeReport
from tests.unit.worlds import Fleet, LocalNode


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def node(fleet: Fleet) -> AsyncIterator[LocalNode]:
    made = fleet.node()
    async with made.running():
        yield made
        for connection in list(made.assembly.node._connections):
            made.assembly.node.closed(connection)


def reporter(node: LocalNode) -> NodeReport:
    found = node.assembly.node.inquiries._reporter
    assert isinstance(found, NodeReport)
    return found


async def told(node: LocalNode, inquiry: Inquiry) -> dict[str, Any]:
    """The report, as it comes to another node."""
    made: dict[str, Any] = json.loads(json.dumps(await reporter(node).report(inquiry)))
    assert fits_report(made)
    return made


async def test_figures_follow_what_happens(node: LocalNode) -> None:
    before = await told(node, Inquiry("figures"))
    client = await node.client()
    await client.subscribe("room")
    await client.publish("room", {"a": 1})
    after = await told(node, Inquiry("figures"))
    assert before["ready"]
    assert after["connections"] == before["connections"] + 1
    totals = {name: after["totals"][name] - before["totals"][name] for name in after["totals"]}
    assert totals["publications"] == 1
    assert totals["pushes"] == 1
    assert totals["opened"] == 1
    assert sum(after["histograms"]["publish_s"]["counts"]) == 1
    assert len(after["histograms"]["attempts"]["counts"]) == (
        len(after["histograms"]["attempts"]["bounds"]) + 1
    )


async def test_the_way_from_other_nodes_is_told_by_stage(node: LocalNode) -> None:
    stages = node.assembly.dispatcher.way.counters
    for number, stage in enumerate((stages.stream, stages.topic, stages.all), start=1):
        for _ in range(number):
            stage.add(0.2)
    told_of = (await told(node, Inquiry("figures")))["histograms"]
    names = ("stream_s", "topic_s", "delivery_s")
    assert [sum(told_of[name]["counts"]) for name in names] == [1, 2, 3]


async def test_what_waits_for_slow_clients_is_among_what_waits(node: LocalNode) -> None:
    node.assembly.node.services.counters.unsent_bytes = 7
    figures = await told(node, Inquiry("figures"))
    assert figures["waiting"] == {"appends": 0, "signals": 0, "clients": 7}


async def test_a_node_that_is_not_well_says_why(node: LocalNode) -> None:
    node.assembly.node.health.draining = True
    figures = await told(node, Inquiry("figures"))
    assert not figures["ready"]
    assert figures["draining"]
    assert "draining" in figures["reasons"][0]


async def test_the_busiest_are_those_with_most_publications_since_the_last_look(
    fleet: Fleet, node: LocalNode
) -> None:
    client = await node.client()
    for channel in ("quiet", "busy"):
        await client.subscribe(channel)
    await told(node, Inquiry("busiest"))
    for number in range(4):
        await client.publish("busy", number)
    fleet.clock.advance(2)
    report = await told(node, Inquiry("busiest"))
    assert report["window_s"] == 2
    assert report["channels"] == [["busy", 2.0, 1], ["quiet", 0.0, 1]]
    assert report["count"] == 2
    fleet.clock.advance(2)
    assert (await told(node, Inquiry("busiest")))["channels"][0][1] == 0


async def test_the_list_of_the_busiest_is_bounded(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "BUSIEST_MAX", 3)
    monkeypatch.setattr(report_module, "_CHANNELS_A_TURN", 2)
    client = await node.client()
    for number in range(10):
        await client.subscribe(f"c{number}")
    assert BUSIEST_MAX > 3
    report = await told(node, Inquiry("busiest"))
    assert len(report["channels"]) == 3
    assert report["count"] == 10


async def test_subscribers_of_one_channel_are_counted(node: LocalNode) -> None:
    for _ in range(2):
        await (await node.client()).subscribe("room")
    assert await told(node, Inquiry("channel", channel="room")) == {"subscribers": 2}
    assert await told(node, Inquiry("channel", channel="nothing")) == {"subscribers": 0}


async def test_connections_are_found_by_user_and_by_id(node: LocalNode) -> None:
    client = await node.client()
    for number in range(CHANNELS_SHOWN_MAX + 5):
        await client.subscribe(f"c{number}")
    report = await told(node, Inquiry("clients", user=client.connection.user))
    assert report["count"] == 1
    [shown] = report["clients"]
    assert shown["client"] == client.connection.client
    assert len(shown["channels"]) == CHANNELS_SHOWN_MAX
    assert shown["channel_count"] == CHANNELS_SHOWN_MAX + 5
    by_id = await told(node, Inquiry("clients", client=client.connection.client))
    assert by_id["clients"] == report["clients"]
    assert await told(node, Inquiry("clients", user="nobody")) == {"count": 0, "clients": []}


async def test_of_many_connections_few_are_told_of_in_one_turn(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have an info of many kilobytes."""
    real, turns, turn = report_module._shown, Counter[int](), 0

    def counted(connection: Connection) -> Mapping[str, Any]:
        turns[turn] += 1
        return real(connection)

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(report_module, "_shown", counted)
    for _ in range(3 * _CLIENTS_A_TURN):
        client = await node.client()
    counting = asyncio.create_task(count())
    report = await told(node, Inquiry("clients", user=client.connection.user))
    counting.cancel()
    assert len(report["clients"]) == 3 * _CLIENTS_A_TURN
    assert max(turns.values()) == _CLIENTS_A_TURN


async def test_connections_with_much_to_tell_still_fit_a_report(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "REPORT_BYTES_MAX", 3000)
    for _ in range(20):
        client = await node.client()
        await client.subscribe("x" * 200)
    report = await told(node, Inquiry("clients", user=client.connection.user))
    assert report["count"] == 20
    assert 0 < len(report["clients"]) < 20
    assert len(json.dumps(report)) <= 3000
