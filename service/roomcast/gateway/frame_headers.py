"""Reads the headers of a client's frames (RFC 6455 §5.2), and sees that each says it is masked."""

from __future__ import annotations

from typing import Final

__all__ = [
    "HEADER_BYTES_MAX",
    "MASKED",
    "SHORT_HEADER",
    "SHORT_MAX",
    "Masks",
    "header_size",
    "payload_size",
]

HEADER_BYTES_MAX: Final = 14
# Bytes of a header, with its mask, and at most behind it, where a byte says the length.
SHORT_HEADER: Final = 6
SHORT_MAX: Final = 125
MASKED: Final = 0x80


def header_size(header: bytes) -> int:
    """Bytes of the whole header; more than `header` has: more must come."""
    if len(header) < 2:
        return 2
    length, is_masked = header[1] & 0x7F, header[1] & MASKED
    return 2 + {126: 2, 127: 8}.get(length, 0) + (4 if is_masked else 0)


def payload_size(header: bytes) -> int:
    """Bytes behind the header, which must be whole."""
    length = header[1] & 0x7F
    if length <= SHORT_MAX:
        return length
    return int.from_bytes(header[2 : 4 if length == 126 else 10], "big")


class Masks:
    """Follows the frames of one client. aiohttp's reader takes those without a mask as well.

    `is_between`: what comes next is the beginning of a frame. One that is whole, masked and comes
    alone then changes nothing here, and need not be shown.
    """

    __slots__ = ("_header", "_is_broken", "_skipped", "is_between")

    def __init__(self) -> None:
        # The part of a header that has come, or bytes of a frame that are still to come.
        self._header = b""
        self._skipped = 0
        self._is_broken = False
        self.is_between = True

    def masked(self, data: bytes) -> bytes:
        """`data` up to the first frame without a mask. Nothing follows such a frame: what comes
        later is cut off as well.
        """
        if self._is_broken:
            return b""
        masked = data[: self._end_of_masked(data)]
        self.is_between = not (self._skipped or self._header or self._is_broken)
        return masked

    def _end_of_masked(self, data: bytes) -> int:
        # There may be more than a thousand frames in what is read at a time.
        had = len(self._header)
        whole = self._header + data if had else data
        place, end = self._skipped, len(whole)
        while place + 1 < end:
            length = whole[place + 1] - MASKED
            if length < 0:
                self._is_broken = True
                return max(0, place - had)
            if length <= SHORT_MAX:
                place += SHORT_HEADER + length
                continue
            begins = place + (4 if length == 126 else 10)
            if begins > end:
                break
            place = begins + 4 + int.from_bytes(whole[place + 2 : begins], "big")
        self._header, self._skipped = whole[place:], max(0, place - end)
        return len(data)
