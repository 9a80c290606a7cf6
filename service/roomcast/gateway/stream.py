"""Serves one client whose replies and pushes are the body of an answer that does not end.

Its commands come by other requests, if any. Each of them is taken after the ones before it.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from roomcast.client import comings
from roomcast.client.peer import ANY_CARRIER
from roomcast.fleet.badges import session_name
from roomcast.fleet.emulation import Sessions
from roomcast.gateway.writer import Writer
from roomcast.hooks.events import Carrier
from roomcast.node.node import Node
from roomcast.observe.counters import Transport
from roomcast.wire.codes import Disconnect
from roomcast.wire.commands import Reader

__all__ = ["WAITING_BYTES_MAX", "WAITING_MAX", "ClientStream", "limit_silence", "new_session"]

# Frames of one client that wait for the ones before them, and their bytes. SDKs send a few at once.
WAITING_MAX: Final = 64
WAITING_BYTES_MAX: Final = 512 * 1024
# Random bytes of a session's name.
_SESSION_BYTES: Final = 24
# What a client may send behind its request. No client has a reason to.
_IGNORED_BYTES_MAX: Final = 4096

_log = structlog.get_logger(__name__)


def new_session(badge: str) -> str:
    """A name that nobody can guess, of a session of the node with `badge`."""
    return session_name(badge, secrets.token_urlsafe(_SESSION_BYTES))


class ClientStream(asyncio.Protocol):
    """The protocol of one stream's transport, after the head of the answer.

    `kind`: what it is counted as. `left` is called when the connection is lost. `silence_s`: how
    long bytes may stay without an acknowledgement of the peer's kernel. No pong tells of a peer
    that is gone. `carrier`: how the client came, for hooks.
    """

    __slots__ = (
        "_connection",
        "_frames",
        "_ignored",
        "_is_over",
        "_kind",
        "_node",
        "_reader",
        "_sessions",
        "_taking",
        "_transport",
        "_waiting_bytes",
        "_writer",
        "left",
    )

    def __init__(
        self,
        node: Node,
        transport: asyncio.Transport,
        writer: Writer,
        reader: Reader,
        sessions: Sessions,
        kind: Transport,
        *,
        silence_s: float,
        carrier: Carrier = ANY_CARRIER,
    ) -> None:
        self._node = node
        self._transport = transport
        self._writer = writer
        self._reader = reader
        self._sessions = sessions
        self._kind = kind
        self._frames: deque[bytes] = deque()
        self._waiting_bytes = 0
        # Takes frames, as long as there are any.
        self._taking: asyncio.Task[None] | None = None
        self._ignored = 0
        self._is_over = False
        self.left: Callable[[], None] | None = None
        limit_silence(transport, silence_s)
        self._connection = node.open(writer, carrier)
        node.services.counters.came(kind)
        if not writer.is_unidirectional:
            sessions.enter(writer.session, self)

    def take(self, frame: bytes) -> bool:
        """Take commands, after those that came before. False: too many wait."""
        size = self._waiting_bytes + len(frame)
        if len(self._frames) >= WAITING_MAX or (self._frames and size > WAITING_BYTES_MAX):
            return False
        self._frames.append(frame)
        self._waiting_bytes = size
        if self._taking is None:
            self._taking = asyncio.get_running_loop().create_task(self._take_frames())
        return True

    async def _take_frames(self) -> None:
        try:
            while self._frames and not self._is_over:
                frame = self._frames.popleft()
                self._waiting_bytes -= len(frame)
                await self._connection.receive(frame, self._reader)
        except Exception as error:  # noqa: BLE001  # a bug: the client must not be left waiting
            _log.error("client_failed", client=self._connection.client, exc_info=error)
            self._connection.close(Disconnect.SERVER_ERROR)
        finally:
            self._taking = None

    # ---- what the transport calls

    def data_received(self, data: bytes) -> None:
        self._ignored += len(data)
        if self._ignored > _IGNORED_BYTES_MAX:
            self._transport.abort()

    def eof_received(self) -> None:
        """A client that says no more reads no more, as HTTP servers take it."""
        self._writer.half_closed()

    def resume_writing(self) -> None:
        self._writer.drained()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        self._writer.lost()
        if self.left is not None:
            self.left()
        self._is_over = True
        self._sessions.leave(self._writer.session)
        client, user = self._connection.client, self._connection.user
        self._node.closed(self._connection)
        why = self._writer.closed_with
        self._node.services.counters.went(self._kind)
        self._node.services.counters.closed(why or Disconnect.CONNECTION_CLOSED)
        if why is None:
            comings.gone(client, user, None)
        elif why is Disconnect.SLOW:
            comings.slow(client, user, why.value)
        self._writer.end()


def limit_silence(transport: asyncio.Transport, silence_s: float) -> None:
    """Have the system end a connection whose peer acknowledges nothing (TCP_USER_TIMEOUT)."""
    connected = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if connected is not None and option is not None:
        connected.setsockopt(socket.IPPROTO_TCP, option, round(silence_s * 1000))
