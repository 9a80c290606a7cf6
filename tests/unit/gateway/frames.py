"""The client's side of RFC 6455, by hand: for peers that aiohttp's client would not be."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a server."""

    opcode: int
    payload: bytes

    @property
    def close_code(self) -> int:
        assert self.opcode == CLOSE
        return int(struct.unpack("!H", self.payload[:2])[0])


def parsed(data: bytes) -> Iterator[Frame]:
    """The frames in `data`, which must end with a whole one: final, unmasked,
    with the shortest length that fits.
    """
    while data:
        first, second = data[0], data[1]
        assert first & 0xF0 == 0x80, "final, and no reserved bit set"
        assert second & 0x80 == 0, "a server does not mask"
        length, header = second, 2
        if second == 126:
            (length,), header = struct.unpack("!H", data[2:4]), 4
            assert length > 125
        elif second == 127:
            (length,), header = struct.unpack("!Q", data[2:10]), 10
            assert length > 0xFFFF
        assert len(data) >= header + length, "a whole frame"
        yield Frame(first & 0x0F, data[header : header + length])
        data = data[header + length :]


def masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame."""
    mask = os.urandom(4)
    header = bytes([opcode | (0x80 if final else 0)])
    if len(payload) <= 125:
        header += bytes([0x80 | len(payload)])
    elif len(payload) <= 0xFFFF:
        header += struct.pack("!BH", 0x80 | 126, len(payload))
    else:
        header += struct.pack("!BQ", 0x80 | 127, len(payload))
    return header + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def handshake(path: str, **headers: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
