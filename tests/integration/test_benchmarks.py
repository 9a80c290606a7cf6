"""The benchmarks do what they say; not what they measure, which a loaded machine cannot tell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import fanout, lifecycle, presence, slow_consumer
from benchmarks.node import WAYS
from benchmarks.rig import percentile, rig
from service.adapters.memory import ManualClock

pytestmark = [
    pytest.mark.fleet,
    pytest.mark.skipif(sys.platform != "linux", reason="epoll and SO_TIMESTAMPNS"),
]

CLIENTS = 20


def test_every_way_reaches_every_client() -> None:
    with rig(queue_bytes_max=1024 * 1024, clients=CLIENTS) as (node, crowd):
        for way in WAYS:
            assert fanout.measured(node, crowd, way) > 0


def test_a_client_that_does_not_read_is_cut_off_in_the_middle_of_its_round() -> None:
    with rig(queue_bytes_max=1024 * 1024, clients=CLIENTS) as (node, crowd):
        for _ in range(2):
            assert len(slow_consumer.stalled(node, crowd)) == slow_consumer.PUBLICATIONS
            assert len(slow_consumer.spreads(node, crowd)) == slow_consumer.PUBLICATIONS


def test_a_node_comes_and_goes(tmp_path: Path) -> None:
    with lifecycle.deployment(tmp_path) as config:
        for clients in (0, CLIENTS):
            start_s, end_s = lifecycle.measured(config, clients)
            assert start_s > 0
            assert end_s > 0


async def test_presence_is_asked_for_in_every_way() -> None:
    bench = presence.Bench(members=50, listed=20, clock=ManualClock())
    found = await presence.measured(bench, rounds=2, asks=3)
    assert len(found) == 7
    assert all(value > 0 for values in found.values() for value in values)
    assert bench.reads == 4, "one of each channel in a round"


def test_percentiles() -> None:
    values = [float(value) for value in range(11)]
    assert [percentile(values, part) for part in (0, 0.5, 0.9, 1)] == [0, 5, 9, 10]
