"""Surveys: signals that ask all nodes for their channels and clients, and the answers.

This module also decides when all answers are in.

One node asks through the topic. Every node answers once, also through the topic, with as many
channels as fit. The answers are for the node that asked; others ignore them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from roomcast.delivery.envelope import Signal
from roomcast.wire.names import CHANNEL_BYTES_MAX, RESERVED_PREFIX
from roomcast.wire.shapes import FLAG, OBJECT, TEXT, checked, text, whole

__all__ = [
    "ANSWER_BYTES_MAX",
    "CHANNELS_MAX",
    "COUNTED_MAX",
    "PATTERN_CHARS_MAX",
    "SURVEY_KINDS",
    "UNEXPECTED_MAX",
    "Answer",
    "Answers",
    "MalformedAnswer",
    "answer_of",
    "answer_signal",
    "bounded",
    "fits",
    "pattern_of",
    "survey_signal",
]

# Bytes of names and numbers in one answer. It must fit a signal of 128 KiB.
ANSWER_BYTES_MAX: Final = 96 * 1024
# The longest pattern: no channel has a longer name.
PATTERN_CHARS_MAX: Final = CHANNEL_BYTES_MAX
# Nodes whose answers count though they were not expected: they became live after the leases were
# read.
UNEXPECTED_MAX: Final = 100
# The most clients of one channel on one node.
_CLIENTS_MAX: Final = 10_000_000
# The most channels in one result, from all nodes together.
CHANNELS_MAX: Final = 10_000
# Channels whose clients are counted, of which the result has those with most: a hundred nodes may
# name half a million, which takes a third of a second to sort. Further ones are left out.
COUNTED_MAX: Final = 2 * CHANNELS_MAX
# Bytes of a channel besides its name: colon, comma and a number.
_ENTRY_BYTES: Final = 16

SURVEY_KINDS: Final = frozenset({"survey", "answer"})
_CHANNEL: Final = RESERVED_PREFIX + "survey"
_PATTERN: Final = text(PATTERN_CHARS_MAX)
_CLIENTS: Final = whole(1, _CLIENTS_MAX)


class MalformedAnswer(ValueError):
    """A signal of a survey's kind with a malformed body."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one node: clients by channel.

    `lease`: the node's present lease. `whole`: no channel was left out.
    """

    lease: str
    channels: Mapping[str, int]
    whole: bool = True


def survey_signal(node: str, signal_id: str, pattern: str) -> Signal:
    """A survey of `node`. Its answers name `signal_id`. `pattern`: see `fits`."""
    return Signal("survey", signal_id, node, _CHANNEL, {"pattern": pattern})


def pattern_of(signal: Signal) -> str:
    """The pattern of a survey. Raises MalformedAnswer."""
    pattern = signal.body.get("pattern") if OBJECT.fits(signal.body) else None
    if not _PATTERN.fits(pattern):
        raise MalformedAnswer("a survey without a pattern")
    return pattern


def answer_signal(answer: Answer, node: str, signal_id: str, survey_id: str) -> Signal:
    """The answer of `node` to the survey `survey_id`."""
    body = {
        "survey": survey_id,
        "lease": answer.lease,
        "channels": dict(answer.channels),
        "whole": answer.whole,
    }
    return Signal("answer", signal_id, node, _CHANNEL, body)


def answer_of(signal: Signal) -> tuple[str, Answer]:
    """The id of the answered survey, and the answer. Raises MalformedAnswer."""
    body = checked(signal.body, "the body of an answer", OBJECT, MalformedAnswer)
    survey_id, lease, channels, is_whole = (
        body.get(name) for name in ("survey", "lease", "channels", "whole")
    )
    if not (TEXT.fits(survey_id) and TEXT.fits(lease) and FLAG.fits(is_whole)):
        raise MalformedAnswer("an answer to nothing, or of nobody")
    if not OBJECT.fits(channels):
        raise MalformedAnswer("channels are not an object")
    if not all(map(_CLIENTS.fits, channels.values())):
        raise MalformedAnswer("channels are not numbers of clients")
    return survey_id, Answer(lease, channels, is_whole)


def fits(channel: str, pattern: str) -> bool:
    """Whether `channel` matches `pattern`; "" matches every channel.

    `*` stands for any text, `?` for one character, `[ab]` for one of several.
    """
    return not pattern or fnmatchcase(channel, pattern)


def bounded(channels: Iterable[tuple[str, int]]) -> tuple[dict[str, int], bool]:
    """As many of `channels` as fit one answer, from the first on. False = not all of them fit."""
    kept: dict[str, int] = {}
    size = 0
    for channel, clients in channels:
        # JSON may escape characters of a name.
        size += len(json.dumps(channel)) + _ENTRY_BYTES
        if size > ANSWER_BYTES_MAX:
            return kept, False
        kept[channel] = clients
    return kept, True


@dataclass(slots=True)
class Answers:
    """The answers to one survey. `expected`: the leases of the nodes that should answer."""

    expected: frozenset[str]
    _answered: set[str] = field(default_factory=set)
    _channels: Counter[str] = field(default_factory=Counter)
    _cut: bool = False

    def add(self, answer: Answer) -> None:
        """Add an answer. Of each node, the first one counts."""
        if (
            answer.lease not in self.expected
            and len(self._answered - self.expected) >= UNEXPECTED_MAX
        ):
            return
        if answer.lease not in self._answered:
            self._answered.add(answer.lease)
            self._cut = self._cut or not answer.whole
            self._count(answer.channels)

    def _count(self, channels: Mapping[str, int]) -> None:
        counted = self._channels
        for channel, clients in channels.items():
            if channel in counted or len(counted) < COUNTED_MAX:
                counted[channel] += clients
            else:
                self._cut = True

    @property
    def missing(self) -> Collection[str]:
        """The leases of nodes that have not answered yet."""
        return self.expected - self._answered

    def result(self) -> tuple[dict[str, int], bool]:
        """Clients by channel. False = there may be more channels, or more clients."""
        most = self._channels.most_common(CHANNELS_MAX)
        return dict(most), not self.missing and not self._cut and len(most) == len(self._channels)
