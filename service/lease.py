"""This node's lease: that it lives, and what it holds. Who finds a lease expired may clean up after its node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from service.ports import Clock, Lease, Leases, PortError

__all__ = ["LeaseKeeper"]

_log = structlog.get_logger(__name__)

# A heartbeat comes early by up to this part of its interval, so that nodes that started together drift apart.
_JITTER: Final = 0.2


class LeaseKeeper:
    """Writes, renews and drops the lease of one node."""

    def __init__(
        self,
        leases: Leases,
        clock: Clock,
        random: Callable[[], float],
        *,
        node: str,
        ttl_s: float,
        heartbeat_s: float,
    ) -> None:
        self._leases = leases
        self._clock = clock
        self._random = random
        self._ttl_ms = round(ttl_s * 1000)
        self._heartbeat_s = heartbeat_s
        now = clock.now_ms()
        self._lease = Lease(node, "", "starting", now, now, now + self._ttl_ms)
        self._written = False
        # Asked at each heartbeat: the newest canary slot heard.
        self.canary: Callable[[], int] = _none
        # Whether the last heartbeat found the lease in place.
        self.held = False

    async def hold(self, queue: str) -> None:
        """Say that this node holds `queue`, before it is created. Raises PortError."""
        self._lease = replace(self._lease, queue=queue)
        if self._written:
            await self._beat()
        else:
            self._renewed()
            await self._leases.put(self._lease)
            self._written = self.held = True

    async def enter(self, state: str) -> None:
        """Write a new state at once: live or draining. Errors are left to the next heartbeat."""
        self._lease = replace(self._lease, state=state)
        await self._try_beat()

    async def run(self) -> None:
        """Heartbeats until cancelled."""
        while True:
            await asyncio.sleep(self._heartbeat_s * (1 - _JITTER * self._random()))
            await self._try_beat()

    async def drop(self) -> None:
        """Raises PortError; what is left then expires by itself."""
        if self._written:
            await self._leases.drop(self._lease.node)
            self._written = self.held = False

    async def _try_beat(self) -> None:
        try:
            await self._beat()
        except PortError as error:
            _log.warning("heartbeat_failed", reason=str(error))

    async def _beat(self) -> None:
        self._renewed()
        held = await self._leases.heartbeat(self._lease)
        if self.held and not held:
            _log.error("lease_lost", node=self._lease.node)
        self.held = held

    def _renewed(self) -> None:
        now = self._clock.now_ms()
        self._lease = replace(
            self._lease, heartbeat_at=now, expires_at=now + self._ttl_ms, canary=self.canary()
        )

    async def newest_canary_elsewhere(self) -> int:
        """The newest slot that another live node says it heard; 0 when there is none. Raises PortError."""
        now, own = self._clock.now_ms(), self._lease.node
        leases = await self._leases.all()
        return max((each.canary for each in leases if each.node != own and each.expires_at > now), default=0)


def _none() -> int:
    return 0
