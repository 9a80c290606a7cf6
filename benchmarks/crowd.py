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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import jwt

from benchmarks.rig import (
    BINARY,
    CHANNEL,
    MARK,
    PATH,
    TOKEN_KEY,
    carry_out_lines,
    masked,
    widen,
)
from roomcast.wire.protobuf_schema import message_class

__all__ = ["DIALECTS", "STREAMS"]

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


def _commands(channel: str) -> bytes:
    commands = ({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": channel}})
    return "\n".join(map(json.dumps, commands)).encode()


def _protobuf_commands(channel: str) -> bytes:
    command = message_class("Command")
    connect, subscribe = command(id=1), command(id=2)
    connect.connect.SetInParent()
    subscribe.subscribe.channel = channel
    messages = (connect.SerializeToString(), subscribe.SerializeToString())
    # Each is shorter than 128 bytes, and so its length is one byte.
    return b"".join(bytes([len(message)]) + message for message in messages)


def _posted(path: str, body: bytes, kind: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _asked(path: str, commands: bytes) -> bytes:
    query = urlencode({"cf_connect": commands})
    return f"GET {path}?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


# How a client gets in: what it sends, and what it waits for then, step by step.
Steps = Sequence[tuple[bytes, bytes]]
# In a reply to `connect` in Protobuf: the server's name.
_WELCOME: Final = b"roomcast "


def _websocket_protobuf(channel: str) -> Steps:
    return (
        (_upgrade(f"{PATH}?format=protobuf"), b"\r\n\r\n"),
        (masked(_protobuf_commands(channel), BINARY), _WELCOME),
    )


def _http_stream(channel: str) -> Steps:
    body = _commands(channel)
    return ((_posted("/connection/http_stream", body, "application/json"), b'"subscribe"'),)


def _http_stream_protobuf(channel: str) -> Steps:
    body = _protobuf_commands(channel)
    return ((_posted("/connection/http_stream", body, "application/octet-stream"), _WELCOME),)


def _sse(channel: str) -> Steps:
    # In a query there is no other command than `connect`.
    return ((_posted("/connection/sse", _commands(channel), "application/json"), b'"subscribe"'),)


def _connect(channel: str) -> bytes:
    """What a client without an SDK says."""
    return json.dumps({"token": jwt.encode({"channels": [channel]}, TOKEN_KEY)}).encode()


def _uni_websocket(channel: str) -> Steps:
    return (
        (_upgrade("/connection/uni_websocket"), b"\r\n\r\n"),
        (masked(_connect(channel)), b'"connect"'),
    )


def _uni_http_stream(channel: str) -> Steps:
    body = _connect(channel)
    return ((_posted("/connection/uni_http_stream", body, "application/json"), b'"connect"'),)


def _uni_sse(channel: str) -> Steps:
    return ((_asked("/connection/uni_sse", _connect(channel)), b'"connect"'),)


def _websocket(channel: str) -> Steps:
    return (
        (_upgrade(PATH), b"\r\n\r\n"),
        (masked(_commands(channel)), b'"subscribe"'),
    )


# The transports of roomcast beside its WebSockets in JSON, by channel.
STREAMS: Final[Mapping[str, Callable[[str], Steps]]] = {
    "websocket-json": _websocket,
    "websocket-protobuf": _websocket_protobuf,
    "http-stream-json": _http_stream,
    "http-stream-protobuf": _http_stream_protobuf,
    "sse-json": _sse,
    "uni-websocket": _uni_websocket,
    "uni-http-stream": _uni_http_stream,
    "uni-sse": _uni_sse,
}
DIALECTS: Final[Mapping[str, Steps]] = {
    "roomcast": _websocket(CHANNEL),
    "websocket": ((_upgrade("/"), b"\r\n\r\n"),),
    "socket.io": (
        (_upgrade("/socket.io/?EIO=4&transport=websocket"), b'0{"sid"'),
        (masked(b"40"), b'40{"sid"'),
    ),
    # Connected is all that there is.
    "tcp": (),
}


class Crowd:
    """Clients of one channel. `dialect`: a key of DIALECTS, or of STREAMS for one of `channel`."""

    def __init__(self, port: int, dialect: str, channel: str = CHANNEL) -> None:
        self._address = ("127.0.0.1", port)
        self._steps = STREAMS[dialect](channel) if dialect in STREAMS else DIALECTS[dialect]
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


def main(port: int, core: int, dialect: str = "roomcast", channel: str = CHANNEL) -> None:
    """Carries out the lines of standard input until they end."""
    widen(core)
    carry_out_lines(Crowd(port, dialect, channel))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
