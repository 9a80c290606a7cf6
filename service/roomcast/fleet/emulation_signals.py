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
from roomcast.log.item import OFFSET_MAX
from roomcast.wire.names import RESERVED_PREFIX
from roomcast.wire.shapes import OBJECT, TEXTS, checked, text, whole

__all__ = [
    "EMULATION_KINDS",
    "FRAMES_BYTES_MAX",
    "SESSION_CHARS_MAX",
    "Answer",
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
_NUMBER: Final = whole(1, OFFSET_MAX)
_TAKEN: Final = whole(0, OFFSET_MAX)


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
    """Frames of commands, in order, for the client with this `session`.

    `number` rises from signal to signal of the node that sends them.
    """

    session: str
    frames: tuple[bytes, ...]
    number: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of frames. The first `taken` of them were taken, whatever the outcome is."""

    outcome: Outcome
    taken: int = 0


def posted_signal(node: str, signal_id: str, posted: Posted) -> Signal:
    """What `node` sends on. The answer names `signal_id`."""
    frames = [b64encode(frame).decode() for frame in posted.frames]
    body = {"session": posted.session, "frames": frames, "number": posted.number}
    return Signal("commands", signal_id, node, _CHANNEL, body)


def posted_of(signal: Signal) -> Posted:
    """Raises MalformedEmulationSignal."""
    body = checked(signal.body, "the body", OBJECT, MalformedEmulationSignal)
    session, frames, number = (body.get(name) for name in ("session", "frames", "number"))
    if not (_SESSION.fits(session) and TEXTS.fits(frames) and _NUMBER.fits(number)):
        raise MalformedEmulationSignal("without session, frames or number")
    return Posted(session, tuple(_decoded(frames)), number)


def answer_signal(node: str, signal_id: str, asked: str, answer: Answer) -> Signal:
    """The answer of `node` to the signal with the id `asked`."""
    body = {"commands": asked, "outcome": answer.outcome.value, "taken": answer.taken}
    return Signal("commands_taken", signal_id, node, _CHANNEL, body)


def answer_of(signal: Signal) -> tuple[str, Answer]:
    """The id of the answered signal, and the answer. Raises MalformedEmulationSignal."""
    body = checked(signal.body, "the body", OBJECT, MalformedEmulationSignal)
    asked, outcome, taken = (body.get(name) for name in ("commands", "outcome", "taken"))
    if not (_ID.fits(asked) and _TAKEN.fits(taken)):
        raise MalformedEmulationSignal("an answer to nothing")
    try:
        return asked, Answer(Outcome(outcome), taken)
    except ValueError as error:
        raise MalformedEmulationSignal("an answer that says nothing") from error


def _decoded(frames: Sequence[str]) -> list[bytes]:
    try:
        return [b64decode(frame, validate=True) for frame in frames]
    except (binascii.Error, ValueError) as error:
        raise MalformedEmulationSignal("frames that are not in Base64") from error
