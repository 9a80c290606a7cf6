"""Writes this node's presence entries, and gives the members of a channel over all live nodes.

Reads are in presence/reads.py.

Entries belong to a lease. A node that lost its lease writes them again under its next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import Final, Protocol, TypeVar

import structlog

from roomcast.concurrency import Turns, each_to_its_end
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, PortError
from roomcast.presence.lists import encoded
from roomcast.presence.ports import Member, Presence
from roomcast.presence.reads import PresenceReads
from roomcast.rates import Rate, Seldom
from roomcast.wire.publication import ClientInfo

__all__ = [
    "ENTRIES_AT_ONCE",
    "EXITS_MAX",
    "EXIT_RETRY_S",
    "LATE_S",
    "LEASES_LEFT_MAX",
    "LISTED_A_TURN",
    "LIST_BYTES_MAX",
    "MOVED_A_TURN",
    "PresenceBook",
    "ReentryListener",
]

# Default bytes of one list of members: half of a client's outgoing queue, as for recovery and
# history.
LIST_BYTES_MAX: Final = 512 * 1024
# Members of a whole list that are encoded before other tasks have their turn: some 2 ms.
LISTED_A_TURN: Final = 1_000
# Pause before entries that could not be removed are tried again. A member that left must not stay
# for the life of this node.
EXIT_RETRY_S: Final = 5.0
# How long a write that was given up may still reach the table: the system goes on sending what a
# closed connection has left, for some 100 s.
LATE_S: Final = 120.0
# Entries of each of these kinds that are remembered, some 500 bytes each. Further ones stay until
# the node has ended and the reaper removes them.
EXITS_MAX: Final = 20_000
# Lost leases that are reported at the end: those of some hours. Older ones are tombstones by then,
# or gone.
LEASES_LEFT_MAX: Final = 100
# Entries that are written or removed at once.
ENTRIES_AT_ONCE: Final = 16
# Entries of a lost lease that are remembered in one turn of the event loop: some 5 ms.
MOVED_A_TURN: Final = 1_000
_TOLD: Final = Rate(per_s=1.0, burst=1.0)

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class ReentryListener(Protocol):
    """The listener for entries that were written again under another lease."""

    def entered_again(self, channel: str, info: ClientInfo) -> None:
        """The client is still here, but others were told that it left."""


class PresenceBook:
    """Presence as this node writes and reads it.

    `run` removes entries that `exit` could not remove, and writes all entries again after `move`.
    `node` is the id of the lease that entries belong to. `list_bytes_max` bounds the result of
    `listing`.
    """

    def __init__(
        self,
        presence: Presence,
        leases: Leases,
        clock: Clock,
        *,
        node: str,
        list_bytes_max: int = LIST_BYTES_MAX,
        listener: ReentryListener | None = None,
    ) -> None:
        self._presence = presence
        self._node = node
        self._list_bytes_max = list_bytes_max
        self._clock = clock
        self._reads = PresenceReads(presence, leases, clock, lambda: self._node)
        # The members on this node, by channel and client; and those whose entry under the present
        # lease is not written yet.
        self._here: dict[tuple[str, str], ClientInfo] = {}
        self._unwritten: OrderedDict[tuple[str, str], ClientInfo] = OrderedDict()
        # Since when those members are there, in ms since 1970.
        self._since_ms: dict[tuple[str, str], int] = {}
        # Clients that left, by channel and client, of which an entry under a lost lease is the last
        # one: its removal is their leaving.
        self._last: dict[tuple[str, str], None] = {}
        # Entries under lost leases, by lease, channel and client. The reaper may have looked before
        # they were written.
        self._old: OrderedDict[tuple[str, str, str], ClientInfo] = OrderedDict()
        # By lost lease, the entries that are yet to be among those.
        self._moved: deque[tuple[str, deque[tuple[str, ClientInfo]]]] = deque()
        # The number of entries that are being removed, by lease; and the leases of entries that
        # could neither be removed nor remembered.
        self._leaving: Counter[str] = Counter()
        self._forgotten: dict[str, None] = {}
        self._told = Seldom(_TOLD)
        self._listing = Turns(1)
        self._wake = asyncio.Event()
        self._listener = listener
        # Entries that could not be removed, by channel and client.
        self._exits: OrderedDict[tuple[str, str], ClientInfo] = OrderedDict()
        # Held while one of them is tried again, so that it does not remove a client that comes
        # back.
        self._retrying = asyncio.Lock()
        # Entries whose write was given up, by lease, channel and client, and until when (monotonic
        # s) it may reach the table, unless it is kept out. The oldest first.
        self._given_up: OrderedDict[tuple[str, str, str], tuple[ClientInfo, float]] = OrderedDict()

    @property
    def node(self) -> str:
        """The id of the lease that entries belong to now."""
        return self._node

    async def enter(self, channel: str, info: ClientInfo) -> None:
        """Write an entry. Raises PortError."""
        key = (channel, info.client)
        if key in self._exits:
            async with self._retrying:
                self._exits.pop(key, None)
        # Whoever is back has not left: the removal of an old entry tells nobody so.
        self._last.pop(key, None)
        # Set before the write: if the lease is lost meanwhile, the entry has to move as well.
        self._here[key] = info
        self._since_ms[key] = self._clock.now_ms()
        node = self._node
        await self._add(node, channel, info)
        if node != self._node:
            # `move` may have removed the entry before it was written.
            self._leave_old(node, channel, info)
        if self._here.get(key) is info:
            self._reads.entered(channel, info)

    def enter_later(self, channel: str, info: ClientInfo) -> None:
        """As an `enter` that failed, unless the client has left since: `run` does it."""
        key = (channel, info.client)
        if self._here.get(key) is info:
            self._unwritten[key] = info

    async def _add(self, node: str, channel: str, info: ClientInfo, *, again: bool = False) -> None:
        """Write an entry under `node`. Raises PortError."""
        since_ms = self._since_ms.get((channel, info.client), 0)
        try:
            await self._presence.add(channel, Member(node, info, since_ms, again))
        except (PortError, asyncio.CancelledError):
            self._may_come_late(node, channel, info)
            raise

    async def _remove(self, node: str, channel: str, info: ClientInfo) -> None:
        """Remove an entry for good, also if its write was given up. Raises PortError."""
        member = Member(node, info)
        if (node, channel, info.client) not in self._given_up:
            await self._presence.remove(channel, member)
            return
        try:
            await self._presence.keep_out(channel, member)
        except (PortError, asyncio.CancelledError):
            self._may_come_late(node, channel, info)
            raise

    def _may_come_late(self, node: str, channel: str, info: ClientInfo) -> None:
        """Remember an entry of which a write was given up: it may reach the table yet."""
        key = (node, channel, info.client)
        self._given_up.pop(key, None)
        if len(self._given_up) < EXITS_MAX:
            self._given_up[key] = info, self._clock.monotonic_s() + LATE_S
        else:
            self._forget(node, channel, info)

    async def exit(self, channel: str, info: ClientInfo) -> None:
        """Remove an entry, also after a failed `enter`.

        Raises PortError; `run` then tries again.
        """
        node = self._node
        self._is_not_here(channel, info)
        self._leaving[node] += 1
        try:
            await self._remove(node, channel, info)
        except asyncio.CancelledError:
            self._forget(node, channel, info)
            raise
        except PortError:
            self._not_removed(node, channel, info)
            raise
        finally:
            self._leaving[node] -= 1
            if not self._leaving[node]:
                del self._leaving[node]

    def exit_later(self, channel: str, info: ClientInfo) -> None:
        """As an `exit` that failed: `run` does it."""
        self._is_not_here(channel, info)
        self._not_removed(self._node, channel, info)

    def _is_not_here(self, channel: str, info: ClientInfo) -> None:
        key = (channel, info.client)
        self._here.pop(key, None)
        self._since_ms.pop(key, None)
        if self._unwritten.pop(key, None) is not None:
            self._is_last(key)
        self._reads.left(channel, info.client)

    def _is_last(self, key: tuple[str, str]) -> None:
        """A client left without an entry under the present lease."""
        if len(self._last) < EXITS_MAX:
            self._last[key] = None

    @property
    def is_clean(self) -> bool:
        """Whether no entry of this node is stored any more, after all clients have left."""
        here = self._here or self._unwritten
        left = self._exits or self._old or self._leaving or self._given_up or self._forgotten
        return not (here or left or self._moved)

    @property
    def left_under(self) -> Collection[str]:
        """The leases under which entries may be stored when `is_clean` is False.

        They are the present one and lost ones.
        """
        lost = (
            {node: None for node, _, _ in (*self._old, *self._given_up)}
            | {node: None for node, _ in self._moved}
            | self._forgotten
            | dict.fromkeys(self._leaving)
        )
        return [self._node, *list(lost)[-LEASES_LEFT_MAX:]]

    def move(self, node: str) -> None:
        """Move all entries to the next lease, `node`, because the present one was lost.

        `run` writes them again under it, and removes the old ones.

        The reaper removes the old ones as well, but only those that existed when it looked.
        """
        old, self._node = self._node, node
        if self._here or self._exits:
            entries = chain(self._here.items(), self._exits.items())
            self._moved.append((old, deque((channel, info) for (channel, _), info in entries)))
        for key in self._exits:
            self._is_last(key)
        self._exits.clear()
        self._unwritten = OrderedDict(self._here)
        self._wake.set()

    async def _leave_moved(self) -> None:
        """Remember the entries under lost leases, MOVED_A_TURN in one turn."""
        while self._moved:
            node, entries = self._moved[0]
            for _ in range(min(MOVED_A_TURN, len(entries))):
                self._leave_old(node, *entries.popleft())
            if not entries:
                self._moved.popleft()
            await asyncio.sleep(0)

    def _not_removed(self, node: str, channel: str, info: ClientInfo) -> None:
        """Remember an entry under `node` that may exist though its client has left.

        It is removed later.
        """
        if node != self._node:
            self._is_last((channel, info.client))
            self._leave_old(node, channel, info)
        elif len(self._exits) < EXITS_MAX:
            self._exits[channel, info.client] = info
        else:
            self._forget(node, channel, info)

    def _leave_old(self, node: str, channel: str, info: ClientInfo) -> None:
        if len(self._old) < EXITS_MAX:
            self._old[node, channel, info.client] = info
        else:
            self._forget(node, channel, info)
        self._wake.set()

    def _forget(self, node: str, channel: str, info: ClientInfo) -> None:
        """Nobody removes the entry of `info` until `node` has ended: then the reaper does."""
        self._presence.abandon(channel, Member(node, info))
        if (passed_over := self._told.again(self._clock.monotonic_s())) is not None:
            _log.warning("presence_entry_abandoned", channel=channel, passed_over=passed_over)
        self._forgotten[node] = None
        if len(self._forgotten) > LEASES_LEFT_MAX:
            del self._forgotten[next(iter(self._forgotten))]

    async def run(self) -> None:
        """Write and remove the entries that are left to do, again and again.

        Runs until cancelled. Entries that are left then end with the lease.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_RETRY_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._write_again()
            self._look_after_late_writes()
            await self._leave_moved()
            await self._remove_old()
            await self._retry_exits()

    async def finish(self) -> None:
        """Try once more to remove what is left. For the end, after all clients have left.

        The caller bounds the time.
        """
        self._look_after_late_writes()
        await self._leave_moved()
        await self._remove_old()
        await self._retry_exits()

    def _look_after_late_writes(self) -> None:
        """Have removed what kept out, or did not, the writes that cannot arrive any more."""
        now_s = self._clock.monotonic_s()
        while self._given_up:
            (node, channel, client), (info, until_s) = next(iter(self._given_up.items()))
            if until_s > now_s:
                return
            del self._given_up[node, channel, client]
            # Who is here has another entry by now, which a late write leaves as it is.
            if node != self._node or (channel, client) not in self._here:
                self._not_removed(node, channel, info)

    async def _remove_old(self) -> None:
        """Remove entries of lost leases.

        The new entries exist by now, so that nobody seems to have left.
        """

        async def remove(entry: tuple[tuple[str, str, str], ClientInfo]) -> None:
            key, info = entry
            node, channel, client = key
            member = Member(node, info)
            if (channel, client) not in self._last:
                await self._presence.moved(channel, member)
            await self._presence.remove(channel, member)
            if self._old.get(key) is info:
                del self._old[key]
            self._last.pop((channel, client), None)

        await _tried(list(self._old.items()), remove)

    async def _write_again(self) -> None:
        entries = len(self._unwritten)
        if not entries:
            return
        await _tried(list(self._unwritten.items()), partial(self._write_one_again, self._node))
        _log.warning("presence_entered_again", entries=entries, left=len(self._unwritten))

    async def _write_one_again(self, node: str, entry: tuple[tuple[str, str], ClientInfo]) -> None:
        """Write one entry under the present lease.

        Raises PortError; the next round then tries again.
        """
        key, info = entry
        if node != self._node or self._unwritten.get(key) is not info:
            return
        channel, _ = key
        try:
            await self._add(node, channel, info, again=True)
            if self._here.get(key) is None:
                # The client left meanwhile, perhaps before this entry could be removed.
                await self._remove(node, channel, info)
        except (PortError, asyncio.CancelledError):
            if self._here.get(key) is None:
                # Nothing else knows that the entry may exist.
                self._not_removed(node, channel, info)
            raise
        here = self._here.get(key)
        if here is None:
            return
        if node != self._node:
            # `move` did not see a client that had left by then, and is back.
            self._leave_old(node, channel, info)
        if here is not info:
            # The client came back meanwhile, and this write may have replaced its new entry.
            self._unwritten[key] = here
        elif node == self._node:
            self._unwritten.pop(key, None)
            if self._listener is not None:
                self._listener.entered_again(channel, info)

    async def _retry_exits(self) -> None:
        for key, info in list(self._exits.items()):
            channel, _ = key
            async with self._retrying:
                if key not in self._exits:
                    continue
                try:
                    await self._remove(self._node, channel, info)
                except PortError as error:
                    # The other entries would fail as well.
                    _log.warning("presence_exits_wait", entries=len(self._exits), reason=str(error))
                    return
                # If the lease was lost meanwhile, the entry is among the old ones.
                if self._exits.get(key) is info:
                    del self._exits[key]

    async def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """The members by client id. Those of other nodes are up to CACHE_S old.

        Raises PortError, such as TooManyMembers.
        """
        return await self._reads.members(channel)

    async def totals(self, channel: str, caller: str = "") -> tuple[int, int]:
        """The numbers of clients and users in `members`, with the same errors. `caller`: in whose
        line its read waits, if there are too many.
        """
        return await self._reads.totals(channel, caller)

    async def listing(self, channel: str, caller: str = "") -> bytes:
        """The JSON object of `members`, as clients get it; `caller` as above.

        Raises the same errors, and TooManyMembers also if it is too large.
        """
        return await self._reads.listing(channel, self._list_bytes_max, caller)

    async def whole_list(self, channel: str) -> bytes:
        """The JSON object of `members`, however large, with the same errors.

        It is made for back ends. LISTED_A_TURN members are encoded in one turn of the event loop,
        for all who ask.
        """
        parts: list[bytes] = []
        members = iter((await self.members(channel)).values())
        while batch := list(islice(members, LISTED_A_TURN)):
            await self._listing.wait()
            parts += encoded(batch)
        return b"{%b}" % b",".join(parts)


async def _tried(entries: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do `work` for all entries. Those for which it raises PortError are left to the next round."""
    for failure in await each_to_its_end(ENTRIES_AT_ONCE, entries, work):
        if not isinstance(failure, PortError):
            raise failure
