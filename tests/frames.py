"""All commands of a frame at once: a connection decodes them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from roomcast.wire.commands import JSON_FRAMES, Bounds, Command, Reader
from roomcast.wire.protobuf import PROTOBUF_FRAMES

__all__ = ["BOUNDS", "decode_frame", "decode_messages", "decoded"]

# More than tests send that are not about bounds.
BOUNDS: Final = Bounds(command_bytes=1024 * 1024, subs=128)


def decoded(frame: str | bytes, reader: Reader, bounds: Bounds = BOUNDS) -> list[Command]:
    """Raises ProtocolViolation."""
    commands: Sequence[bytes] = reader.split(frame)
    return [reader.decode(command, bounds) for command in commands]


def decode_frame(frame: str | bytes) -> list[Command]:
    """Of a text frame. Raises ProtocolViolation."""
    return decoded(frame, JSON_FRAMES)


def decode_messages(frame: bytes) -> list[Command]:
    """Of a binary frame. Raises ProtocolViolation."""
    return decoded(frame, PROTOBUF_FRAMES)
