"""Watches whether this node alone is cut off: the tables answer others, but not this node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from roomcast.delivery.canary import CanaryEars
from roomcast.delivery.canary_rules import MISSED_INTERVALS
from roomcast.fleet.lease import LeaseKeeper
from roomcast.log.watched_table import WatchedTable
from roomcast.node.isolation_rules import is_alone
from roomcast.ports import Clock, PortError
from roomcast.wire.names import RESERVED_PREFIX

__all__ = ["LOOK_LIMIT_S", "Isolation"]

# Time limit of a look at the leases, and of one at the log.
LOOK_LIMIT_S: Final = 5.0
_JITTER: Final = 0.2


class Isolation:
    """Knows the writes of other nodes from two sources.

    One is their leases, if these can be read. The other is their canaries, which come through the
    queue even while the tables do not answer.

    A canary proves that the channels table takes writes. It says nothing about the nodes table. So
    it counts only if the channels table fails for this node as well. Otherwise an outage of the
    nodes table alone would make many nodes look cut off.
    """

    def __init__(
        self,
        lease: LeaseKeeper,
        table: WatchedTable,
        ears: CanaryEars,
        clock: Clock,
        random: Callable[[], float],
        *,
        look_s: float,
        canary_interval_s: float,
    ) -> None:
        """`look_s`: seconds between two looks while the lease has expired."""
        self._lease = lease
        self._table = table
        self._ears = ears
        self._clock = clock
        self._random = random
        self._look_s = look_s
        # Signs of other nodes come with each heartbeat, or with each canary.
        self._fresh_ms = max(lease.ttl_ms, round(MISSED_INTERVALS * canary_interval_s * 1000))
        # The newest heartbeat of another node, from the last read of the leases.
        self._beat_ms = 0

    def is_cut_off(self) -> bool:
        """Whether this node alone cannot reach the tables."""
        emitted_ms = self._ears.emitted_elsewhere_ms if self._table.fails else 0
        return is_alone(
            taken_ms=self._lease.taken_ms,
            ttl_ms=self._lease.ttl_ms,
            sign_ms=max(self._beat_ms, emitted_ms),
            fresh_ms=self._fresh_ms,
            now_ms=self._clock.now_ms(),
        )

    async def run(self) -> None:
        """Look at leases and log while the lease has expired. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._look_s * (1 - _JITTER * self._random()))
            if self._lease.has_ended:
                await asyncio.gather(self._look_at_leases(), self._look_at_log())

    async def _look_at_leases(self) -> None:
        with suppress(PortError, TimeoutError):
            async with asyncio.timeout(LOOK_LIMIT_S):
                self._beat_ms = await self._lease.newest_beat_elsewhere()

    async def _look_at_log(self) -> None:
        """Read once, for the watch of the table: nothing else may be reading or writing now."""
        with suppress(PortError, TimeoutError):
            async with asyncio.timeout(LOOK_LIMIT_S):
                await self._table.head(RESERVED_PREFIX + "check")
