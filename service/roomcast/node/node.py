"""One node: its connections, its background work, and its drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Final

import structlog

from roomcast.client.connection import Connection
from roomcast.client.peer import ANY_CARRIER
from roomcast.client.services import Services, Socket
from roomcast.fleet.draining import Draining
from roomcast.fleet.emulation import Emulation
from roomcast.fleet.inquiries import Inquiries
from roomcast.fleet.node_info import NodeInfo
from roomcast.fleet.orders import Orders
from roomcast.hooks.events import Carrier
from roomcast.node.health import Health
from roomcast.wire.codes import Disconnect

__all__ = ["ANSWERS_S", "BACKGROUND_MAX", "BACKGROUND_WAITING_MAX", "Background", "Node"]

# Background tasks at once, mostly presence writes. A thousand clients that leave together must not
# cause a thousand calls at once.
BACKGROUND_MAX: Final = 16
# Background tasks that wait for a place, some 2 KB each. Clients can come and go faster than a slow
# table removes them.
BACKGROUND_WAITING_MAX: Final = 50_000
# Seconds that a connection may wait for owed answers when the node ends. SDKs give a command up
# after 5 s. A publication without an answer may be published twice.
ANSWERS_S: Final = 5.0
# The most slices in which a node's clients are closed during its drain.
_SLICES_MAX: Final = 100

_log = structlog.get_logger(__name__)


class Background:
    """Work that outlives its connection. How much runs, and how much waits, is bounded."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(BACKGROUND_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None] | None:
        """Run `work` as soon as a place is free. It must handle its own errors.

        None: too much waits already, and `work` is not done.
        """
        if len(self._tasks) >= BACKGROUND_MAX + BACKGROUND_WAITING_MAX:
            work.close()
            return None
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait for all started work. The caller bounds the time."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, work: Coroutine[None, None, None]) -> None:
        try:
            async with self._places:
                await work
        finally:
            # The task was cancelled while it waited for a place, so `work` never began.
            work.close()


class Node:
    """All connections of this process. `orders`, `node_info` and `draining` serve its HTTP API,
    `inquiries` the operations page, `emulation` clients whose commands come by requests of their
    own.
    """

    def __init__(
        self,
        services: Services,
        health: Health,
        orders: Orders,
        node_info: NodeInfo,
        inquiries: Inquiries,
        emulation: Emulation,
        draining: Draining,
        connections: set[Connection],
        *,
        connection_limit: int,
    ) -> None:
        """`connections`: an empty set, which the node fills."""
        self.services = services
        self.health = health
        self.orders = orders
        self.node_info = node_info
        self.inquiries = inquiries
        self.emulation = emulation
        self.draining = draining
        self._connection_limit = connection_limit
        self._connections = connections

    @property
    def id(self) -> str:
        return self.services.node

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def takes_clients(self, arriving: int = 0) -> bool:
        """Whether another connection may be opened: this node does not drain and is not full.

        `arriving`: those that were welcome and are not open yet.
        """
        connections = len(self._connections) + arriving
        is_full = self._connection_limit and connections >= self._connection_limit
        return not (self.health.draining or is_full)

    def open(self, socket: Socket, carrier: Carrier = ANY_CARRIER) -> Connection:
        """Open a connection over `socket`. `closed` must be called at its end. `carrier`: how its
        client came, for hooks.
        """
        connection = Connection(self.services, socket, carrier)
        self._connections.add(connection)
        if self.health.draining:
            # Its handshake began before the drain, which may have counted the connections already.
            connection.close(Disconnect.SHUTDOWN)
        return connection

    def closed(self, connection: Connection) -> None:
        """Idempotent."""
        self._connections.discard(connection)
        connection.end()

    def close_all(self) -> None:
        """Close every connection with 3001, at once. Owed answers are not waited for."""
        for connection in list(self._connections):
            connection.close(Disconnect.SHUTDOWN)

    async def drain(self, over_s: float, random: Callable[[], float]) -> None:
        """Close every connection with 3001, in slices over `over_s` seconds.

        The slices protect the other nodes from a storm of reconnects.

        Orders that arrived are carried out before, and each connection first gets its owed answers:
        each within ANSWERS_S.
        """
        with suppress(TimeoutError):
            # A client that was ordered to go for good must not be told to come again elsewhere.
            async with asyncio.timeout(ANSWERS_S):
                await self.orders.carried_out()
        await self.services.dispatcher.end_batches()
        connections = list(self._connections)
        if not connections:
            return
        slices = min(_SLICES_MAX, len(connections))
        _log.info("draining", connections=len(connections), over_s=over_s)
        closing: list[asyncio.Task[None]] = []
        for index in range(slices):
            ends = [connection.shut_down(ANSWERS_S) for connection in connections[index::slices]]
            closing += [end for end in ends if end is not None]
            if index < slices - 1:
                await asyncio.sleep(over_s / slices * (0.5 + random()))
        if closing:
            await asyncio.wait(closing)
