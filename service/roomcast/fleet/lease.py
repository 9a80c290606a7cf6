"""Writes this node's lease, which says that the node lives and what it holds.

Any process that finds a lease expired may clean up after its node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, Protocol

import structlog

from roomcast.delivery.canary_rules import is_number
from roomcast.fleet.badges import badge_of_node
from roomcast.fleet.lease_record import Lease, standing
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, PortError

__all__ = ["LeaseKeeper", "LeaseOwner", "NothingToReport"]

_log = structlog.get_logger(__name__)

# A heartbeat comes earlier by up to this part of its interval, so that nodes that started together
# drift apart.
_JITTER: Final = 0.2
# After a failed heartbeat, the next one comes after this part of the interval. So several are tried
# before the lease expires, and the health check soon sees that the table fails.
_AGAIN: Final = 1 / 3
# Ids of rows with unknown outcome that are dropped at the end as well. Older ones have expired and
# were cleaned up.
_UNSURE_MAX: Final = 20


class LeaseOwner(Protocol):
    """The node whose lease it is."""

    def report(self, held: Lease) -> Lease:
        """Complete the lease at each heartbeat: with what the node holds and hears now."""

    def lost(self, next_lease: Lease) -> None:
        """The lease was lost, and the next one is written.

        The queue of the next lease is "" unless the queue is just being replaced.
        """


class NothingToReport:
    """The owner of a lease that holds a queue and nothing else."""

    def report(self, held: Lease) -> Lease:
        return held

    def lost(self, next_lease: Lease) -> None:
        pass


class LeaseKeeper:
    """Writes, renews and drops the lease of one node.

    If a heartbeat is refused, another process took this node for dead and cleans up after it. That
    happens when the node could not reach the table for a while. Everything that the old lease held
    is then lost. The node goes on under a new lease with another id, and its owner is told.
    """

    def __init__(
        self,
        leases: Leases,
        clock: Clock,
        random: Callable[[], float],
        *,
        owner: LeaseOwner,
        node: str,
        new_id: Callable[[], str],
        ttl_s: float,
        heartbeat_s: float,
        instance: str = "",
        version: str = "",
    ) -> None:
        """`node`: the id of the first lease. `new_id` returns ids that were never used before."""
        self._leases = leases
        self._clock = clock
        self._random = random
        self._owner = owner
        self._new_id = new_id
        self.ttl_ms = round(ttl_s * 1000)
        self._heartbeat_s = heartbeat_s
        now = clock.now_ms()
        self._lease = Lease(
            node,
            "",
            "starting",
            now,
            now,
            now + self.ttl_ms,
            instance=instance,
            version=version,
            badge=badge_of_node(node),
        )
        # When the table last took a heartbeat (wall clock, ms), and how many have failed since.
        self.taken_ms = now
        self.failures = 0
        # The newest canaries of other nodes by the last read of the leases, by node.
        self._canaries: dict[str, int] = {}
        # Whether the row exists, as far as this node knows.
        self._stored = False
        # Ids whose rows may exist as well, because the answer was lost.
        self._unsure: list[str] = []
        # Whether a row should exist: from the first `hold` to `drop`.
        self._wanted = False
        self._is_anew = False
        self._writing = asyncio.Lock()

    @property
    def held(self) -> bool:
        """Whether the last heartbeat found the lease in place."""
        return self._stored

    @property
    def has_ended(self) -> bool:
        """Whether the lease has expired, so that others take this node for dead."""
        return self._clock.now_ms() - self.taken_ms >= self.ttl_ms

    @property
    def id(self) -> str:
        """The id of the present lease, to which the queue and presence entries belong."""
        return self._lease.node

    async def hold(self, queue: str) -> None:
        """Record that this node holds `queue`, before it is created. Raises PortError."""
        async with self._writing:
            self._wanted = True
            self._lease = replace(self._lease, queue=queue)
            await self._write(queue)

    async def enter(self, state: str) -> None:
        """Write a new state at once: live or draining.

        After an error, the next heartbeat writes it.
        """
        self._lease = replace(self._lease, state=state)
        await self._try_beat()

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            pause_s = self._heartbeat_s * (1 - _JITTER * self._random())
            await asyncio.sleep(pause_s * _AGAIN if self.failures else pause_s)
            await self._try_beat()

    async def drop(self) -> None:
        """Remove the lease: this node holds nothing any more.

        Raises PortError. Then the remaining rows expire and are cleaned up.
        """
        async with self._writing:
            self._wanted = False
            for node in (*self._unsure, *((self._lease.node,) if self._stored else ())):
                await self._leases.drop(node)
            self._unsure.clear()
            self._stored = False

    async def abandon(self, left_under: Collection[str] = ()) -> None:
        """Expire the lease, because this node ends and leaves something behind.

        Another process then cleans up. Raises PortError.

        `left_under`: the leases under which presence entries may exist. For each lost one, an
        expired lease is written again, because the clean-up of the first may be finished.
        """
        async with self._writing:
            self._wanted = False
            self._renew()
            ended = replace(self._lease, expires_at=self._lease.heartbeat_at)
            lost = set(left_under) - {ended.node}
            failures: list[PortError] = []
            try:
                if self._stored and not await self._leases.heartbeat(ended):
                    lost.add(ended.node)
            except PortError as error:
                failures.append(error)
            for node in sorted(lost):
                try:
                    await self._leases.put(
                        replace(ended, node=node, queue="", queue_url="", subscription_arn="")
                    )
                except PortError as error:
                    failures.append(error)
            if failures:
                raise failures[0]

    async def _try_beat(self) -> None:
        async with self._writing:
            if not self._wanted:
                return
            try:
                await self._write("")
            except PortError as error:
                self.failures += 1
                _log.warning("heartbeat_failed", failures=self.failures, reason=str(error))

    async def _write(self, queue_if_lost: str) -> None:
        """Renew the lease. If it is lost, write another, which holds `queue_if_lost`.

        Raises PortError.
        """
        self._renew()
        if self._stored:
            if await self._leases.heartbeat(self._lease):
                self._taken()
                return
            self._take_another(queue_if_lost)
        try:
            await self._leases.put(self._lease)
        except BaseException:
            # The row may exist, and its lease may expire before the next attempt. Each id is put
            # only once, so that a row that is being cleaned up never comes to life again.
            self._unsure.append(self._lease.node)
            del self._unsure[:-_UNSURE_MAX]
            self._lease, self._is_anew = replace(self._lease, node=self._new_id()), True
            raise
        self._stored = True
        self._taken()
        if self._is_anew:
            self._is_anew = False
            self._owner.lost(self._lease)

    def _taken(self) -> None:
        self.taken_ms, self.failures = self._clock.now_ms(), 0

    def _take_another(self, queue: str) -> None:
        """Go on under a new id. The old one is being cleaned up, so nothing new may use it."""
        lost, self._stored, self._is_anew = self._lease.node, False, True
        self._lease = replace(
            self._lease, node=self._new_id(), queue=queue, started_at=self._clock.now_ms()
        )
        _log.error("lease_lost", lease=lost, now=self._lease.node)

    def _renew(self) -> None:
        now = self._clock.now_ms()
        self._lease = replace(
            self._owner.report(self._lease), heartbeat_at=now, expires_at=now + self.ttl_ms
        )

    async def newest_canary_elsewhere(self) -> int:
        """The newest canary of another node whose number grew; 0 = none. Raises PortError.

        It must have grown since the last call. A number that does not grow proves nothing: any
        program that can write to the table could have made it up. It must not hide numbers that
        grow. Expired leases count as well, because expiry depends on clocks.
        """
        before, leases = self._canaries, await self._leases.all()
        self._canaries = {
            each.node: each.canary for each in leases if each.node != self._lease.node
        }
        grown = (
            number for node, number in self._canaries.items() if number > before.get(node, number)
        )
        return max(filter(is_number, grown), default=0)

    async def newest_beat_elsewhere(self) -> int:
        """The time of the newest heartbeat of another node (ms); 0 = none. Raises PortError.

        It is by that node's clock, but not after now. A time that is ahead by more than a lease's
        life does not count: it is made up or from a wrong clock, and would look new for ever.
        """
        now, own = self._clock.now_ms(), {self._lease.node, *self._unsure}
        beats = [each.heartbeat_at for each in await self._leases.all() if each.node not in own]
        return min(now, max((beat for beat in beats if beat <= now + self.ttl_ms), default=0))

    async def live_nodes(self) -> int:
        """The number of nodes that live, this one among them. Raises PortError."""
        now, own = self._clock.now_ms(), {self._lease.node, *self._unsure}
        return 1 + sum(
            each.node not in own and standing(each, now) == "live"
            for each in await self._leases.all()
        )

    async def others_here(self) -> bool:
        """Whether another node on this machine lives. Raises PortError."""
        now, own = self._clock.now_ms(), self._lease
        return any(
            each.instance == own.instance
            and each.node != own.node
            and standing(each, now) == "live"
            for each in await self._leases.all()
        )
