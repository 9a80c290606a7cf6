"""A client as the published SDKs behave: remembers its position, subscribes again when told,
trusts the server's order.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import orjson

from roomcast.delivery.ports import Framer
from roomcast.log.idempotency import RETRY_WITHIN_MS
from roomcast.wire.codes import Closing, Disconnect
from tests.simulation.checker import PADDING, Checker, Kind, View
from tests.simulation.filters import Wanted, filter_of

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode

# How long an SDK waits for the answer to a command before it connects anew.
ANSWER_S = 20.0
# SDKs go up to 20 s; longer here, since whole days of outage are simulated.
PAUSE_S_MAX = 1200.0
# Pauses between attempts with one key double from about a second up to this.
RETRY_S_MAX = 3600.0


def _as_it_is(payload: bytes) -> bytes:
    return payload


class ClientSocket:
    """The Socket of one connection: what the node sends reaches the client at once,
    until one of them is gone.
    """

    def __init__(self, client: SimulatedClient, node: SimulatedNode) -> None:
        self.client = client
        self.node = node
        self.open = True
        self.framer: Framer = _as_it_is
        self.is_binary = False
        self.is_unidirectional = False
        self.session = ""
        self.unsent_bytes = 0
        self.is_gone = False

    def send(self, frame: bytes) -> None:
        if self.open:
            self.client.take(self, frame)

    def close(self, why: Closing) -> None:
        if self.open:
            self.open = False
            self.client.dropped(self, why)


@dataclass(slots=True)
class Keyed:
    """A publication with a key that was not acknowledged yet, and until when it is tried."""

    channel: str
    content: str
    data: str
    until_s: float
    pause_s: float = 0.0
    # The command of the newest attempt.
    attempt: int = 0
    timer: asyncio.TimerHandle | None = None


class SimulatedClient:
    """Subscribed to `channels` for the whole run, apart from the times when it is away."""

    def __init__(
        self,
        name: str,
        channels: list[str],
        checker: Checker,
        random: Random,
        pick: Callable[[], SimulatedNode | None],
        wanted: Callable[[], Wanted] = lambda: None,
    ) -> None:
        """`wanted`: what it wants of the next channel."""
        self.name = name
        self.views = {channel: View(name, channel, kinds=wanted()) for channel in channels}
        self._checker = checker
        self._random = random
        self._pick = pick
        self._socket: ClientSocket | None = None
        self._inbox: asyncio.Queue[bytes] | None = None
        self._ids = 0
        self._connections = 0
        # Subscribes that failed in a row.
        self._failures = 0
        self._waiting: dict[int, Callable[[dict[str, Any]], None]] = {}
        self.hidden: dict[str, tuple[str, int] | None] = {}
        self.away = False
        # By content, which is the key as well.
        self.unanswered: dict[str, Keyed] = {}
        self.retries = 0
        # The id of its present connection; "" = not known yet.
        self.id = ""
        # Told when the server says how long the connection lasts (s).
        self.refreshed: Callable[[SimulatedClient, int], None] = lambda _client, _ttl_s: None

    @property
    def connected(self) -> bool:
        return self._socket is not None and self._socket.open

    @property
    def node(self) -> SimulatedNode | None:
        """Where it is connected."""
        return self._socket.node if self._socket is not None and self._socket.open else None

    @property
    def waiting(self) -> int:
        """Commands of this connection that were not answered yet."""
        return len(self._waiting) if self.connected else 0

    # ---- coming and going

    def come(self) -> None:
        """Or try again at once, as when somebody picks up the phone."""
        self.away = False
        self._failures = 0
        if self.connected and not all(view.subscribed for view in self.views.values()):
            self.drop()
        self._connect()
        for keyed in self.unanswered.values():
            keyed.pause_s = 0.0
            self._retry_later(keyed)

    def go(self) -> None:
        """Leave without a word, as a phone in a tunnel does."""
        self.away = True
        self._drop()

    def drop(self) -> None:
        """Lose the connection and come back."""
        self._drop()
        self._connect_later()

    def _connect(self) -> None:
        if self.away or self.connected:
            return
        node = self._pick()
        if node is None:
            self._connect_later()
            return
        socket = self._socket = ClientSocket(self, node)
        self._connections += 1
        inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._inbox = inbox
        self._waiting.clear()
        self.id = ""
        for view in self.views.values():
            view.subscribed = False
        node.attach(socket, inbox)
        lines = [self._line("connect", {}, self._welcomed)]
        lines += [self._subscribe_line(view) for view in self.views.values()]
        self._write(b"\n".join(lines))

    def _welcomed(self, reply: dict[str, Any]) -> None:
        if "error" not in reply:
            self.id = reply["connect"]["client"]

    def _connect_later(self) -> None:
        asyncio.get_running_loop().call_later(self._pause_s(), _apart, self._connect)

    def _pause_s(self) -> float:
        """Grows with each failure in a row, as in the SDKs."""
        return self._random.uniform(0.2, 1.0) * min(PAUSE_S_MAX, 2.0 ** min(self._failures, 10))

    def _drop(self) -> None:
        socket, self._socket = self._socket, None
        inbox, self._inbox = self._inbox, None
        if socket is not None:
            socket.open = False
        if inbox is not None:
            inbox.put_nowait(b"")  # end of file

    def boast(self, channel: str, ahead: int) -> None:
        """Come back with a position that is ahead of what it saw."""
        view = self.views[channel]
        if view.position is not None:
            view.position = view.made_up = (view.position[0], view.position[1] + ahead)
        self.drop()

    def dropped(self, socket: ClientSocket, why: Closing) -> None:
        """The server closed."""
        if self._socket is socket:
            if why is not Disconnect.NO_PONG or not socket.node.slept:
                self._checker.fail(Kind.CLOSED, f"{self.name} by {socket.node.name}: {why}")
            self._drop()
            self._connect_later()

    # ---- commands

    def publish(self, channel: str, content: str, padding: int = 0) -> None:
        """`padding`: bytes that make it larger."""
        if not self.connected:
            return
        self._checker.publishing(self.name, self._connections, channel, content)

        def answered(reply: dict[str, Any]) -> None:
            if "error" not in reply:
                self._checker.acknowledged[content] = asyncio.get_running_loop().time()
            else:
                self._checker.error_reply(self.name, reply["error"])

        data = content + PADDING * padding
        self._write(self._line("publish", {"channel": channel, "data": data}, answered))

    def publish_keyed(self, channel: str, content: str, padding: int = 0) -> None:
        """Publish with a key, again and again until it is acknowledged,
        wherever the client is connected by then.
        """
        if not self.connected:
            return
        until_s = asyncio.get_running_loop().time() + RETRY_WITHIN_MS / 1000
        keyed = self.unanswered[content] = Keyed(
            channel, content, content + PADDING * padding, until_s
        )
        self._try(keyed)

    def _try(self, keyed: Keyed) -> None:
        loop = asyncio.get_running_loop()
        if self.unanswered.get(keyed.content) is not keyed:
            return
        if loop.time() > keyed.until_s:
            # It may be in the log or not; from now on the key would not tell.
            del self.unanswered[keyed.content]
            return
        self._retry_later(keyed)
        if not self.connected:
            return

        def answered(reply: dict[str, Any]) -> None:
            if "error" in reply:
                self._checker.error_reply(self.name, reply["error"])
                if reply["id"] == keyed.attempt:
                    self._retry_later(keyed)
                return
            self._checker.acknowledged[keyed.content] = loop.time()
            self._checker.publish_reply(
                self.name, keyed.channel, keyed.content, reply["rpc"]["data"]
            )
            if self.unanswered.pop(keyed.content, None) is keyed and keyed.timer is not None:
                keyed.timer.cancel()

        self._checker.publishing(self.name, self._connections, keyed.channel, keyed.content)
        call = {"channel": keyed.channel, "data": keyed.data, "idempotency_key": keyed.content}
        line = self._line("rpc", {"method": "roomcast.publish", "data": call}, answered)
        keyed.attempt = self._ids
        self._write(line)

    def _retry_later(self, keyed: Keyed) -> None:
        """The next attempt, in place of the one that was due."""
        if self.unanswered.get(keyed.content) is not keyed:
            return
        if keyed.timer is not None:
            keyed.timer.cancel()
        keyed.pause_s = min(RETRY_S_MAX, 2 * keyed.pause_s or self._random.choice((0.0, 0.5, 2.0)))
        keyed.timer = asyncio.get_running_loop().call_later(
            keyed.pause_s, _apart, self._retry, keyed
        )

    def _retry(self, keyed: Keyed) -> None:
        self.retries += 1
        self._try(keyed)

    def read_history(self, channel: str) -> None:
        if not self.connected:
            return
        hidden = self.hidden.get(channel)

        def answered(reply: dict[str, Any]) -> None:
            if "history" in reply:
                self._checker.history(self.name, channel, reply["history"], hidden)
            else:
                self._checker.error_reply(self.name, reply["error"])

        self._write(self._line("history", {"channel": channel, "limit": -1}, answered))

    def _subscribe_line(self, view: View) -> bytes:
        since = view.position
        params: dict[str, Any] = {"channel": view.channel}
        if view.kinds is not None:
            params["tf"] = filter_of(view.kinds)
        if since is not None:
            params |= {"recover": True, "epoch": since[0], "offset": since[1]}

        def answered(reply: dict[str, Any]) -> None:
            if "error" in reply:
                self._checker.error_reply(self.name, reply["error"])
                self._failures += 1
                asyncio.get_running_loop().call_later(
                    self._pause_s(), _apart, self._subscribe_again, self._socket, view
                )
            else:
                self._failures = 0
                assert self._socket is not None, "what comes comes through it"
                terms = self._socket.node.terms(view.channel)
                self._checker.subscribe_reply(view, since, reply["subscribe"], terms)

        line = self._line("subscribe", params, answered)
        asyncio.get_running_loop().call_later(
            ANSWER_S, _apart, self._give_up, self._socket, self._ids
        )
        return line

    def _subscribe_again(self, socket: ClientSocket, view: View) -> None:
        if self._socket is socket and socket.open and not view.subscribed:
            self._write(self._subscribe_line(view))

    def _give_up(self, socket: ClientSocket, command: int) -> None:
        if self._socket is socket and command in self._waiting:
            self._failures += 1
            self.drop()

    def _line(
        self, method: str, params: dict[str, Any], answered: Callable[[dict[str, Any]], None]
    ) -> bytes:
        self._ids += 1
        self._waiting[self._ids] = answered
        return orjson.dumps({"id": self._ids, method: params})

    def _write(self, frame: bytes) -> None:
        if self._inbox is not None:
            self._inbox.put_nowait(frame)

    # ---- what comes

    def take(self, socket: ClientSocket, frame: bytes) -> None:
        if socket is not self._socket:
            return
        for line in frame.split(b"\n"):
            message = orjson.loads(line)
            if push := message.get("push"):
                self._pushed(push)
            elif answered := self._waiting.pop(message.get("id", 0), None):
                answered(message)

    def _pushed(self, push: dict[str, Any]) -> None:
        if "refresh" in push:
            self.refreshed(self, push["refresh"]["ttl"])
            return
        view = self.views.get(push["channel"])
        if view is None:
            return
        if "pub" in push:
            self._checker.push(view, push["pub"])
        elif "unsubscribe" in push:
            socket = self._socket
            assert socket is not None, "what comes comes through it"
            terms = socket.node.terms(view.channel)
            self._checker.unsubscribed(view, push["unsubscribe"]["code"], terms)
            asyncio.get_running_loop().call_soon(_apart, self._subscribe_again, socket, view)


def _apart(call: Callable[..., None], *arguments: Any) -> None:
    """Run in a context of its own: a client is not part of the node that happened to send to it."""
    contextvars.Context().run(call, *arguments)
