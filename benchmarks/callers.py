"""The client side of benchmarks about connections: very many sockets, without an event loop.

Started by benchmarks/connections.py, arrivals.py and inbound.py. It reads JSON lines from standard
input, answers each on standard output, and ends with its input. Its addresses are spread over
loopback, since one address has fewer ports than there are clients.
"""

from __future__ import annotations

import base64
import errno
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

from benchmarks.rig import CHANNEL, PATH, carry_out_lines, masked, widen
from roomcast.serve.descriptors import widened

__all__: list[str] = []

_READ_BYTES: Final = 64 * 1024
# Longer than any measured step.
_PATIENCE_S: Final = 60.0
_KEY: Final = base64.b64encode(bytes(range(16))).decode()
_REQUEST: Final = (
    f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_KEY}\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    "Accept-Language: en-US,en;q=0.5\r\nCache-Control: no-cache\r\n\r\n"
).encode()
_HEAD_END: Final = b"\r\n\r\n"
# A ping of the node, as a frame: `{}`.
_PING: Final = b"\x81\x02{}"
_CLOSE: Final = 0x88


_PONG: Final = masked(b"{}")
_GOODBYE: Final = masked(struct.pack("!H", 1000), _CLOSE)


def _hello(recover: Mapping[str, Any] | None) -> bytes:
    """Connect and subscribe in one frame, as SDKs do."""
    subscribe = {"channel": CHANNEL, **({"recover": True, **recover} if recover else {})}
    commands = ({"id": 1, "connect": {}}, {"id": 2, "subscribe": subscribe})
    return masked("\n".join(json.dumps(command) for command in commands).encode())


@dataclass(slots=True)
class _Coming:
    """One client on its way: what it still waits for, the answer to each, what it has seen."""

    steps: list[tuple[bytes, bytes]]
    seen: bytes = b""


class Callers:
    """Clients of one port of this machine."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._addresses = _addresses()

    # ---- coming and going

    def come(
        self,
        port: int,
        clients: int,
        *,
        at_once: int,
        subscribe: bool = True,
        recover: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Has `clients` connect (and subscribe), `at_once` at a time.

        `recover`: the position (epoch and offset) from which all of them recover. Returns the wall
        seconds, and how many were told that they recovered.
        """
        hello = _hello(recover)
        begun = time.monotonic()
        coming: dict[int, _Coming] = {}
        left = clients
        recovered = 0
        until = begun + _PATIENCE_S
        while coming or left:
            while left and len(coming) < at_once:
                descriptor = self._dial(port)
                steps = [(b"", _REQUEST), (_HEAD_END, hello if subscribe else b"")]
                if subscribe:
                    steps.append((b'"subscribe"', b""))
                coming[descriptor] = _Coming(steps)
                left -= 1
            for descriptor, _ in self._poll.poll(max(0.0, until - time.monotonic()), 1024):
                client = coming.get(descriptor)
                if client is None:
                    self._answer_pings(descriptor)
                    continue
                if client.steps[0][0]:
                    client.seen += self._read(descriptor)
                if not self._goes_on(descriptor, client):
                    continue
                recovered += b'"recovered":true' in client.seen
                del coming[descriptor]
            if time.monotonic() > until:
                return {"missing": left + len(coming)}
        return {"missing": 0, "wall_s": time.monotonic() - begun, "recovered": recovered}

    def _goes_on(self, descriptor: int, client: _Coming) -> bool:
        """Takes what steps it can. Returns whether it has arrived."""
        while client.steps:
            awaited, answer = client.steps[0]
            if awaited and awaited not in client.seen:
                return False
            if not awaited:
                self._poll.modify(descriptor, select.EPOLLIN)
            client.steps.pop(0)
            if answer:
                self._sockets[descriptor].send(answer)
        return True

    def _dial(self, port: int) -> int:
        dialled = socket.socket()
        dialled.setblocking(False)
        dialled.bind((next(self._addresses), 0))
        if dialled.connect_ex(("127.0.0.1", port)) not in (0, errno.EINPROGRESS):
            raise SystemExit("the server cannot be reached")
        descriptor = dialled.fileno()
        self._sockets[descriptor] = dialled
        self._poll.register(descriptor, select.EPOLLOUT)
        return descriptor

    def leave(self) -> dict[str, Any]:
        """Has all of them close, as SDKs do, and waits for the other side's answer and end."""
        for leaving in self._sockets.values():
            leaving.send(_GOODBYE)
        until = time.monotonic() + _PATIENCE_S
        while self._sockets and time.monotonic() < until:
            for descriptor, _ in self._poll.poll(max(0.0, until - time.monotonic()), 1024):
                try:
                    part = self._sockets[descriptor].recv(_READ_BYTES)
                except ConnectionError:
                    part = b""
                if not part:
                    self._sockets.pop(descriptor).close()
        return {"left": len(self._sockets)}

    # ---- staying

    def stay(self, seconds: float) -> dict[str, Any]:
        """Answers pings for `seconds`. Returns how many there were, and the clients that were
        lost.
        """
        pings = 0
        before = len(self._sockets)
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            for descriptor, _ in self._poll.poll(left_s, 1024):
                pings += self._answer_pings(descriptor)
        return {
            "pings": pings,
            "lost": before - len(self._sockets),
            "open": len(self._sockets),
        }

    def _answer_pings(self, descriptor: int) -> int:
        """Returns how many there were. A client whose connection has ended is forgotten."""
        part = self._read(descriptor)
        if not part:
            self._sockets.pop(descriptor).close()
            return 0
        count = part.count(_PING)
        if count:
            self._sockets[descriptor].send(_PONG * count)
        return count

    def ask(self, frame: str, answers: int, clients: int, window: int) -> dict[str, Any]:
        """Has `clients` send `frame` and wait for an answer, `answers` times in all.

        `window`: how many each has under way. Returns the wall seconds.
        """
        said = masked(frame.encode())
        asking = dict.fromkeys(islice(self._sockets, clients), 0)
        begun = time.monotonic()
        until = begun + _PATIENCE_S
        sent = 0
        for descriptor in asking:
            self._sockets[descriptor].send(said * window)
            sent += window
        came = 0
        while came < sent and time.monotonic() < until:
            for descriptor, _ in self._poll.poll(max(0.0, until - time.monotonic()), 1024):
                if descriptor not in asking:
                    continue
                count = _frames(self._read(descriptor))
                came += count
                more = min(count, answers - sent)
                if more > 0:
                    self._sockets[descriptor].send(said * more)
                    sent += more
        return {"missing": sent - came, "answers": came, "wall_s": time.monotonic() - begun}

    def _read(self, descriptor: int) -> bytes:
        try:
            return self._sockets[descriptor].recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except ConnectionError:
            return b""


def _frames(part: bytes) -> int:
    """How many whole frames of up to 125 bytes are in `part`. None is split: they are small."""
    at = count = 0
    while at < len(part):
        at += 2 + part[at + 1]
        count += 1
    return count


def _addresses() -> Iterator[str]:
    """Addresses of loopback, each for as many clients as it has room for."""
    names: Sequence[str] = [f"127.0.{number // 250}.{number % 250 + 2}" for number in range(250)]
    return cycle(names)


def main(core: int) -> None:
    """Carries out the lines of standard input until they end."""
    widen(core)
    widened()
    carry_out_lines(Callers())


if __name__ == "__main__":
    main(int(sys.argv[1]))
