"""Reads the members of a channel once for all requests within a second.

A node knows its own members without a read: their stored entries are ignored, and their joins and
leaves cause no read. So the cost of presence grows with channels, nodes and seconds, but not with
requests or members that come and go.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from roomcast.concurrency import FairPlaces, Portions, SharedCall
from roomcast.fleet.lease_record import standing
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, Throttled
from roomcast.presence.lists import Crowd, ListTooLarge, listing, together, totals
from roomcast.presence.ports import Member, Presence, TooManyMembers
from roomcast.wire.publication import ClientInfo

__all__ = [
    "CACHE_CHANNELS_MAX",
    "CACHE_MEMBERS_MAX",
    "CACHE_S",
    "LISTS_A_TURN",
    "MEMBERS_A_TURN",
    "READS_AT_ONCE",
    "READS_A_TURN",
    "READS_WAITING_MAX",
    "TOTALS_A_TURN",
    "PresenceReads",
]

# Seconds for which a read is kept. A thousand clients that ask at once cost one read. Meanwhile
# joins and leaves come as pushes.
CACHE_S: Final = 1.0
# Bounds of all reads that are kept together. A member on another node takes some 1 KB.
CACHE_CHANNELS_MAX: Final = 1000
CACHE_MEMBERS_MAX: Final = 100_000
# Members of one read that are looked at before other tasks have their turn: a millisecond or two.
MEMBERS_A_TURN: Final = 1000
# Lists that are made in one turn, with the replies that hold them: up to 10 ms each, in Protobuf.
LISTS_A_TURN: Final = 1
# The same of totals: up to a millisecond each, where this node and others have ten thousand users.
TOTALS_A_TURN: Final = 4
# Channels that a node reads at once: reads must not take all of its connections to the table. Those
# that wait stand in the lines of who asked, and of them so many begin in one turn.
READS_AT_ONCE: Final = 16
READS_A_TURN: Final = 2
# Reads that run or wait. Further requests are refused: the table does not answer then.
READS_WAITING_MAX: Final = 10_000

_NOBODY: Final = Crowd()


@dataclass(frozen=True, slots=True)
class _Kept:
    """A finished read.

    Its result is not older than `began_s`. `members`: how many it keeps in memory.
    """

    read: SharedCall[Crowd]
    began_s: float
    members: int


class PresenceReads:
    """Makes one read of a channel at a time, and one in CACHE_S.

    `node` returns the id of this node's present lease.
    """

    def __init__(
        self, presence: Presence, leases: Leases, clock: Clock, node: Callable[[], str]
    ) -> None:
        self._presence = presence
        self._leases = leases
        self._clock = clock
        self._node = node
        self._own: dict[str, Crowd] = {}
        self._lists, self._totals = Portions(LISTS_A_TURN), Portions(TOTALS_A_TURN)
        # Reads under way; and finished ones, the oldest first.
        self._under_way: dict[str, SharedCall[Crowd]] = {}
        # What of a read was looked at so far, while that takes more than one turn.
        self._growing: dict[str, Crowd] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._kept_members = 0
        self._places = FairPlaces(READS_AT_ONCE, READS_A_TURN)
        # Of reads that wait for a place.
        self._turns: dict[str, asyncio.Future[None]] = {}
        self._live: SharedCall[frozenset[str]] | None = None
        self._live_began_s = float("-inf")

    # ---- this node's own

    def entered(self, channel: str, info: ClientInfo) -> None:
        """The entry of `info` is stored now."""
        self._own.setdefault(channel, Crowd()).add(info)
        if (growing := self._growing.get(channel)) is not None:
            # It may have been found as another node's, under a lease that this node has lost.
            growing.discard(info.client)

    def left(self, channel: str, client: str) -> None:
        """The entry of `client` is about to be removed. Idempotent."""
        own = self._own.get(channel)
        if own is not None:
            own.discard(client)
            if not own:
                del self._own[channel]

    # ---- what others ask

    # `caller`: in whose line its read waits, if there are too many.

    async def members(self, channel: str, caller: str = "") -> Mapping[str, ClientInfo]:
        """The members by client id. Raises PortError."""
        others = await self._others(channel, caller)
        return together(self._own.get(channel, _NOBODY), others)

    async def totals(self, channel: str, caller: str = "") -> tuple[int, int]:
        """The numbers of clients and of users. Raises PortError."""
        others = await self._others(channel, caller)
        await self._totals.wait()
        return totals(self._own.get(channel, _NOBODY), others)

    async def listing(self, channel: str, bytes_max: int, caller: str = "") -> bytes:
        """The JSON object of members by client id.

        One is made in a turn of the event loop: all who share a read go on in the same one. Raises
        TooManyMembers beyond `bytes_max`, and PortError.
        """
        others = await self._others(channel, caller)
        await self._lists.wait()
        try:
            return listing(self._own.get(channel, _NOBODY), others, bytes_max)
        except ListTooLarge:
            raise TooManyMembers(f"more than {bytes_max} bytes") from None

    # ---- within

    async def _others(self, channel: str, caller: str) -> Crowd:
        """Members on other nodes, read now or within the last CACHE_S.

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
                self._read(channel, caller),
                partial(self._was_read, channel, now_s),
                name=f"presence {channel}",
            )
        elif (turn := self._turns.get(channel)) is not None:
            self._places.join(turn, caller)
        return await read.result()

    def _was_read(self, channel: str, began_s: float) -> None:
        """Keep the finished read of `channel`, unless it is already too old.

        Also drop other reads that are too old, and the oldest if there are too many.
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

    async def _read(self, channel: str, caller: str) -> Crowd:
        await self._take_place(channel, caller)
        try:
            members, live = await asyncio.gather(
                self._presence.members(channel), self._live_nodes()
            )
        finally:
            self._places.give_back()
        return await self._crowd_of_others(channel, members, live)

    async def _take_place(self, channel: str, caller: str) -> None:
        if self._places.free:
            self._places.free -= 1
            return
        self._turns[channel] = turn = self._places.stand({caller})
        try:
            await self._places.wait(turn)
        finally:
            del self._turns[channel]

    async def _crowd_of_others(
        self, channel: str, members: Sequence[Member], live: frozenset[str]
    ) -> Crowd:
        """Those of `members` on the other `live` nodes. MEMBERS_A_TURN are looked at in a turn."""
        node, crowd = self._node(), Crowd()
        self._growing[channel] = crowd
        try:
            for start in range(0, len(members), MEMBERS_A_TURN):
                if start:
                    await asyncio.sleep(0)
                # Members may have come and gone since the last turn.
                own = self._own.get(channel, _NOBODY).infos
                for member in members[start : start + MEMBERS_A_TURN]:
                    # Entries of this node are its own members, or have just left. Its own members
                    # may also have entries under a lost lease.
                    is_here = member.node == node or member.info.client in own
                    if member.node in live and not is_here:
                        crowd.add(member.info)
        finally:
            del self._growing[channel]
        return crowd

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
