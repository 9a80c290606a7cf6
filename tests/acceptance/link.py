"""A client's way to an instance, which a test can cut, keep cut, and lead to another instance."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Link", "RoundRobin"]

_PIECE_BYTES = 64 * 1024
_KEPT_BYTES_MAX = 1024 * 1024


class Link:
    """A TCP relay on loopback. `url` is what the client is given in place of the instance's;
    `received` is what came to it from there, the first MiB of it.
    """

    def __init__(self, target: str) -> None:
        """`target`: the WebSocket URL of an instance."""
        self._target = target
        self._open = True
        self.received = bytearray()
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._relays, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"ws://127.0.0.1:{port}{urlsplit(self._target).path}"

    def cut(self) -> None:
        """Reset every connection, at both ends and without a word, and let none in."""
        self._open = False
        for relay in self._relays:
            relay.cancel()

    def mend(self, target: str | None = None) -> None:
        """Let connections in again, to `target` from now on."""
        self._target = target or self._target
        self._open = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        relay = asyncio.ensure_future(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one end closes. Both are reset then: nothing waits for a closing handshake."""
        target = urlsplit(self._target)
        writers = [writer]
        try:
            back_reader, back_writer = await asyncio.open_connection(target.hostname, target.port)
            writers.append(back_writer)
            ways = {
                asyncio.ensure_future(_copy(reader, back_writer)),
                asyncio.ensure_future(_copy(back_reader, writer, self.received)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # nobody listens there: the client sees a reset
        finally:
            for each in writers:
                each.transport.abort()


class RoundRobin(Link):
    """As a load balancer without stickiness: each connection goes to the next instance."""

    def __init__(self, targets: Sequence[str]) -> None:
        super().__init__(targets[0])
        self._next = itertools.cycle(targets)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._target = next(self._next)
        await super()._accept(reader, writer)


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None = None
) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        if kept is not None and len(kept) < _KEPT_BYTES_MAX:
            kept += piece
        writer.write(piece)
        await writer.drain()
