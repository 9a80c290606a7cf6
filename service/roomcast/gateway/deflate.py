"""Compresses WebSocket messages: permessage-deflate (RFC 7692), without a compressor a connection.

No message refers to an earlier one, in neither direction: the handshake agrees on that. So the
compressed frame of a publication is the same for every client that takes it, and is made once. And
between two messages nothing is kept of a connection.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.gateway.frame_headers import HEADER_BYTES_MAX, header_size, payload_size
from roomcast.gateway.writer import frame_header

__all__ = [
    "COMPRESSED_BYTES_MAX",
    "DENSE_BYTES_MAX",
    "INFLATED_A_TURN",
    "Agreed",
    "Compression",
    "Deflater",
    "Marks",
    "Unreadable",
    "agree",
    "deflated",
    "inflated",
    "inflating",
]

# A longer message goes out as it is: to compress it would hold up the others for some ms.
COMPRESSED_BYTES_MAX: Final = 256 * 1024
# A longer message is compressed at _DENSE_LEVEL at most. At level 9, 64 KiB that somebody made of
# two letters take 0.3 s: forty times as long.
DENSE_BYTES_MAX: Final = 8 * 1024
_DENSE_LEVEL: Final = 6
# Bytes of a compressed message that are inflated in one turn of the event loop: 3 ms at most. It
# may be all tables, and become nothing.
INFLATED_A_TURN: Final = 16 * 1024

_NAME: Final = "permessage-deflate"
# Offers of one handshake that are looked at, and parameters of each. Clients make one or two, of
# four parameters at most.
_OFFERS_MAX: Final = 8
_PARAMETERS_MAX: Final = 8
# Sizes of the window that a client may ask for, as powers of two. zlib compresses with none below
# 9.
_BITS_ZLIB_MIN, _BITS_MAX = 9, 15
_SIZES: Final = frozenset(str(bits) for bits in range(8, _BITS_MAX + 1))
# What zlib keeps free in its window.
_LOOKAHEAD: Final = 262
# The end of each compressed message, which is not sent (RFC 7692 §7.2.1).
_END: Final = b"\x00\x00\xff\xff"
# Streams that one message may consist of, each ending with a final block (RFC 7692 §7.2.3.5).
_STREAMS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Compression:
    """Which messages are compressed: those of `min_size` bytes or more. `level`: zlib's, 1 to 9."""

    min_size: int
    level: int


class Unreadable(Exception):
    """A compressed message cannot be had. `is_too_large`: because it is longer than it may be."""

    def __init__(self, *, is_too_large: bool) -> None:
        super().__init__("too large" if is_too_large else "not compressed as it should be")
        self.is_too_large = is_too_large


# ---- the handshake


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a handshake agreed on. `answer`: the value of the header field that says so.

    `is_narrow`: the client keeps no window of the usual size.
    """

    answer: str
    is_narrow: bool


def agree(fields: Sequence[str]) -> Agreed | None:
    """Accepts the first offer in the header fields Sec-WebSocket-Extensions that can be met.

    None = there is none.
    """
    offers = [offer for field in fields[:_OFFERS_MAX] for offer in field.split(",", _OFFERS_MAX)]
    for offer in offers[:_OFFERS_MAX]:
        name, *parameters = (part.strip(" \t") for part in offer.split(";", _PARAMETERS_MAX))
        if name.lower() == _NAME and (agreed := _met(parameters)) is not None:
            return agreed
    return None


def _met(parameters: Sequence[str]) -> Agreed | None:
    """None = a parameter is unknown, or comes twice, or has a value that it must not have, or that
    cannot be met (RFC 7692 §7.1).
    """
    values: dict[str, str | None] = {}
    for parameter in parameters:
        name, has_value, value = parameter.partition("=")
        name = name.strip(" \t").lower()
        if name in values:
            return None
        values[name] = _unquoted(value.strip(" \t")) if has_value else None
    takes_over = [values.pop(f"{side}_no_context_takeover", None) for side in ("server", "client")]
    # Any window of the client's can be read. It need not be told of one.
    client_bits = values.pop("client_max_window_bits", None)
    is_odd = any(each is not None for each in takes_over) or client_bits not in (None, *_SIZES)
    answer = f"{_NAME}; server_no_context_takeover; client_no_context_takeover"
    if "server_max_window_bits" not in values:
        return None if is_odd or values else Agreed(answer, is_narrow=False)
    bits = values.pop("server_max_window_bits") or ""
    if is_odd or values or bits not in _SIZES or int(bits) < _BITS_ZLIB_MIN:
        return None
    return Agreed(f"{answer}; server_max_window_bits={bits}", is_narrow=int(bits) < _BITS_MAX)


def _unquoted(value: str) -> str:
    is_quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1] if is_quoted else value


# ---- what goes out


class Deflater:
    """A Framer that compresses. `payload`: makes the message of lines of JSON.

    `is_narrow`: for clients that keep a small window.
    """

    __slots__ = ("_bits", "_compression", "_opcode", "_payload")

    def __init__(
        self,
        compression: Compression,
        opcode: int,
        payload: Callable[[bytes], bytes],
        *,
        is_narrow: bool,
    ) -> None:
        self._compression = compression
        self._opcode = opcode
        self._payload = payload
        self._bits = _BITS_ZLIB_MIN if is_narrow else _BITS_MAX

    def __call__(self, lines: bytes) -> bytes:
        payload = self._payload(lines)
        length = len(payload)
        if self._compression.min_size <= length <= COMPRESSED_BYTES_MAX:
            packed = deflated(payload, self._compression.level, self._bits)
            if len(packed) < length:
                return frame_header(self._opcode, len(packed), compressed=True) + packed
        return frame_header(self._opcode, length) + payload


def deflated(payload: bytes, level: int, bits: int = _BITS_MAX) -> bytes:
    """`payload` compressed, with a window of at most 2 to the power of `bits` bytes."""
    if len(payload) > DENSE_BYTES_MAX:
        level = min(level, _DENSE_LEVEL)
    # A window larger than the payload is of no use, and to clear it costs more than to compress a
    # small payload.
    bits = max(_BITS_ZLIB_MIN, min(bits, (len(payload) + _LOOKAHEAD).bit_length()))
    memory = min(8, bits - 6)
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits, memory)
    packed = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return packed[: -len(_END)]


# ---- what comes in


def inflated(packed: bytes, bytes_max: int) -> bytes:
    """The message that was compressed to `packed`, of at most `bytes_max` bytes.

    Raises Unreadable. No more than one byte above the bound is made of it.
    """
    steps = inflating(packed, bytes_max)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            message: bytes = done.value
            return message


def inflating(packed: bytes, bytes_max: int) -> Generator[None, None, bytes]:
    """As `inflated`, with a pause after each INFLATED_A_TURN of `packed`."""
    whole, place, room = packed + _END, 0, bytes_max
    parts: list[bytes] = []
    for _ in range(_STREAMS_MAX):
        stream = zlib.decompressobj(-_BITS_MAX)
        while not stream.eof:
            rest = whole[place : place + INFLATED_A_TURN]
            try:
                parts.append(stream.decompress(rest, room + 1))
            except zlib.error as error:
                raise Unreadable(is_too_large=False) from error
            room -= len(parts[-1])
            if room < 0:
                raise Unreadable(is_too_large=True)
            place += len(rest) - len(stream.unused_data)
            if place == len(whole):
                return b"".join(parts)
            yield
    raise Unreadable(is_too_large=False)


class Marks:
    """Notes which of a client's messages are compressed, and takes their marks off.

    So aiohttp's reader, which would inflate them as they come, however many, passes them on as they
    are. It refuses a mark in any other place: on control frames, and on frames that continue a
    message (RFC 7692 §6).
    """

    __slots__ = ("_header", "_skipped", "_waiting")

    def __init__(self) -> None:
        # The part of a header that has come, and bytes behind a header that are still to come.
        self._header = b""
        self._skipped = 0
        # Of messages that have begun, in their order. There are few.
        self._waiting: list[bool] = []

    def came_plain(self) -> None:
        """A message that is not compressed has come in another way than `take`."""
        self._waiting.append(False)

    def next(self) -> bool:
        """Whether the next message is compressed. It must have come."""
        return self._waiting.pop(0)

    def take(self, data: bytes) -> bytes:
        """`data` without the marks."""
        if not (places := list(self._marked(data))):
            return data
        changed = bytearray(data)
        for place in places:
            changed[place] &= ~_MARK
        return bytes(changed)

    def _marked(self, data: bytes) -> Iterator[int]:
        """The places of marks."""
        place, end = 0, len(data)
        while place < end:
            if self._skipped:
                step = min(self._skipped, end - place)
                place += step
                self._skipped -= step
                continue
            first = data[place]
            if not self._header and first & _OPCODE in _BEGINNING:
                self._waiting.append(bool(first & _MARK))
                if first & _MARK:
                    yield place
            had = len(self._header)
            self._header += data[place : place + HEADER_BYTES_MAX - had]
            size = header_size(self._header)
            if size > len(self._header):
                return
            place += size - had
            self._skipped = payload_size(self._header)
            self._header = b""


_OPCODE, _MARK = 0x0F, 0x40
# The opcodes of frames that begin a message.
_BEGINNING: Final = (0x1, 0x2)
