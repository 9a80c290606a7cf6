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
    """Writes, renews and drops the lease of one node.

    A heartbeat that is refused says that somebody took this node for dead and cleans up after it, as happens to a node that
    could not reach the table for a while. What the old lease held is then lost: the node goes on under a
    new lease, of another id, and tells `lost`.
    """

    def __init__(
        self,
        leases: Leases,
        clock: Clock,
        random: Callable[[], float],
        *,
        node: str,
        new_id: Callable[[], str],
        ttl_s: float,
        heartbeat_s: float,
        instance: str = "",
        version: str = "",
    ) -> None:
        """`node`: the id of the first lease; `new_id` gives another one, never used before."""
        self._leases = leases
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._ttl_ms = round(ttl_s * 1000)
        self._heartbeat_s = heartbeat_s
        now = clock.now_ms()
        self._lease = Lease(
            node, "", "starting", now, now, now + self._ttl_ms, instance=instance, version=version
        )
        # Whether the row is there, as far as this node knows.
        self._stored = False
        # From the first `hold` to `drop`: the time in which a row should be there.
        self._wanted = False
        self._is_anew = False
        self._writing = asyncio.Lock()
        # Asked at each heartbeat: the lease with what the node holds and hears now.
        self.report: Callable[[Lease], Lease] = _as_it_is
        # Told the new lease once it is written. Its queue is "" unless the queue is just being replaced.
        self.lost: Callable[[Lease], None] = _nobody
        # Whether the last heartbeat found the lease in place.
        self.held = False

    @property
    def id(self) -> str:
        """Of the lease as it is now: whom queue and presence entries belong to."""
        return self._lease.node

    async def hold(self, queue: str) -> None:
        """Say that this node holds `queue`, before it is created. Raises PortError."""
        async with self._writing:
            self._wanted = True
            self._lease = replace(self._lease, queue=queue)
            await self._write(queue)

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
        async with self._writing:
            self._wanted = False
            if self._stored:
                await self._leases.drop(self._lease.node)
                self._stored = self.held = False

    async def _try_beat(self) -> None:
        async with self._writing:
            if not self._wanted:
                return
            try:
                await self._write("")
            except PortError as error:
                _log.warning("heartbeat_failed", reason=str(error))

    async def _write(self, queue_if_lost: str) -> None:
        """Renew the lease; one that is lost is followed by another, which holds `queue_if_lost`. Raises PortError."""
        self._renew()
        if self._stored:
            if await self._leases.heartbeat(self._lease):
                return
            self._take_another(queue_if_lost)
        await self._leases.put(self._lease)
        self._stored = self.held = True
        if self._is_anew:
            self._is_anew = False
            self.lost(self._lease)

    def _take_another(self, queue: str) -> None:
        """Under the old id somebody is cleaning up, or has done so: nothing new may carry it."""
        lost, self._stored, self.held, self._is_anew = self._lease.node, False, False, True
        self._lease = replace(self._lease, node=self._new_id(), queue=queue, started_at=self._clock.now_ms())
        _log.error("lease_lost", lease=lost, now=self._lease.node)

    def _renew(self) -> None:
        now = self._clock.now_ms()
        self._lease = replace(self.report(self._lease), heartbeat_at=now, expires_at=now + self._ttl_ms)

    async def newest_canary_elsewhere(self) -> int:
        """The newest canary that another live node says it heard; 0 when there is none. Raises PortError."""
        now, own = self._clock.now_ms(), self._lease.node
        leases = await self._leases.all()
        return max((each.canary for each in leases if each.node != own and each.expires_at > now), default=0)

    async def others_here(self) -> bool:
        """Whether another node of this machine lives. Raises PortError."""
        now, own = self._clock.now_ms(), self._lease
        return any(
            each.instance == own.instance
            and each.node != own.node
            and each.expires_at > now
            and not each.reaped
            for each in await self._leases.all()
        )


def _as_it_is(lease: Lease) -> Lease:
    return lease


def _nobody(lease: Lease) -> None:
    pass
