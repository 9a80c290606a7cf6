"""Counts the nodes that live, now and then, for whoever has a part of something by their number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from roomcast.backoff import FROM_HALF, Backoff
from roomcast.delivery.allowance import nodes_assumed
from roomcast.ports import PortError

__all__ = ["COUNT_LIMIT_S", "COUNT_S", "FleetSize", "NodeCount", "Sharer"]

# Seconds between two counts of the nodes that live, and for each of them. One that fails is
# repeated sooner at first.
COUNT_S: Final = 60.0
COUNT_LIMIT_S: Final = 5.0
_COUNTS_AGAIN: Final = Backoff(5.0, COUNT_S, FROM_HALF)
_JITTER: Final = 0.2

_log = structlog.get_logger(__name__)


class FleetSize(Protocol):
    """Whoever knows how many nodes there are."""

    async def live_nodes(self) -> int:
        """The number of nodes that live, this one among them. Raises PortError."""


class Sharer(Protocol):
    """Whoever has a part of something that all nodes share."""

    def share(self, nodes: int) -> None:
        """Take this node's part among `nodes` of them."""


class NodeCount:
    """One a node. `run` is its background task."""

    def __init__(self, sharers: Sequence[Sharer], random: Callable[[], float]) -> None:
        self._sharers = sharers
        self._random = random
        # None until they were counted.
        self._nodes: int | None = None

    async def run(self, fleet: FleetSize) -> None:
        """Count, and tell the sharers, until cancelled."""
        failures = 0
        while True:
            pause_s = COUNT_S * (1 - _JITTER * self._random())
            try:
                async with asyncio.timeout(COUNT_LIMIT_S):
                    counted = await fleet.live_nodes()
            except (PortError, TimeoutError) as error:
                # The number of before goes on counting.
                _log.warning("nodes_not_counted", reason=str(error) or "no answer in time")
                failures += 1
                pause_s = _COUNTS_AGAIN.pause_s(failures, self._random())
            else:
                failures = 0
                self._nodes = nodes_assumed(self._nodes, counted)
                for each in self._sharers:
                    each.share(self._nodes)
            await asyncio.sleep(pause_s)
