"""The client side of the benchmarks: many sockets that subscribe and read, without an event loop.

Started by benchmarks/rig.py. It reads JSON lines from standard input, answers each on standard
output, and ends with its input. The kernel reports when bytes arrive (SO_TIMESTAMPNS), independent
of the time of reading.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.rig import CHANNEL, MARK, PATH, carry_out_lines, masked, widen

__all__ = ["DIALECTS"]

# Linux: from asm-generic/socket.h.
_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("ll")
_READ_BYTES: Final = 256 * 1024
_MARK: Final = MARK.encode()
# The code of a close frame in its encoded form.
_CLOSE_3001: Final = struct.pack("!H", 3001)
# Longer than any measured step.
_PATIENCE_S: Final = 20.0


def _upgrade(path: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()


_COMMANDS: Final = ({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": CHANNEL}})
# How a client gets in: what it sends, and what it waits for then, step by step.
DIALECTS: Final[Mapping[str, Sequence[tuple[bytes, bytes]]]] = {
    "roomcast": (
        (_upgrade(PATH), b"\r\n\r\n"),
        (masked("\n".join(map(json.dumps, _COMMANDS)).encode()), b'"subscribe"'),
    ),
    "websocket": ((_upgrade("/"), b"\r\n\r\n"),),
    "socket.io": (
        (_upgrade("/socket.io/?EIO=4&transport=websocket"), b'0{"sid"'),
        (masked(b"40"), b'40{"sid"'),
    ),
    # Connected is all that there is.
    "tcp": (),
}


class Crowd:
    """Clients of one channel. `dialect`: a key of DIALECTS."""

    def __init__(self, port: int, dialect: str) -> None:
        self._address = ("127.0.0.1", port)
        self._steps = DIALECTS[dialect]
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        # The end of each client's input, because a mark may be split.
        self._ends: dict[int, bytes] = {}
        self._stalled: list[socket.socket] = []

    def come(self, clients: int) -> dict[str, Any]:
        """Connects and subscribes `clients` clients."""
        for _ in range(clients):
            connected = self._subscribed()
            connected.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            connected.setblocking(False)
            self._sockets[connected.fileno()] = connected
            self._ends[connected.fileno()] = b""
            self._poll.register(connected.fileno(), select.EPOLLIN | select.EPOLLET)
        return {}

    def stall(self) -> dict[str, Any]:
        """Subscribes one more client, which never reads."""
        self._stalled.append(self._subscribed(receive_bytes=4096))
        return {}

    def forget(self) -> dict[str, Any]:
        """Closes the clients that do not read."""
        for connected in self._stalled:
            connected.close()
        self._stalled.clear()
        return {}

    def read(self, publications: int, nap_s: float = 0.0) -> dict[str, Any]:
        """Waits until every client has `publications` more. Returns the ms between the first and
        the last client that had the last of them.

        `nap_s`: look again after so long, whatever arrives. Otherwise an arrival wakes this
        process, which its sender's CPU pays for whenever this process has nothing left to read.
        """
        left = dict.fromkeys(self._sockets, publications)
        missing, first, last = len(left), float("inf"), 0.0
        until = time.monotonic() + _PATIENCE_S
        while missing:
            time.sleep(nap_s)
            wait_s = 0.0 if nap_s else max(0.0, until - time.monotonic())
            for descriptor, _ in self._poll.poll(wait_s):
                for part, at in self._parts(descriptor):
                    seen = self._ends[descriptor] + part
                    self._ends[descriptor] = seen[-len(_MARK) + 1 :]
                    before = left[descriptor]
                    left[descriptor] = before - seen.count(_MARK)
                    if left[descriptor] <= 0 < before:
                        missing -= 1
                        first, last = min(first, at), max(last, at)
            if time.monotonic() > until:
                return {"missing": missing}
        return {"missing": 0, "spread_ms": (last - first) * 1000}

    def leave(self) -> dict[str, Any]:
        """Answers the close of every client, as SDKs do. Returns the number of closes with 3001."""
        closed = 0
        until = time.monotonic() + _PATIENCE_S
        while self._sockets and time.monotonic() < until:
            for descriptor, _ in self._poll.poll(max(0.0, until - time.monotonic())):
                connected = self._sockets[descriptor]
                try:
                    part = connected.recv(_READ_BYTES)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    part = b""
                # No other frames come during the close, but an earlier frame may share the part.
                at = part.find(_CLOSE_3001)
                if not part or at >= 0:
                    closed += at >= 0
                    connected.close()
                    del self._sockets[descriptor]
        return {"closed": closed, "left": len(self._sockets)}

    def _parts(self, descriptor: int) -> list[tuple[bytes, float]]:
        parts: list[tuple[bytes, float]] = []
        while True:
            try:
                part, told, _, _ = self._sockets[descriptor].recvmsg(_READ_BYTES, 64)
            except BlockingIOError:
                return parts
            if not part:
                raise SystemExit("the server closed a connection")
            seconds, nanoseconds = _TIMESPEC.unpack(told[0][2][: _TIMESPEC.size])
            parts.append((part, seconds + nanoseconds / 1e9))

    def _subscribed(self, receive_bytes: int = 0) -> socket.socket:
        connected = socket.socket()
        if receive_bytes:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connected.connect(self._address)
        for sent, awaited in self._steps:
            connected.sendall(sent)
            seen = b""
            while awaited not in seen:
                part = connected.recv(4096)
                if not part:
                    raise SystemExit(f"a client was not let in: {seen[-200:]!r}")
                seen += part
        return connected


def main(port: int, core: int, dialect: str = "roomcast") -> None:
    """Carries out the lines of standard input until they end."""
    widen(core)
    carry_out_lines(Crowd(port, dialect))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
