"""Who is in a channel, read once for all who ask within a second.

Of its own members a node knows itself: what is read of them is not looked at, and whoever comes or
goes here makes nobody read again. So what presence costs does not grow with those who ask or with
those who come, but with channels, nodes and seconds.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from roomcast.concurrency import SharedCall
from roomcast.fleet.lease_record import standing
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, Throttled
from roomcast.presence.lists import Crowd, ListTooLarge, crowd_of, listing, together, totals
from roomcast.presence.ports import Presence, TooManyMembers
from roomcast.wire.publication import ClientInfo

__all__ = [
    "CACHE_CHANNELS_MAX",
    "CACHE_MEMBERS_MAX",
    "CACHE_S",
    "READS_AT_ONCE",
    "READS_WAITING_MAX",
    "PresenceReads",
]

# A thousand clients that ask at once cost one read. Joins and leaves come as pushes meanwhile.
CACHE_S: Final = 1.0
# What is kept of all channels together: members that are on other nodes, some 1 KB each.
CACHE_CHANNELS_MAX: Final = 1000
CACHE_MEMBERS_MAX: Final = 100_000
# Of channels, by a node: they must not take all of its connections to the table.
READS_AT_ONCE: Final = 16
# And of those that wait for their turn: beyond it, who asks is refused. The table does not answer
# then.
READS_WAITING_MAX: Final = 1000

_NOBODY: Final = Crowd()


@dataclass(frozen=True, slots=True)
class _Kept:
    """A read that is done.

    What it tells is as old as `began_s` at the most; `members` is how many it keeps in memory.
    """

    read: SharedCall[Crowd]
    began_s: float
    members: int


class PresenceReads:
    """At most one read of a channel at a time, and one in CACHE_S.

    `node` tells the id of this node's present lease.
    """

    def __init__(
        self, presence: Presence, leases: Leases, clock: Clock, node: Callable[[], str]
    ) -> None:
        self._presence = presence
        self._leases = leases
        self._clock = clock
        self._node = node
        self._own: dict[str, Crowd] = {}
        # Those under way; and those that are done, the oldest first.
        self._under_way: dict[str, SharedCall[Crowd]] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._kept_members = 0
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._live: SharedCall[frozenset[str]] | None = None
        self._live_began_s = float("-inf")

    # ---- this node's own

    def entered(self, channel: str, info: ClientInfo) -> None:
        """`info` is stored now."""
        self._own.setdefault(channel, Crowd()).add(info)

    def left(self, channel: str, client: str) -> None:
        """It is to be removed. Idempotent."""
        own = self._own.get(channel)
        if own is not None:
            own.discard(client)
            if not own:
                del self._own[channel]

    # ---- what others ask

    async def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """By client id. Raises PortError."""
        others = await self._others(channel)
        return together(self._own.get(channel, _NOBODY), others)

    async def totals(self, channel: str) -> tuple[int, int]:
        """How many clients, and how many users. Raises PortError."""
        others = await self._others(channel)
        return totals(self._own.get(channel, _NOBODY), others)

    async def listing(self, channel: str, bytes_max: int) -> bytes:
        """The JSON object of infos by client id.

        Raises TooManyMembers beyond `bytes_max`, and PortError.
        """
        others = await self._others(channel)
        try:
            return listing(self._own.get(channel, _NOBODY), others, bytes_max)
        except ListTooLarge:
            raise TooManyMembers(f"more than {bytes_max} bytes") from None

    # ---- within

    async def _others(self, channel: str) -> Crowd:
        """Members on other nodes: what is read now, or was within CACHE_S.

        Failures are kept as well.
        """
        read = self._under_way.get(channel)
        if read is None:
            kept, now_s = self._kept.get(channel), self._clock.monotonic_s()
            if kept is not None and kept.began_s + CACHE_S >= now_s:
                return kept.read.task.result()
            if len(self._under_way) >= READS_WAITING_MAX:
                raise Throttled("too many channels' members are being read")
            read = self._under_way[channel] = SharedCall(
                self._read(channel),
                partial(self._was_read, channel, now_s),
                name=f"presence {channel}",
            )
        return await read.result()

    def _was_read(self, channel: str, began_s: float) -> None:
        """Keep it, unless it is too old to be told.

        Drop what is, and the oldest of what is too much.
        """
        read = self._under_way.pop(channel)
        self._drop(channel)
        if not read.task.cancelled():
            members = len(read.task.result()) if read.task.exception() is None else 0
            self._kept[channel] = _Kept(read, began_s, members)
            self._kept_members += members
        now_s = self._clock.monotonic_s()
        while self._kept:
            oldest, kept = next(iter(self._kept.items()))
            is_old = kept.began_s + CACHE_S < now_s
            is_much = len(self._kept) > CACHE_CHANNELS_MAX or self._kept_members > CACHE_MEMBERS_MAX
            if not (is_old or (is_much and len(self._kept) > 1)):
                return
            self._drop(oldest)

    def _drop(self, channel: str) -> None:
        """Idempotent."""
        if (kept := self._kept.pop(channel, None)) is not None:
            self._kept_members -= kept.members

    async def _read(self, channel: str) -> Crowd:
        async with self._reads:
            members, live = await asyncio.gather(
                self._presence.members(channel), self._live_nodes()
            )
        node, own = self._node(), self._own.get(channel, _NOBODY)
        return crowd_of(
            member.info
            for member in members
            # What stands there of this node is its own, or has just left. Under a lease that it
            # lost it may, too.
            if member.node in live and member.node != node and member.info.client not in own.infos
        )

    async def _live_nodes(self) -> frozenset[str]:
        now_s = self._clock.monotonic_s()
        live = self._live
        if live is None or (live.done and self._live_began_s + CACHE_S < now_s):
            live = self._live = SharedCall(self._read_leases(), name="presence leases")
            self._live_began_s = now_s
        return await live.result()

    async def _read_leases(self) -> frozenset[str]:
        now = self._clock.now_ms()
        return frozenset(
            lease.node for lease in await self._leases.all() if standing(lease, now) == "live"
        )
