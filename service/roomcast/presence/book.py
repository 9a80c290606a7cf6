"""Who is in a channel, over all live nodes: what is stored, less what dead nodes left.

It is written here, and read as presence/reads.py does.

Entries belong to a lease. A node that lost its own writes them again under its next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog

from roomcast.concurrency import each_to_its_end
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, PortError
from roomcast.presence.ports import Member, Presence
from roomcast.presence.reads import PresenceReads
from roomcast.wire.publication import ClientInfo

__all__ = [
    "ENTRIES_AT_ONCE",
    "EXITS_MAX",
    "EXIT_RETRY_S",
    "LEASES_LEFT_MAX",
    "LIST_BYTES_MAX",
    "PresenceBook",
    "ReentryListener",
]

# Of one list of members, where nothing else is said: half of what may wait for a client, as
# recovery and history.
LIST_BYTES_MAX: Final = 512 * 1024
# Entries that could not be removed are tried again; who left must not be there for as long as this
# node lives.
EXIT_RETRY_S: Final = 5.0
# How many such entries are remembered, some 500 bytes each. Those beyond it stay until the node
# ended and the reaper came.
EXITS_MAX: Final = 20_000
# Lost leases that are told of at the end: those of some hours. Of older ones there is a tombstone,
# or nothing.
LEASES_LEFT_MAX: Final = 100
# Entries that are written at once when all of them must be.
ENTRIES_AT_ONCE: Final = 16

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class ReentryListener(Protocol):
    """Who is told of entries that were written again under another lease."""

    def entered_again(self, channel: str, info: ClientInfo) -> None:
        """The client is still here; others were told that it left."""


class PresenceBook:
    """Presence as this node writes and reads it.

    `run` removes what `exit` could not, and writes again after `move`. `node` is the id of the
    lease that entries belong to. `list_bytes_max` bounds what `listing` gives.
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
        self._reads = PresenceReads(presence, leases, clock, lambda: self._node)
        # Who is here, by channel and client; and whose entry under the present lease is still to be
        # written.
        self._here: dict[tuple[str, str], ClientInfo] = {}
        self._unwritten: OrderedDict[tuple[str, str], ClientInfo] = OrderedDict()
        # Entries under leases that were lost, by lease, channel and client. Whoever took the lease
        # may have looked before they were written.
        self._old: OrderedDict[tuple[str, str, str], ClientInfo] = OrderedDict()
        # Entries that are being removed, by lease; and the leases of those that could not be
        # removed, nor remembered.
        self._leaving: Counter[str] = Counter()
        self._forgotten: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._listener = listener
        # By channel and client.
        self._exits: OrderedDict[tuple[str, str], ClientInfo] = OrderedDict()
        # Held while one of them is tried again: a client that comes back must not be removed by it.
        self._retrying = asyncio.Lock()

    @property
    def node(self) -> str:
        """The id of the lease that entries belong to now."""
        return self._node

    async def enter(self, channel: str, info: ClientInfo) -> None:
        """Raises PortError."""
        key = (channel, info.client)
        if key in self._exits:
            async with self._retrying:
                self._exits.pop(key, None)
        # Before it is written: if the lease is lost meanwhile, the entry has to move as well.
        self._here[key] = info
        node = self._node
        await self._presence.add(channel, Member(node, info))
        if node != self._node:
            # `move` may have removed it before it was there.
            self._leave_old(node, channel, info)
        if self._here.get(key) is info:
            self._reads.entered(channel, info)

    async def exit(self, channel: str, info: ClientInfo) -> None:
        """Also after an `enter` that failed. Raises PortError: then it is tried again, by `run`."""
        node = self._node
        self._is_not_here(channel, info)
        self._leaving[node] += 1
        try:
            await self._presence.remove(channel, Member(node, info))
        except asyncio.CancelledError:
            self._forget(node)
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
        self._unwritten.pop(key, None)
        self._reads.left(channel, info.client)

    @property
    def is_clean(self) -> bool:
        """Whether nothing of this node is stored any more, once all have left."""
        here = self._here or self._unwritten
        return not (here or self._exits or self._old or self._leaving or self._forgotten)

    @property
    def left_under(self) -> Collection[str]:
        """The leases under which something may be stored when `is_clean` is False.

        The present one, and lost ones.
        """
        lost = (
            {node: None for node, _, _ in self._old}
            | self._forgotten
            | dict.fromkeys(self._leaving)
        )
        return [self._node, *list(lost)[-LEASES_LEFT_MAX:]]

    def move(self, node: str) -> None:
        """The lease was lost; `node` is the next one's id.

        Entries are written again under it, and the old ones removed.

        Whoever took the old lease removes those as well, but only those that were there when it
        looked.
        """
        old, self._node = self._node, node
        for (channel, _), info in (*self._here.items(), *self._exits.items()):
            self._leave_old(old, channel, info)
        self._exits.clear()
        self._unwritten = OrderedDict(self._here)
        self._wake.set()

    def _not_removed(self, node: str, channel: str, info: ClientInfo) -> None:
        """There may be an entry under `node` of somebody who is not here: it is removed later."""
        if node != self._node:
            self._leave_old(node, channel, info)
        elif len(self._exits) < EXITS_MAX:
            self._exits[channel, info.client] = info
        else:
            self._forget(node)

    def _leave_old(self, node: str, channel: str, info: ClientInfo) -> None:
        if len(self._old) < EXITS_MAX:
            self._old[node, channel, info.client] = info
        else:
            self._forget(node)
        self._wake.set()

    def _forget(self, node: str) -> None:
        self._forgotten[node] = None
        if len(self._forgotten) > LEASES_LEFT_MAX:
            del self._forgotten[next(iter(self._forgotten))]

    async def run(self) -> None:
        """Try again what could not be written or removed.

        Runs until cancelled; what is left then ends with the lease.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_RETRY_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._write_again()
            await self._remove_old()
            await self._retry_exits()

    async def finish(self) -> None:
        """Try once more what could not be removed: for the end, when all have left.

        The caller bounds the time.
        """
        await self._remove_old()
        await self._retry_exits()

    async def _remove_old(self) -> None:
        """Of leases that were lost.

        The new entries are there by now, so that nobody seems to have left.
        """

        async def remove(entry: tuple[tuple[str, str, str], ClientInfo]) -> None:
            key, info = entry
            node, channel, _ = key
            await self._presence.remove(channel, Member(node, info))
            if self._old.get(key) is info:
                del self._old[key]

        await _tried(list(self._old.items()), remove)

    async def _write_again(self) -> None:
        entries = len(self._unwritten)
        if not entries:
            return
        await _tried(list(self._unwritten.items()), partial(self._write_one_again, self._node))
        _log.warning("presence_entered_again", entries=entries, left=len(self._unwritten))

    async def _write_one_again(self, node: str, entry: tuple[tuple[str, str], ClientInfo]) -> None:
        """Raises PortError: then the next round does it."""
        key, info = entry
        if node != self._node or self._unwritten.get(key) is not info:
            return
        channel, _ = key
        try:
            await self._presence.add(channel, Member(node, info))
            if self._here.get(key) is None:
                # Left meanwhile, perhaps before this entry was there to be removed.
                await self._presence.remove(channel, Member(node, info))
        except (PortError, asyncio.CancelledError):
            if self._here.get(key) is None:
                # Nobody else knows that it may be there.
                self._not_removed(node, channel, info)
            raise
        here = self._here.get(key)
        if here is None:
            return
        if here is not info:
            # Came back meanwhile, with what this entry may just have replaced.
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
                    await self._presence.remove(channel, Member(self._node, info))
                except PortError as error:
                    # The others would fare no better.
                    _log.warning("presence_exits_wait", entries=len(self._exits), reason=str(error))
                    return
                # Not if the lease was lost meanwhile: then it is among the old ones.
                if self._exits.get(key) is info:
                    del self._exits[key]

    async def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """By client id; those of other nodes at most CACHE_S old.

        Raises PortError, of which TooManyMembers.
        """
        return await self._reads.members(channel)

    async def totals(self, channel: str) -> tuple[int, int]:
        """How many clients and users `members` has, without making it. Errors as there."""
        return await self._reads.totals(channel)

    async def listing(self, channel: str) -> bytes:
        """The JSON object of `members`, each as clients are told.

        Errors as there; TooManyMembers also if it is too large.
        """
        return await self._reads.listing(channel, self._list_bytes_max)


async def _tried(entries: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """What AWS does not take now is left to the next round."""
    for failure in await each_to_its_end(ENTRIES_AT_ONCE, entries, work):
        if not isinstance(failure, PortError):
            raise failure
