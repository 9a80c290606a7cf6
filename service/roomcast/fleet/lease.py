"""This node's lease: that it lives, and what it holds.

Who finds a lease expired may clean up after its node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, Protocol

import structlog

from roomcast.delivery.canary_rules import is_number
from roomcast.fleet.lease_record import Lease, standing
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, PortError

__all__ = ["LeaseKeeper", "LeaseOwner", "NothingToReport"]

_log = structlog.get_logger(__name__)

# A heartbeat comes early by up to this part of its interval, so that nodes that started together
# drift apart.
_JITTER: Final = 0.2
# After one that failed the next comes in this part of the interval: before the lease has ended
# there are several, and whoever looks learns of a table that fails.
_AGAIN: Final = 1 / 3
# Rows of lost answers that are dropped at the end as well; older ones have expired and were cleaned
# up after.
_UNSURE_MAX: Final = 20


class LeaseOwner(Protocol):
    """The node whose lease it is."""

    def report(self, held: Lease) -> Lease:
        """Asked at each heartbeat: the lease with what the node holds and hears now."""

    def lost(self, next_lease: Lease) -> None:
        """The lease was lost, and the next one is written.

        Its queue is "" unless the queue is just being replaced.
        """


class NothingToReport:
    """The owner of a lease that holds a queue and nothing else."""

    def report(self, held: Lease) -> Lease:
        return held

    def lost(self, next_lease: Lease) -> None:
        pass


class LeaseKeeper:
    """Writes, renews and drops the lease of one node.

    A heartbeat that is refused says that somebody took this node for dead and cleans up after it,
    as happens to a node that could not reach the table for a while. What the old lease held is then
    lost: the node goes on under a new lease, of another id, and its owner is told.
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
        """`node`: the id of the first lease; `new_id` gives another one, never used before."""
        self._leases = leases
        self._clock = clock
        self._random = random
        self._owner = owner
        self._new_id = new_id
        self.ttl_ms = round(ttl_s * 1000)
        self._heartbeat_s = heartbeat_s
        now = clock.now_ms()
        self._lease = Lease(
            node, "", "starting", now, now, now + self.ttl_ms, instance=instance, version=version
        )
        # When the table took a heartbeat last (wall clock, ms), and how many it has not taken
        # since.
        self.taken_ms = now
        self.failures = 0
        # The newest canaries that other leases told, by node, when they were looked at last.
        self._canaries: dict[str, int] = {}
        # Whether the row is there, as far as this node knows.
        self._stored = False
        # Ids whose rows may be there all the same: the answer was lost.
        self._unsure: list[str] = []
        # From the first `hold` to `drop`: the time in which a row should be there.
        self._wanted = False
        self._is_anew = False
        self._writing = asyncio.Lock()

    @property
    def held(self) -> bool:
        """Whether the last heartbeat found the lease in place."""
        return self._stored

    @property
    def has_ended(self) -> bool:
        """Whether others take this node for dead: so long has the table taken no heartbeat."""
        return self._clock.now_ms() - self.taken_ms >= self.ttl_ms

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
            pause_s = self._heartbeat_s * (1 - _JITTER * self._random())
            await asyncio.sleep(pause_s * _AGAIN if self.failures else pause_s)
            await self._try_beat()

    async def drop(self) -> None:
        """This node holds nothing any more.

        Raises PortError; what is left then expires, and is cleaned up after.
        """
        async with self._writing:
            self._wanted = False
            for node in (*self._unsure, *((self._lease.node,) if self._stored else ())):
                await self._leases.drop(node)
            self._unsure.clear()
            self._stored = False

    async def abandon(self, left_under: Collection[str] = ()) -> None:
        """This node ends and leaves something behind.

        Its lease ends now, so that somebody cleans up. Raises PortError.

        `left_under`: the leases under which there may be presence entries. For those that were lost
        a lease is written that has ended: whoever took them may be through with them.
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
        """Renew the lease; one that is lost is followed by another, which holds `queue_if_lost`.

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
            # It may be there, and be taken for dead before the next attempt: a row is put once, so
            # that none that somebody cleans up after comes to life again.
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
        """Under the old id somebody is cleaning up, or has done so: nothing new may carry it."""
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

        It grew since this was asked before. A number that does not grow proves nothing, and must
        not hide those that do: whoever may write to the table could have made it up. Whether
        leases have ended is a matter of clocks, and is not looked at.
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
        """When another node's heartbeat was taken last (ms); 0 = none. Raises PortError.

        By that node's clock, and not after now. What is further ahead than a lease lives is no
        heartbeat, or of a clock that tells nothing: it would look new for ever.
        """
        now, own = self._clock.now_ms(), {self._lease.node, *self._unsure}
        beats = [each.heartbeat_at for each in await self._leases.all() if each.node not in own]
        return min(now, max((beat for beat in beats if beat <= now + self.ttl_ms), default=0))

    async def others_here(self) -> bool:
        """Whether another node of this machine lives. Raises PortError."""
        now, own = self._clock.now_ms(), self._lease
        return any(
            each.instance == own.instance
            and each.node != own.node
            and standing(each, now) == "live"
            for each in await self._leases.all()
        )
