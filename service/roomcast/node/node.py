"""One node: its connections, what it does in the background, and whether it can hear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from roomcast.client.connection import Connection
from roomcast.client.services import Services, Socket
from roomcast.delivery.canary_rules import Hearing, Latency
from roomcast.fleet.node_info import NodeInfo
from roomcast.fleet.orders import Orders
from roomcast.streaks import FAILURES_TOLD
from roomcast.wire.codes import Disconnect

__all__ = ["ANSWERS_S", "BACKGROUND_MAX", "Health", "Node"]

# Presence writes at once: a thousand clients that leave together must not become a thousand calls at once.
BACKGROUND_MAX: Final = 16
# What a connection that is closed at the end of a node may wait for the answers that it is owed. SDKs give a command up
# after 5 s; a publication that is not answered may be published twice.
ANSWERS_S: Final = 5.0
# Slices in which a node's clients are closed over its drain time.
_SLICES_MAX: Final = 100

_log = structlog.get_logger(__name__)


class Ears(Protocol):
    """What the canary knows."""

    hearing: Hearing
    latency: Latency | None

    @property
    def silence_s(self) -> float: ...

    @property
    def late_s(self) -> float: ...


def _no() -> bool:
    return False


def _nothing() -> str:
    return ""


def _none() -> int:
    return 0


@dataclass(slots=True)
class Health:
    """What readiness rests on. Not ready: this node alone cannot hear or store, or is about to end. Degraded: it may not hear
    or store all. A fault of everybody's leaves it ready: no other node would serve its clients better.
    """

    listening: bool = False
    draining: bool = False
    # The queue cannot be received from.
    deaf: Callable[[], bool] = _no
    # The queue is received from, but nothing has proved yet that the topic reaches it.
    unproved: Callable[[], bool] = _no
    # Why messages that were handed on cannot be deleted, "" as long as they can: they come again and again.
    undeleted: Callable[[], str] = _nothing
    canary: Ears | None = None
    # What fails of the channels table's calls, "" as long as nothing does; and heartbeats not taken since the last that was.
    table: Callable[[], str] = _nothing
    heartbeats_failed: Callable[[], int] = _none
    # The tables do not answer this node, and take what others write.
    cut_off: Callable[[], bool] = _no
    # Tokens are verified with keys that could not be fetched, or not for too long.
    keyless: Callable[[], bool] = _no

    def reasons(self) -> list[str]:
        """Why this node is not ready; empty when it is."""
        reasons = []
        if not self.listening:
            reasons.append("starting: clients are not let in yet")
        if self.draining:
            reasons.append("draining: this node is about to end")
        if self.deaf():
            reasons.append("deaf: the queue cannot be received from")
        if self.canary is not None and self.canary.hearing is Hearing.DEAF:
            reasons.append("deaf: other nodes heard newer canaries; this one tries new queues")
        if self.cut_off():
            reasons.append(
                "cut off: the tables do not answer this node, and take what other nodes write"
            )
        return reasons

    def doubts(self) -> list[str]:
        """Why this node is degraded though ready: what it does not hear it reads from the log, and what fails is refused."""
        doubts = []
        if self.unproved():
            doubts.append("the queue has not brought a greeting of this node yet")
        if undeleted := self.undeleted():
            doubts.append(f"messages cannot be deleted: {undeleted}")
        if self.keyless():
            doubts.append(
                "no keys from client.token.jwks_public_endpoint: clients with their tokens have to wait"
            )
        if table := self.table():
            doubts.append(f"the channels table fails: {table} in a row")
        if (failed := self.heartbeats_failed()) >= FAILURES_TOLD:
            doubts.append(f"the nodes table fails: {failed} heartbeats in a row")
        if self.canary is None or self.canary.hearing is not Hearing.SILENT:
            return doubts
        if late_s := self.canary.late_s:
            doubts.append(
                f"what was written {late_s:.0f} s ago has not come through the queue: the pipeline is silent, as far as this node can tell"
            )
        else:
            doubts.append(
                f"no canary came for {self.canary.silence_s:.0f} s: the pipeline is silent, as far as this node can tell"
            )
        return doubts


class Background:
    """Work that outlives the connection it was for, bounded in how much runs at once."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(BACKGROUND_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """`work` handles its own errors."""
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait for what was started; the caller bounds the time."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, work: Coroutine[None, None, None]) -> None:
        try:
            async with self._places:
                await work
        finally:
            # Cancelled while it waited for a place: it never began.
            work.close()


class Node:
    """All connections of this process. `orders` and `node_info` are for its HTTP API."""

    def __init__(
        self,
        services: Services,
        health: Health,
        orders: Orders,
        node_info: NodeInfo,
        *,
        connection_limit: int,
    ) -> None:
        self.services = services
        self.health = health
        self.orders = orders
        self.node_info = node_info
        self._connection_limit = connection_limit
        self._connections: set[Connection] = set()

    @property
    def id(self) -> str:
        return self.services.node

    def __len__(self) -> int:
        """Open connections."""
        return len(self._connections)

    def takes_clients(self) -> bool:
        """Whether a further connection is welcome: this node does not drain and is not full."""
        full = self._connection_limit and len(self._connections) >= self._connection_limit
        return not (self.health.draining or full)

    def open(self, socket: Socket) -> Connection:
        """A new connection over `socket`; `closed` must be called at its end."""
        connection = Connection(self.services, socket)
        self._connections.add(connection)
        if self.health.draining:
            # Its handshake began before, and those that are to be closed may be counted already.
            connection.close(Disconnect.SHUTDOWN)
        return connection

    def closed(self, connection: Connection) -> None:
        """Idempotent."""
        self._connections.discard(connection)
        connection.end()

    async def drain(self, over_s: float, random: Callable[[], float]) -> None:
        """Close every connection with 3001, in slices over `over_s` seconds, so that the others are not stormed.

        Each is answered first, within ANSWERS_S, what it has asked for.
        """
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
