"""Reads the headers of a client's frames (RFC 6455 §5.2), and sees that each says it is masked."""

from __future__ import annotations

from typing import Final

__all__ = ["HEADER_BYTES_MAX", "Masks", "header_size", "payload_size"]

HEADER_BYTES_MAX: Final = 14
# Bytes of a header whose frame has less than 126 bytes.
_SHORT_HEADER: Final = 6
_SHORT_MAX: Final = 125
_MASKED: Final = 0x80


def header_size(header: bytes) -> int:
    """Bytes of the whole header; more than `header` has: more must come."""
    if len(header) < 2:
        return 2
    length, is_masked = header[1] & 0x7F, header[1] & _MASKED
    return 2 + {126: 2, 127: 8}.get(length, 0) + (4 if is_masked else 0)


def payload_size(header: bytes) -> int:
    """Bytes behind the header, which must be whole."""
    length = header[1] & 0x7F
    if length <= _SHORT_MAX:
        return length
    return int.from_bytes(header[2 : 4 if length == 126 else 10], "big")


class Masks:
    """Follows the frames of one client. aiohttp's reader takes those without a mask as well."""

    __slots__ = ("_header", "_is_broken", "_skipped")

    def __init__(self) -> None:
        # The part of a header that has come, or bytes of a frame that are still to come.
        self._header = b""
        self._skipped = 0
        self._is_broken = False

    def masked(self, data: bytes) -> bytes:
        """`data` up to the first frame without a mask. Nothing follows such a frame: what comes
        later is cut off as well.
        """
        # Most of what comes is one short frame.
        size = len(data) - _SHORT_HEADER
        if (
            0 <= size <= _SHORT_MAX
            and data[1] == _MASKED | size
            and not (self._skipped or self._header or self._is_broken)
        ):
            return data
        if self._is_broken:
            return b""
        return data[: self._end_of_masked(data)]

    def _end_of_masked(self, data: bytes) -> int:
        # There may be more than a thousand frames in what is read at a time.
        had = len(self._header)
        whole = self._header + data if had else data
        place, end = self._skipped, len(whole)
        while place + 1 < end:
            length = whole[place + 1] - _MASKED
            if length < 0:
                self._is_broken = True
                return max(0, place - had)
            if length <= _SHORT_MAX:
                place += _SHORT_HEADER + length
                continue
            begins = place + (4 if length == 126 else 10)
            if begins > end:
                break
            place = begins + 4 + int.from_bytes(whole[place + 2 : begins], "big")
        self._header, self._skipped = whole[place:], max(0, place - end)
        return len(data)
