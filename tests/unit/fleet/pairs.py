"""Two nodes, a and b, which have leases and hear each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from roomcast.fleet.lease_record import Lease
from tests.unit.worlds import Fleet, LocalNode

__all__ = ["Pair", "running"]


class Pair:
    def __init__(self) -> None:
        self.fleet = Fleet()
        self.nodes: dict[str, LocalNode] = {name: self.fleet.node(name) for name in "ab"}

    def live(self) -> None:
        """Give both a lease."""
        for name, node in self.nodes.items():
            self.lease(name, node.queue_names[-1])

    def lease(self, name: str, queue: str) -> None:
        now = self.fleet.clock.now_ms()
        self.fleet.world.leases[name] = Lease(name, queue, "live", now, now, now + 60_000)


P = TypeVar("P", bound=Pair)


@asynccontextmanager
async def running(pair: P) -> AsyncIterator[P]:
    """Both run."""
    async with AsyncExitStack() as stack:
        for node in pair.nodes.values():
            await stack.enter_async_context(node.running())
        pair.live()
        yield pair
