"""Who is in a channel, over all live nodes: what is stored, less what dead nodes left, kept for a second.

Entries belong to a lease. A node that lost its own writes them again under its next one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from service.concurrency import each_to_its_end
from service.core.publication import ClientInfo
from service.core.reaping import standing
from service.ports import Clock, Leases, Member, PortError, Presence

__all__ = ["CACHE_CHANNELS_MAX", "CACHE_S", "ENTRIES_AT_ONCE", "EXITS_MAX", "EXIT_RETRY_S", "PresenceBook"]

# A thousand clients that ask at once cost one read. Joins and leaves come as pushes meanwhile.
CACHE_S: Final = 1.0
CACHE_CHANNELS_MAX: Final = 1000
# Entries that could not be removed are tried again; who left must not be there for as long as this node lives.
EXIT_RETRY_S: Final = 5.0
# How many such entries are remembered, some 500 bytes each. Those beyond it stay until the node ended and the reaper came.
EXITS_MAX: Final = 20_000
# Entries that are written at once when all of them must be.
ENTRIES_AT_ONCE: Final = 16

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _Kept:
    read: asyncio.Task[Mapping[str, ClientInfo]]
    until_s: float


class PresenceBook:
    """Presence as this node writes and reads it. `run` removes what `exit` could not, and writes again after `move`.

    `node` is the id of the lease that entries belong to.
    """

    def __init__(self, presence: Presence, leases: Leases, clock: Clock, *, node: str) -> None:
        self._presence = presence
        self._leases = leases
        self._clock = clock
        self._node = node
        # Who is here, by channel and client; and whose entry under the present lease is still to be written.
        self._here: dict[tuple[str, str], ClientInfo] = {}
        self._unwritten: OrderedDict[tuple[str, str], ClientInfo] = OrderedDict()
        # Entries under leases that were lost, by lease, channel and client. Whoever took the lease may have looked before
        # they were written.
        self._old: OrderedDict[tuple[str, str, str], ClientInfo] = OrderedDict()
        # Entries that are being removed; and those that could not be removed, nor remembered.
        self._leaving = self._forgotten = 0
        self._wake = asyncio.Event()
        # Told of everybody whose entry was written again: others were told that they left.
        self.entered_again: Callable[[str, ClientInfo], None] = _nobody
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._live_nodes: frozenset[str] = frozenset()
        self._live_until_s = float("-inf")
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
        self._kept.pop(channel, None)

    async def exit(self, channel: str, info: ClientInfo) -> None:
        """Also after an `enter` that failed. Raises PortError: then it is tried again, by `run`."""
        key, node = (channel, info.client), self._node
        self._here.pop(key, None)
        self._unwritten.pop(key, None)
        self._leaving += 1
        try:
            await self._presence.remove(channel, Member(node, info))
        except asyncio.CancelledError:
            self._forgotten += 1
            raise
        except PortError:
            if node != self._node:
                self._leave_old(node, channel, info)
            elif len(self._exits) < EXITS_MAX:
                self._exits[key] = info
            else:
                self._forgotten += 1
            raise
        finally:
            self._leaving -= 1
        self._kept.pop(channel, None)

    @property
    def is_clean(self) -> bool:
        """Whether nothing of this node is stored any more, once all have left."""
        here = self._here or self._unwritten
        return not (here or self._exits or self._old or self._leaving or self._forgotten)

    def move(self, node: str) -> None:
        """The lease was lost, `node` is the next one's id: entries are written again under it, and the old ones removed.

        Whoever took the old lease removes those as well, but only those that were there when it looked.
        """
        old, self._node = self._node, node
        for (channel, _), info in (*self._here.items(), *self._exits.items()):
            self._leave_old(old, channel, info)
        self._exits.clear()
        self._unwritten = OrderedDict(self._here)
        self._kept.clear()
        self._live_until_s = float("-inf")
        self._wake.set()

    def _leave_old(self, node: str, channel: str, info: ClientInfo) -> None:
        if len(self._old) < EXITS_MAX:
            self._old[node, channel, info.client] = info
        else:
            self._forgotten += 1
        self._wake.set()

    async def run(self) -> None:
        """Try again what could not be written or removed. Runs until cancelled; what is left then ends with the lease."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_RETRY_S):
                    await self._wake.wait()
            self._wake.clear()
            await self._write_again()
            await self._remove_old()
            await self._retry_exits()

    async def finish(self) -> None:
        """Try once more what could not be removed: for the end, when all have left. The caller bounds the time."""
        await self._remove_old()
        await self._retry_exits()

    async def _remove_old(self) -> None:
        """Of leases that were lost; the new entries are there by now, so that nobody seems to have left."""

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
        await self._presence.add(channel, Member(node, info))
        self._kept.pop(channel, None)
        here = self._here.get(key)
        if here is None:
            # Left meanwhile, perhaps before this entry was there to be removed.
            await self._presence.remove(channel, Member(node, info))
        elif here is not info:
            # Came back meanwhile, with what this entry may just have replaced.
            self._unwritten[key] = here
        elif node == self._node:
            self._unwritten.pop(key, None)
            self.entered_again(channel, info)

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
                del self._exits[key]
            self._kept.pop(channel, None)

    async def members(self, channel: str) -> Mapping[str, ClientInfo]:
        """By client id; at most CACHE_S old. Raises PortError."""
        kept = self._kept.get(channel)
        if kept is None or kept.until_s < self._clock.monotonic_s():
            kept = _Kept(
                asyncio.create_task(self._read(channel), name=f"presence {channel}"),
                self._clock.monotonic_s() + CACHE_S,
            )
            kept.read.add_done_callback(_seen)
            self._kept[channel] = kept
            while len(self._kept) > CACHE_CHANNELS_MAX:
                self._kept.popitem(last=False)
        return await asyncio.shield(kept.read)

    async def _read(self, channel: str) -> Mapping[str, ClientInfo]:
        members, live = await asyncio.gather(self._presence.members(channel), self._live_now())
        return {member.info.client: member.info for member in members if member.node in live}

    async def _live_now(self) -> frozenset[str]:
        if self._live_until_s < self._clock.monotonic_s():
            now = self._clock.now_ms()
            leases = await self._leases.all()
            # This node knows itself to live, also while its own heartbeat is late.
            live = {lease.node for lease in leases if standing(lease, now) == "live"}
            self._live_nodes = frozenset(live | {self._node})
            self._live_until_s = self._clock.monotonic_s() + CACHE_S
        return self._live_nodes


async def _tried(entries: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """What AWS does not take now is left to the next round."""
    for failure in await each_to_its_end(ENTRIES_AT_ONCE, entries, work):
        if not isinstance(failure, PortError):
            raise failure


def _nobody(channel: str, info: ClientInfo) -> None:
    pass


def _seen(read: asyncio.Task[Mapping[str, ClientInfo]]) -> None:
    if not read.cancelled():
        # Those who wait have the error; there may be nobody left who does.
        read.exception()
