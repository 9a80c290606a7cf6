"""Measures a node's work for presence in a channel of 10,000, while members come.

It asks for the number and the list of members, once and repeatedly. One process runs over memory
instead of AWS: reading takes no time here, so only the node's own work is measured. It is compared
with building each answer from all members.

    python -m benchmarks.presence
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

from benchmarks.rig import end_in_time, say
from roomcast.fleet.lease_record import Lease
from roomcast.ports import Clock
from roomcast.presence.book import PresenceBook
from roomcast.presence.ports import Member
from roomcast.presence.reads import CACHE_S
from roomcast.system import SystemClock
from roomcast.testing.memory import MemoryLeases, MemoryPresence, MemoryWorld
from roomcast.wire.encoding import encode_presence_reply, encode_reply
from roomcast.wire.publication import ClientInfo

__all__ = ["LISTED", "MEMBERS", "Bench"]

# The number of members, and that of another channel whose list fits the reply.
MEMBERS: Final = 10_000
LISTED: Final = 4_000
ROUNDS: Final = 20
# Requests in a round.
ASKS: Final = 20
_CROWDED: Final = "crowded"
_LISTED: Final = "listed"
_LEASE_MS: Final = 3_600_000


class Bench:
    """One node, and another one whose members are stored. `book` is replaced when a measurement
    must start without any knowledge.
    """

    def __init__(
        self, members: int = MEMBERS, listed: int = LISTED, clock: Clock | None = None
    ) -> None:
        self.world, self.clock = MemoryWorld(), clock or SystemClock()
        now = self.clock.now_ms()
        self.world.leases["there"] = Lease("there", "q", "live", now, now, now + _LEASE_MS)
        for channel, count in ((_CROWDED, members), (_LISTED, listed)):
            infos = [
                ClientInfo(f"user {n}", f"00000000-0000-4000-8000-{n:012d}") for n in range(count)
            ]
            self.world.presence[channel] = {
                ("there", each.client): Member("there", each) for each in infos
            }
        self.reads = 0
        self.world.pause = self._count
        self.book = self.fresh()

    async def _count(self, call: str, stage: str) -> None:
        self.reads += (call, stage) == ("members", "call")

    def fresh(self) -> PresenceBook:
        """A book that has read nothing."""
        return PresenceBook(
            MemoryPresence(self.world), MemoryLeases(self.world), self.clock, node="here"
        )

    async def totals(self) -> None:
        await self.book.totals(_CROWDED)

    async def listing(self) -> None:
        encode_presence_reply(1, await self.book.listing(_LISTED))

    async def totals_anew(self) -> None:
        """The number of members when nothing but the read is kept."""
        members = await self.book.members(_CROWDED)
        encode_reply(
            1,
            "presence_stats",
            {"num_clients": len(members), "num_users": len({m.user for m in members.values()})},
        )

    async def listing_anew(self) -> None:
        """The list of members when nothing but the read is kept."""
        members = await self.book.members(_LISTED)
        encode_reply(
            1, "presence", {"presence": {client: info.wire() for client, info in members.items()}}
        )

    async def comes(self, channel: str, number: int) -> None:
        """Adds one more member, of this node."""
        await self.book.enter(channel, ClientInfo(f"guest {number}", f"guest-{number}"))


async def milliseconds(work: Callable[[], Awaitable[None]], times: int = 1) -> float:
    """The mean ms of `times` calls."""
    began_s = time.perf_counter()
    for _ in range(times):
        await work()
    return (time.perf_counter() - began_s) / times * 1000


async def measured(bench: Bench, rounds: int = ROUNDS, asks: int = ASKS) -> dict[str, list[float]]:
    """Milliseconds of a request, by kind."""
    found: dict[str, list[float]] = {}

    def note(what: str, value: float) -> None:
        found.setdefault(what, []).append(value)

    for _ in range(rounds):
        bench.book = bench.fresh()
        note("how many, first", await milliseconds(bench.totals))
        note("how many, again", await milliseconds(bench.totals, asks))
        note("how many, made anew", await milliseconds(bench.totals_anew, asks))
        note("who, first", await milliseconds(bench.listing))
        note("who, again", await milliseconds(bench.listing, asks))
        note("who, made anew", await milliseconds(bench.listing_anew, asks))
        for number in range(asks):
            await bench.comes(_LISTED, number)
            note("who, after each that comes", await milliseconds(bench.listing))
    return found


def main() -> None:
    """Prints ms, which depend on this machine, and ratios, which depend on it less."""
    end_in_time()
    bench = Bench()
    began_s = time.monotonic()
    found = asyncio.run(measured(bench))
    most = ROUNDS * 2 * (2 + round((time.monotonic() - began_s) / CACHE_S))
    sys.stdout.write(f"how many: of {MEMBERS} members; who: of {LISTED}; {bench.reads} reads\n")
    if bench.reads > most:
        raise SystemExit(f"{bench.reads} reads: what was read is not shared")
    for what, values in found.items():
        say(what, values, " ms")
    for what in ("how many", "who"):
        pairs = zip(found[f"{what}, made anew"], found[f"{what}, again"], strict=True)
        say(f"{what}: made anew / again", [anew / again for anew, again in pairs])


if __name__ == "__main__":
    main()
