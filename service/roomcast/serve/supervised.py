"""One process of several: what it tells its supervisor, and what it is told.

They talk in lines over a pair of sockets:

    process → supervisor    alive, every second from its start to its end; started NODE PORT, then
                            ready or unready whenever that changes; asks, when it has given
                            everything back: who releases the machine?
    supervisor → process    open or shut: whether to listen on the shared ports;
                            last or others, once all have given everything back: you, or another

The end of the talk tells a process that its supervisor is gone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from roomcast.concurrency import beside
from roomcast.gateway.door import Door
from roomcast.node.health import Health
from roomcast.ports import UnknownOutcome
from roomcast.serve.entry import Address, Worker, bound

__all__ = ["LOOK_S", "Supervised", "supervised"]

# The interval between two looks at the own health, and between two signs of life.
LOOK_S: Final = 1.0

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def supervised(
    worker: Worker, stop: asyncio.Event, host: str, internal: Address | None = None
) -> AsyncIterator[Supervised]:
    """The talk with the supervisor. `stop` is set at its end.

    `host`: of the shared port. `internal`: the shared one for what is internal; None = that has no
    port of its own.
    """
    talk = socket.socket(fileno=worker.descriptor)
    # A program that a hook starts must not hold it open.
    talk.set_inheritable(False)
    reader, writer = await asyncio.open_connection(sock=talk)
    process = Supervised(writer, Address(host, worker.port), internal)
    try:
        async with beside(process.hear(reader, stop)), beside(process.live()):
            yield process
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


class _Share:
    """A shared port, at which `door` listens, or not."""

    def __init__(self, door: Door, address: Address) -> None:
        self._door = door
        self._address = address
        self._listening: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        return self._listening is not None

    def listen(self, wanted: bool) -> None:
        """Raises OSError."""
        port = self._address.port
        if wanted and self._listening is None:
            self._listening = bound(self._address.host, port, shared=True)
            self._door.also(self._listening)
            _log.info("shared_port_opened", port=port)
        elif not wanted and self._listening is not None:
            self._door.no_longer(self._listening)
            self._listening = None
            _log.info("shared_port_left", port=port)


class Supervised:
    """Listens on the shared ports when it is told to. A NodesHere of the life cycle."""

    def __init__(
        self, writer: asyncio.StreamWriter, shared: Address, internal: Address | None
    ) -> None:
        """`shared`: the port of clients. `internal`: the other one; None = there is none."""
        self._writer = writer
        self._shared = shared
        self._internal = internal
        self._should_listen = False
        self._told = asyncio.Event()
        self._answered = asyncio.Event()
        self._is_last: bool | None = None

    @property
    def port(self) -> int:
        """The shared port of clients."""
        return self._shared.port

    @property
    def internal_port(self) -> int:
        """The shared port of what is internal: the same if that has none of its own."""
        return (self._internal or self._shared).port

    async def hear(self, reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
        """Takes orders until the supervisor is gone; then sets `stop`."""
        with suppress(OSError):
            while line := await reader.readline():
                match line.strip():
                    case (b"last" | b"others") as word:
                        self._is_last = word == b"last"
                        self._answered.set()
                    case word:
                        self._should_listen = word == b"open"
                        self._told.set()
        self._answered.set()
        stop.set()

    async def live(self) -> None:
        """Tells the supervisor that this process does not hang. Runs until cancelled."""
        while True:
            self._tell("alive")
            await asyncio.sleep(LOOK_S)

    async def others_here(self) -> bool:
        """Waits until all processes have given everything back, or are gone.

        False = this one is to release the machine. Raises UnknownOutcome when the supervisor is
        gone.
        """
        self._tell("asks")
        await self._answered.wait()
        if self._is_last is None:
            raise UnknownOutcome("the supervisor is gone")
        return not self._is_last

    async def follow(
        self,
        door: Door,
        health: Health,
        *,
        node: str,
        port: int,
        opened: Callable[[], None],
        internal_door: Door | None = None,
    ) -> None:
        """Does what it is told, and tells of its health. Runs until cancelled.

        `opened` is called once, when it listens for the first time. Raises OSError when it cannot.
        """
        clients = _Share(door, self._shared)
        internal = None
        if internal_door is not None and self._internal is not None:
            internal = _Share(internal_door, self._internal)
        self._tell(f"started {node} {port}")
        was_ready, is_open = True, False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._told.wait()
            self._told.clear()
            # A node that drains has closed this door, whatever the supervisor did not know yet.
            clients.listen(self._should_listen and not health.draining)
            if internal is not None:
                # That it drains is to be read here.
                internal.listen(self._should_listen)
            if not is_open and clients.is_open:
                is_open = True
                opened()
            is_ready = not is_open or not health.reasons()
            if is_ready is not was_ready:
                was_ready = is_ready
                self._tell("ready" if is_ready else "unready")

    def _tell(self, line: str) -> None:
        # To a supervisor that is gone, nothing is lost.
        with suppress(OSError):
            self._writer.write(line.encode() + b"\n")
