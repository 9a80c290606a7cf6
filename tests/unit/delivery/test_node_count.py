"""The number of nodes by which they share: as of the last count, and never lowered by much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from roomcast.backoff import Backoff
from roomcast.delivery import node_count as node_count_module
from roomcast.delivery.node_count import NodeCount
from roomcast.ports import PortError, Throttled
from tests.unit.worlds import no_jitter, running, until


class Told:
    """A Sharer."""

    def __init__(self) -> None:
        self.nodes: list[int] = []

    def share(self, nodes: int) -> None:
        self.nodes.append(nodes)


class Counts:
    """A FleetSize: what each count finds. There is none after the last."""

    def __init__(self, *counts: int | PortError) -> None:
        self._counts: Iterator[int | PortError] = iter(counts)
        self.failures = 0

    async def live_nodes(self) -> int:
        found = next(self._counts, None)
        if found is None:
            await asyncio.Event().wait()
        if isinstance(found, PortError):
            self.failures += 1
            raise found
        assert found is not None
        return found


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_count_module, "COUNT_S", 0.0)
    monkeypatch.setattr(node_count_module, "_COUNTS_AGAIN", Backoff(0.0, 0.0))


async def test_more_nodes_count_at_once_and_fewer_by_and_by() -> None:
    one, other = Told(), Told()
    async with running(NodeCount((one, other), no_jitter).run(Counts(1, 50, 2, 2, 30, 3))):
        await until(lambda: len(one.nodes) == 6)
    assert one.nodes == other.nodes == [1, 50, 25, 13, 30, 15]


async def test_a_count_that_fails_changes_nothing() -> None:
    told, counts = Told(), Counts(Throttled(), 4, Throttled(), 5)
    async with running(NodeCount((told,), no_jitter).run(counts)):
        await until(lambda: len(told.nodes) == 2)
    assert (told.nodes, counts.failures) == ([4, 5], 2)


async def test_a_count_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_count_module, "COUNT_LIMIT_S", 0.0)
    counts = Hanging()
    async with running(NodeCount((Told(),), no_jitter).run(counts)):
        await until(lambda: counts.asked > 2)


class Hanging:
    """A FleetSize that does not answer."""

    asked = 0

    async def live_nodes(self) -> int:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError
