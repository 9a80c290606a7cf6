"""The client as the parts of its connection see it: its id, its answers and its close."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from roomcast.client import comings
from roomcast.client.closings import closing_of
from roomcast.client.services import Socket
from roomcast.client.session import Session
from roomcast.hooks.events import Carrier
from roomcast.observe.counters import ClientCounters
from roomcast.wire.codes import Closing, Disconnect, Error, Failing, code_of, error_of
from roomcast.wire.commands import (
    ConnectRequest,
    HistoryRequest,
    InvalidRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    Request,
    RpcPublishRequest,
    RpcRequest,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from roomcast.wire.encoding import Unencodable, encode_error, encode_push, encode_reply

__all__ = ["ANY_CARRIER", "NOBODY", "Ends", "Peer"]

# The names of commands in the counters. Any other is counted as "other".
_METHODS: Final[dict[type, str]] = {
    ConnectRequest: "connect",
    SubscribeRequest: "subscribe",
    UnsubscribeRequest: "unsubscribe",
    PublishRequest: "publish",
    RpcPublishRequest: "rpc_publish",
    RpcRequest: "rpc",
    HistoryRequest: "history",
    PresenceRequest: "presence",
    PresenceStatsRequest: "presence_stats",
    RefreshRequest: "refresh",
    SubRefreshRequest: "sub_refresh",
    InvalidRequest: "invalid",
}


# Of a client whose way nobody told: a WebSocket, and none of its headers.
ANY_CARRIER: Final = Carrier()


class Ends(Protocol):
    """The connection of a peer."""

    def end(self) -> None:
        """Its transport begins to close. Idempotent."""


class _Nobody:
    """Takes the place of a connection that has ended in what refers back to it. No cycle of
    references then outlives it: the collector would hold up all clients for those of many.
    """

    reads_no_pong = False

    def end(self) -> None:
        """It has ended."""

    def expired(self, name: str | None) -> None:
        """Nothing is left to expire."""


NOBODY: Final = _Nobody()


class Peer:
    """One client. Its `connection` is ended once its transport begins to close. `carrier`: how it
    came, for hooks.

    `is_welcome`: whether `connect` was answered; nothing goes out before that. `has_ended`: nothing
    goes out any more.
    """

    __slots__ = (
        "_answers",
        "_connection",
        "_counters",
        "_methods",
        "carrier",
        "has_ended",
        "is_welcome",
        "session",
        "socket",
    )

    def __init__(
        self,
        session: Session,
        socket: Socket,
        counters: ClientCounters,
        connection: Ends,
        carrier: Carrier = ANY_CARRIER,
    ) -> None:
        self.session = session
        self.carrier = carrier
        self.socket = socket
        self.is_welcome = False
        self.has_ended = False
        self._counters = counters
        self._connection = connection
        # The methods of the commands that are not answered yet.
        self._methods: dict[int, str] = {}
        # Set while somebody waits for all of them to be answered; done when they are.
        self._answers: asyncio.Future[None] | None = None

    @property
    def client(self) -> str:
        return self.session.client

    @property
    def caller(self) -> str:
        """In whose line its calls of the log wait: all connections of a user are one caller."""
        user = self.session.user
        return f"user {user}" if user else self.session.client

    @property
    def owes(self) -> bool:
        """Whether a command waits for its answer."""
        return bool(self._methods)

    async def all_answered(self) -> None:
        """Wait until nothing is owed, or the connection has ended.

        There is one caller, which bounds the time.
        """
        if self.owes and not self.has_ended:
            self._answers = asyncio.get_running_loop().create_future()
            await self._answers

    def ended(self) -> None:
        """Nothing goes out any more."""
        self.has_ended = True
        self._wake_waiter()
        self._connection = NOBODY

    def owe(self, command_id: int, request: type[Request]) -> None:
        """From here on, the command with this id and kind of request is owed an answer."""
        self._methods[command_id] = _METHODS.get(request, "other")

    def reply(self, command_id: int, method: str, result: Mapping[str, object]) -> None:
        """Answer with `result`, or with an error if it cannot be encoded."""
        try:
            if self.socket.is_unidirectional:
                line = encode_push(method, result)
            else:
                line = encode_reply(command_id, method, result)
        except Unencodable:
            self.fail(command_id, Error.INTERNAL)
        else:
            self.reply_line(command_id, line)

    def reply_line(self, command_id: int, line: bytes) -> None:
        """Answer with a reply that is already encoded."""
        self._answered(command_id, 0)
        self.send(line)

    def fail(self, command_id: int, error: Failing) -> None:
        """Answer with `error`; with a close, where nothing else can follow."""
        self._answered(command_id, error_of(error).code)
        if self.socket.is_unidirectional:
            self.close(closing_of(error))
        else:
            self.send(encode_error(command_id, error))

    def send(self, line: bytes) -> None:
        """Send a reply or a push, unless the connection has ended."""
        if not self.has_ended:
            frame = self.socket.framer(line)
            self._counters.sent_frames += 1
            self._counters.sent_bytes += len(frame)
            self.socket.send(frame)

    def close(self, why: Closing) -> None:
        """Close from this side. Idempotent."""
        if not self.has_ended:
            if why is not Disconnect.SLOW:
                # Its transport tells of that at its end, whoever found it out.
                comings.closed(self.client, self.session.user, code_of(why))
            self.socket.close(why)
            self._connection.end()

    def _answered(self, command_id: int, code: int) -> None:
        method = self._methods.pop(command_id, None)
        if method is None:
            return
        self._counters.answered(method, code)
        if not self._methods:
            self._wake_waiter()

    def _wake_waiter(self) -> None:
        if self._answers is not None and not self._answers.done():
            self._answers.set_result(None)
