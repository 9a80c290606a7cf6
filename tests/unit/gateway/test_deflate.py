"""permessage-deflate: what a handshake agrees on, and messages that come out as they went in."""

from __future__ import annotations

import json
import random
import zlib
from contextlib import suppress
from typing import Any, Final

import pytest
from aiohttp import WSMsgType
from aiohttp.http import WebSocketReader
from hypothesis import given
from hypothesis import strategies as st

from roomcast.gateway import deflate as deflate_module
from roomcast.gateway.deflate import (
    COMPRESSED_BYTES_MAX,
    DENSE_BYTES_MAX,
    INFLATED_A_TURN,
    Compression,
    Deflater,
    Marks,
    Unreadable,
    agree,
    deflated,
    inflated,
    inflating,
)
from roomcast.gateway.reader import _Frames
from roomcast.gateway.writer import BINARY_DATA, TEXT, text_frame
from roomcast.wire.protobuf import encode_messages
from tests.unit.gateway.frames import PING, masked

PLAIN: Final = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
SMALL: Final = Compression(0, 1)


# ---- the handshake


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=10",
        'Permessage-Deflate ;client_max_window_bits="15"',
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate",
        "permessage-deflate; made_up, permessage-deflate",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
    ],
)
def test_what_clients_offer_is_accepted(offer: str) -> None:
    agreed = agree([offer])
    assert agreed is not None
    assert (agreed.answer, agreed.is_narrow) == (PLAIN, False)


@pytest.mark.parametrize("bits, is_narrow", [(9, True), (12, True), (14, True), (15, False)])
def test_a_smaller_window_is_kept_to(bits: int, is_narrow: bool) -> None:
    agreed = agree([f"permessage-deflate; server_max_window_bits={bits}; client_max_window_bits"])
    assert agreed is not None
    assert agreed.answer == f"{PLAIN}; server_max_window_bits={bits}"
    assert agreed.is_narrow is is_narrow


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "permessage-gzip",
        "permessage-deflate; made_up",
        "permessage-deflate; made_up=1",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=",
        "permessage-deflate; server_max_window_bits=7",
        # zlib cannot.
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=015",
        "permessage-deflate; server_max_window_bits=1٥",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; client_max_window_bits=+9",
        "permessage-deflate;",
        ", ".join(["permessage-deflate; made_up"] * 8 + ["permessage-deflate"]),
    ],
)
def test_what_cannot_be_met_is_declined(offer: str) -> None:
    assert agree([offer]) is None


def test_offers_may_come_in_several_fields() -> None:
    assert agree(["permessage-gzip", "permessage-deflate; made_up", "permessage-deflate"])
    assert agree([]) is None


@given(st.lists(st.text(max_size=80), max_size=3))
def test_no_header_breaks_it(fields: list[str]) -> None:
    agree(fields)
    agree([f"permessage-deflate;{field}" for field in fields])


def test_of_many_offers_and_parameters_few_are_looked_at() -> None:
    """Half a megabyte of commas would take 30 ms to look through."""
    looked_at = 0

    class Field(str):
        __slots__ = ()

        def split(self, *about: Any) -> list[str]:
            nonlocal looked_at
            looked_at += len(found := super().split(*about))
            return [Field(each) for each in found]

        def strip(self, chars: str | None = None, /) -> str:
            return Field(super().strip(chars))

    assert agree([Field("," * 8000)] * 60) is None
    assert agree([Field(";" * 8000)] * 60) is None
    assert agree([Field("permessage-deflate" + ";a" * 4000)] * 60) is None
    assert looked_at < 1000


# ---- messages

PAYLOADS: Final = st.one_of(
    st.binary(max_size=3000),
    st.builds(lambda part, count: part * count, st.binary(max_size=40), st.integers(0, 3000)),
)


@given(PAYLOADS, st.integers(1, 9), st.integers(9, 15))
def test_any_payload_comes_out_as_it_went_in(payload: bytes, level: int, bits: int) -> None:
    packed = deflated(payload, level, bits)
    assert inflated(packed, len(payload)) == payload
    # The client's window is no larger than was agreed.
    window = zlib.decompressobj(-bits)
    assert window.decompress(packed + b"\x00\x00\xff\xff") == payload


@given(PAYLOADS)
def test_any_stream_of_a_client_is_read(payload: bytes) -> None:
    """RFC 7692 §7.2.3: several blocks, stored blocks, a block that says it is the last one."""
    half = len(payload) // 2
    blocks = zlib.compressobj(6, zlib.DEFLATED, -15)
    flushed = blocks.compress(payload[:half]) + blocks.flush(zlib.Z_FULL_FLUSH)
    flushed += blocks.compress(payload[half:]) + blocks.flush(zlib.Z_SYNC_FLUSH)
    stored = zlib.compressobj(0, zlib.DEFLATED, -15)
    last = zlib.compressobj(6, zlib.DEFLATED, -15)
    streams = [
        flushed[:-4],
        (stored.compress(payload) + stored.flush(zlib.Z_SYNC_FLUSH))[:-4],
        last.compress(payload) + last.flush() + b"\x00",
    ]
    assert [inflated(each, len(payload)) for each in streams] == [payload] * 3


@given(PAYLOADS, st.integers(0, 2))
def test_what_is_inflated_in_parts_is_the_same(payload: bytes, streams: int) -> None:
    one = zlib.compressobj(6, zlib.DEFLATED, -15)
    stream = one.compress(payload) + one.flush()
    packed = stream * streams + deflated(payload, 6)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(deflate_module, "INFLATED_A_TURN", 7)
        assert inflated(packed, (streams + 1) * len(payload)) == payload * (streams + 1)


def test_a_message_that_is_all_tables_takes_as_many_turns_as_it_has_bytes() -> None:
    """Stored blocks of nothing stand for them."""
    packed = b"\x00\x00\x00\xff\xff" * (INFLATED_A_TURN // 5) * 4
    steps = inflating(packed, 1000)
    for _ in range(3):
        next(steps)
    with suppress(StopIteration):
        next(steps)
        next(steps)
        pytest.fail("it has four parts and a rest")


def test_nobody_makes_the_densest_level_take_long() -> None:
    """Two letters in no order: each place is like thousands of earlier ones."""
    chance = random.Random(7692)

    def letters(size: int) -> bytes:
        return bytes(chance.choices(b"ab", k=size))

    large, small = letters(DENSE_BYTES_MAX + 1), letters(DENSE_BYTES_MAX)
    assert deflated(large, 9) == deflated(large, 6)
    assert deflated(small, 9) != deflated(small, 6)
    assert deflated(large, 1) != deflated(large, 6)


@pytest.mark.parametrize("size", [1001, 10_000, 100_000_000])
def test_a_bomb_is_not_inflated(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b"\x00" * size) + packer.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(Unreadable) as refused:
        inflated(packed[:-4], 1000)
    assert refused.value.is_too_large
    assert inflated(deflated(b"x" * 1000, 1), 1000) == b"x" * 1000


def test_a_bomb_of_many_streams_is_not_inflated() -> None:
    one = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = one.compress(b"x" * 600) + one.flush()
    with pytest.raises(Unreadable) as refused:
        inflated(stream * 3, 1000)
    assert refused.value.is_too_large
    empty = zlib.compressobj(9, zlib.DEFLATED, -15)
    with pytest.raises(Unreadable) as refused:
        inflated(empty.flush() * 1000, 1000)
    assert not refused.value.is_too_large


@given(st.binary(max_size=200))
def test_what_is_not_compressed_is_refused_or_read(packed: bytes) -> None:
    with suppress(Unreadable):
        assert len(inflated(packed, 1000)) <= 1000


# ---- frames of this side


def test_a_message_is_compressed_where_that_is_shorter() -> None:
    framer = Deflater(Compression(100, 1), TEXT, bytes, is_narrow=False)
    lines = b'{"id":1,"publish":{}}'
    assert framer(lines) == text_frame(lines), "below the least size"
    long = b"\n".join([lines] * 100)
    frame = framer(long)
    assert frame[0] == 0xC1, "final, text, compressed"
    assert frame[1] == len(frame) - 2 <= 125
    assert inflated(frame[2:], len(long)) == long
    noise = bytes(range(256))
    assert framer(noise) == text_frame(noise), "it would be longer"


def test_protobuf_is_compressed_as_messages() -> None:
    framer = Deflater(SMALL, BINARY_DATA, encode_messages, is_narrow=True)
    lines = b"\n".join([json.dumps({"id": 7, "rpc": {"data": "x" * 100}}).encode()] * 9)
    frame = framer(lines)
    assert frame[0] == 0xC2
    assert inflated(frame[2:], 10_000) == encode_messages(lines)


def test_what_is_very_large_goes_out_as_it_is() -> None:
    framer = Deflater(SMALL, TEXT, bytes, is_narrow=False)
    assert framer(b"x" * (COMPRESSED_BYTES_MAX + 1))[0] == 0x81
    assert framer(b"x" * COMPRESSED_BYTES_MAX)[0] == 0xC1


# ---- frames of clients


class Taken:
    """What aiohttp's reader passes on."""

    def __init__(self) -> None:
        self.frames = _Frames()
        self.reader = WebSocketReader(self.frames, 2**20, compress=False, decode_text=False)
        self.marks = Marks()

    def feed(self, data: bytes) -> None:
        self.reader.feed_data(self.marks.take(data))

    def messages(self) -> list[tuple[WSMsgType, bytes, bool]]:
        """Each with whether it was compressed."""
        found = []
        while self.frames.waiting:
            kind, data, _ = self.frames.take()
            is_data = kind in (WSMsgType.TEXT, WSMsgType.BINARY)
            found.append((kind, bytes(data), is_data and self.marks.next()))
        return found


def marked(frame: bytes) -> bytes:
    return bytes([frame[0] | 0x40]) + frame[1:]


SIZES: Final = st.one_of(st.integers(0, 130), st.sampled_from([65_535, 65_536, 70_000]))
MESSAGES: Final = st.lists(
    st.tuples(
        st.sampled_from([TEXT, BINARY_DATA]),
        st.lists(SIZES, min_size=1, max_size=3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=5,
)


@given(MESSAGES, st.lists(st.integers(1, 70_000), max_size=12), st.integers(1, 20))
async def test_each_message_is_known_for_what_it_is_however_its_bytes_come(
    messages: list[tuple[int, list[int], bool, bool]], cuts: list[int], step: int
) -> None:
    stream, wanted = b"", []
    for opcode, sizes, is_packed, has_ping in messages:
        parts = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
        for index, part in enumerate(parts):
            frame = masked(opcode if index == 0 else 0, part, final=index == len(parts) - 1)
            stream += marked(frame) if is_packed and index == 0 else frame
            if has_ping and index < len(parts) - 1:
                stream += masked(PING, b"")
                wanted.append((WSMsgType.PING, b"", False))
        kind = WSMsgType.TEXT if opcode == TEXT else WSMsgType.BINARY
        wanted.append((kind, b"".join(parts), is_packed))
    taken, found = Taken(), []
    for cut in cuts:
        taken.feed(stream[:cut])
        stream = stream[cut:]
    for start in range(0, min(len(stream), 200), step):
        taken.feed(stream[start : min(start + step, 200)])
    taken.feed(stream[200:])
    assert taken.frames.exception() is None
    found += taken.messages()
    assert found == wanted


MISPLACED: Final = {
    "ping": marked(masked(PING, b"x")),
    "last part": masked(TEXT, b"a", final=False) + marked(masked(0, b"b")),
    "both parts": marked(masked(TEXT, b"a", final=False)) + marked(masked(0, b"b")),
    "second bit": bytes([masked(TEXT, b"a")[0] | 0x20]) + masked(TEXT, b"a")[1:],
    "third bit": bytes([masked(TEXT, b"a")[0] | 0x50]) + masked(TEXT, b"a")[1:],
}


@pytest.mark.parametrize("frames", MISPLACED.values(), ids=MISPLACED)
async def test_a_mark_in_another_place_is_refused(frames: bytes) -> None:
    taken = Taken()
    taken.feed(frames)
    error = taken.frames.exception()
    assert error is not None
    assert getattr(error, "code", None) == 1002
