"""Signals of emulation: a client's commands that reached another node than its own, and the answer.

Both go from one node to one other, through its queue. Commands are in Base64, since those in
Protobuf are no text.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from roomcast.delivery.envelope import Signal
from roomcast.wire.channels import RESERVED_PREFIX
from roomcast.wire.shapes import OBJECT, TEXTS, checked, text

__all__ = [
    "EMULATION_KINDS",
    "FRAMES_BYTES_MAX",
    "SESSION_CHARS_MAX",
    "MalformedEmulationSignal",
    "Outcome",
    "Posted",
    "answer_of",
    "answer_signal",
    "posted_of",
    "posted_signal",
]

# Bytes of commands in one signal. In Base64 they fit an envelope of 240 KiB.
FRAMES_BYTES_MAX: Final = 160 * 1024
SESSION_CHARS_MAX: Final = 64

EMULATION_KINDS: Final = frozenset({"commands", "commands_taken"})
_CHANNEL: Final = RESERVED_PREFIX + "emulation"
_SESSION: Final = text(SESSION_CHARS_MAX)
_ID: Final = text(SESSION_CHARS_MAX)


class Outcome(Enum):
    """What became of a client's commands.

    TAKEN: they are carried out. UNKNOWN: nobody has the session, or knows its node. BUSY: too many
    wait. LOST: perhaps taken.
    """

    TAKEN = "taken"
    UNKNOWN = "unknown"
    BUSY = "busy"
    LOST = "lost"


class MalformedEmulationSignal(ValueError):
    """A signal of these kinds with a malformed body."""


@dataclass(frozen=True, slots=True)
class Posted:
    """Frames of commands, in order, for the client with this `session`."""

    session: str
    frames: tuple[bytes, ...]


def posted_signal(node: str, signal_id: str, posted: Posted) -> Signal:
    """What `node` sends on. The answer names `signal_id`."""
    frames = [b64encode(frame).decode() for frame in posted.frames]
    body = {"session": posted.session, "frames": frames}
    return Signal("commands", signal_id, node, _CHANNEL, body)


def posted_of(signal: Signal) -> Posted:
    """Raises MalformedEmulationSignal."""
    body = checked(signal.body, "the body", OBJECT, MalformedEmulationSignal)
    session, frames = body.get("session"), body.get("frames")
    if not (_SESSION.fits(session) and TEXTS.fits(frames)):
        raise MalformedEmulationSignal("without session or frames")
    return Posted(session, tuple(_decoded(frames)))


def answer_signal(node: str, signal_id: str, asked: str, outcome: Outcome) -> Signal:
    """The answer of `node` to the signal with the id `asked`."""
    body = {"commands": asked, "outcome": outcome.value}
    return Signal("commands_taken", signal_id, node, _CHANNEL, body)


def answer_of(signal: Signal) -> tuple[str, Outcome]:
    """The id of the answered signal, and the answer. Raises MalformedEmulationSignal."""
    body = checked(signal.body, "the body", OBJECT, MalformedEmulationSignal)
    asked, outcome = body.get("commands"), body.get("outcome")
    if not _ID.fits(asked):
        raise MalformedEmulationSignal("an answer to nothing")
    try:
        return asked, Outcome(outcome)
    except ValueError as error:
        raise MalformedEmulationSignal("an answer that says nothing") from error


def _decoded(frames: Sequence[str]) -> list[bytes]:
    try:
        return [b64decode(frame, validate=True) for frame in frames]
    except (binascii.Error, ValueError) as error:
        raise MalformedEmulationSignal("frames that are not in Base64") from error
