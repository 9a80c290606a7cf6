"""Computes the difference between two payloads, in Fossil's delta format.

The format (fossil-scm.org, "The Fossil Delta Format"): the size of the target and a line break;
then commands; then a checksum of the target and `;`. `N@P,` copies N bytes from P of the source.
`N:` inserts the N bytes behind it. Numbers are in base 64, with digits of their own.

Where both payloads are UTF-8, so is the difference: no copy begins or ends within a character.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

__all__ = ["SEARCHED_BYTES_MAX", "Search", "delta"]

# Bytes that are searched for copies, between the common head and the common tail of two payloads. A
# search takes up to 0.5 µs a byte, and blocks the event loop.
SEARCHED_BYTES_MAX: Final = 4 * 1024
# The shortest copy. The command for a shorter one is hardly shorter than its bytes.
_BLOCK_BYTES: Final = 16
# What a difference costs besides its search, in bytes that are searched.
_BESIDES_BYTES: Final = 64
_DIGITS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"


class Search:
    """How many bytes may still be searched for copies. `left` may end below 0."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


def delta(source: bytes, target: bytes, search: Search, *, is_text: bool = True) -> bytes | None:
    """The difference that turns `source` into `target`. It may be longer than `target`: compare.

    `is_text`: both are UTF-8. None: nothing may be searched any more.
    """
    if search.left <= 0:
        return None
    search.left -= _BESIDES_BYTES
    out = [_number(len(target)), b"\n"]
    done = 0
    for copy in _copies(source, target, search):
        at, start, end = _whole_characters(target, *copy) if is_text else copy
        # The command for a copy must not be longer than the bytes that it saves.
        if start < done or end - start < _BLOCK_BYTES:
            continue
        _insert(out, target[done:start])
        out += [_number(end - start), b"@", _number(at), b","]
        done = end
    _insert(out, target[done:])
    out += [_number(_checksum(target)), b";"]
    return b"".join(out)


def _insert(out: list[bytes], literal: bytes) -> None:
    if literal:
        out += [_number(len(literal)), b":", literal]


def _copies(source: bytes, target: bytes, search: Search) -> list[tuple[int, int, int]]:
    """The parts of `target` that are in `source`: (place in source, start and end in target).

    Ascending, not overlapping.
    """
    shorter = min(len(source), len(target))
    head = _common(source, 0, target, 0, shorter)
    tail = _common_tail(source, target, shorter - head)
    copies = [(0, 0, head)]
    if len(target) - head - tail <= SEARCHED_BYTES_MAX:
        indexed = min(len(source), SEARCHED_BYTES_MAX)
        search.left -= len(target) - head - tail + indexed // _BLOCK_BYTES
        copies += _found(source, target, head, len(target) - tail)
    copies.append((len(source) - tail, len(target) - tail, len(target)))
    return copies


def _found(source: bytes, target: bytes, start: int, end: int) -> list[tuple[int, int, int]]:
    """Copies within `target[start:end]`, from the last SEARCHED_BYTES_MAX of `source`."""
    if end - start < _BLOCK_BYTES:
        return []
    blocks: dict[bytes, int] = {}
    oldest = max(0, len(source) - SEARCHED_BYTES_MAX)
    for block in range(oldest, len(source) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
        blocks.setdefault(source[block : block + _BLOCK_BYTES], block)
    copies = []
    done = here = start
    while here + _BLOCK_BYTES <= end:
        at = blocks.get(target[here : here + _BLOCK_BYTES])
        if at is None:
            here += 1
            continue
        # The block lies somewhere in the common part. Go back to the beginning of that, and on to
        # its end.
        while here > done and at > 0 and source[at - 1] == target[here - 1]:
            here, at = here - 1, at - 1
        length = _common(source, at, target, here, min(len(source) - at, end - here))
        copies.append((at, here, here + length))
        done = here = here + length
    return copies


def _common(source: bytes, at: int, target: bytes, here: int, most: int) -> int:
    """How many bytes from `at` of `source` and from `here` of `target` are equal, up to `most`."""
    return _longest(
        most, lambda low, high: source[at + low : at + high] == target[here + low : here + high]
    )


def _common_tail(source: bytes, target: bytes, most: int) -> int:
    """How many bytes at the ends of both are equal, up to `most`."""
    ends = len(source), len(target)
    return _longest(
        most,
        lambda low, high: (
            source[ends[0] - high : ends[0] - low] == target[ends[1] - high : ends[1] - low]
        ),
    )


def _longest(most: int, alike: Callable[[int, int], bool]) -> int:
    """The greatest distance, up to `most`, within which all bytes are equal.

    `alike(low, high)` compares the bytes between two distances. The search halves the rest until
    one byte is left.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if alike(low, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _whole_characters(target: bytes, at: int, start: int, end: int) -> tuple[int, int, int]:
    while start < end and _continues(target, start):
        start, at = start + 1, at + 1
    while end > start and _continues(target, end):
        end -= 1
    return at, start, end


def _continues(text: bytes, at: int) -> bool:
    """Whether the byte at `at` is inside a character (RFC 3629 §3)."""
    return at < len(text) and text[at] & 0xC0 == 0x80


def _number(value: int) -> bytes:
    digits = bytearray()
    while True:
        value, digit = divmod(value, 64)
        digits.append(_DIGITS[digit])
        if not value:
            return bytes(reversed(digits))


def _checksum(target: bytes) -> int:
    """The sum of the words of 32 bits of `target`, the most significant byte first, modulo 2³²."""
    padded = target + bytes(-len(target) % 4)
    words: tuple[int, ...] = struct.unpack(f">{len(padded) // 4}I", padded)
    return sum(words) & 0xFFFFFFFF
