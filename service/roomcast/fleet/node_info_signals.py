"""A survey: which channels have how many clients.

All nodes answer. Here is also when enough of them have.

One node asks, through the topic, and every node answers once, through the topic as well, with no
more than fits. The answers are for the one that asked; the others pass over them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from roomcast.delivery.envelope import Signal
from roomcast.wire.channels import CHANNEL_BYTES_MAX, RESERVED_PREFIX
from roomcast.wire.shapes import FLAG, OBJECT, TEXT, checked, text, whole

__all__ = [
    "ANSWER_BYTES_MAX",
    "CHANNELS_MAX",
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

# Names and numbers in one answer: it must leave room in a signal, which may hold 128 KiB.
ANSWER_BYTES_MAX: Final = 96 * 1024
# Of a pattern: no channel has a longer name.
PATTERN_CHARS_MAX: Final = CHANNEL_BYTES_MAX
# Nodes whose answers count though nobody expected them: they began to live after the leases were
# read.
UNEXPECTED_MAX: Final = 100
# Clients of one channel on one node.
_CLIENTS_MAX: Final = 10_000_000
# Channels in one result, from all nodes together.
CHANNELS_MAX: Final = 10_000
# Of a channel besides its name: colon, comma and a number.
_ENTRY_BYTES: Final = 16

SURVEY_KINDS: Final = frozenset({"survey", "answer"})
_CHANNEL: Final = RESERVED_PREFIX + "survey"
_PATTERN: Final = text(PATTERN_CHARS_MAX)
_CLIENTS: Final = whole(1, _CLIENTS_MAX)


class MalformedAnswer(ValueError):
    """A signal of a survey's kind that is none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one node has: clients by channel.

    `lease`: under which the node lives. `whole`: nothing was left out.
    """

    lease: str
    channels: Mapping[str, int]
    whole: bool = True


def survey_signal(node: str, signal_id: str, pattern: str) -> Signal:
    """`node` asks; its answers name `signal_id`. `pattern`: see `fits`."""
    return Signal("survey", signal_id, node, _CHANNEL, {"pattern": pattern})


def pattern_of(signal: Signal) -> str:
    """Which channels a survey asks for. Raises MalformedAnswer."""
    pattern = signal.body.get("pattern") if OBJECT.fits(signal.body) else None
    if not _PATTERN.fits(pattern):
        raise MalformedAnswer("a survey without a pattern")
    return pattern


def answer_signal(answer: Answer, node: str, signal_id: str, survey_id: str) -> Signal:
    """What `node` has to say to the survey `survey_id`."""
    body = {
        "survey": survey_id,
        "lease": answer.lease,
        "channels": dict(answer.channels),
        "whole": answer.whole,
    }
    return Signal("answer", signal_id, node, _CHANNEL, body)


def answer_of(signal: Signal) -> tuple[str, Answer]:
    """The id of the survey that is answered, and what is said. Raises MalformedAnswer."""
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
    """Whether `channel` fits; "" fits every channel.

    `*` stands for any text, `?` for one character, `[ab]` for one of several.
    """
    return not pattern or fnmatchcase(channel, pattern)


def bounded(channels: Iterable[tuple[str, int]]) -> tuple[dict[str, int], bool]:
    """The first of `channels` that one answer has room for; False = not all of them."""
    kept: dict[str, int] = {}
    size = 0
    for channel, clients in channels:
        # A name may hold what JSON escapes.
        size += len(json.dumps(channel)) + _ENTRY_BYTES
        if size > ANSWER_BYTES_MAX:
            return kept, False
        kept[channel] = clients
    return kept, True


@dataclass(slots=True)
class Answers:
    """The answers to one survey. `expected`: the leases of those who should answer."""

    expected: frozenset[str]
    _answered: set[str] = field(default_factory=set)
    _channels: Counter[str] = field(default_factory=Counter)
    _cut: bool = False

    def add(self, answer: Answer) -> None:
        """Of each node, the first answer counts."""
        if (
            answer.lease not in self.expected
            and len(self._answered - self.expected) >= UNEXPECTED_MAX
        ):
            return
        if answer.lease not in self._answered:
            self._answered.add(answer.lease)
            self._cut = self._cut or not answer.whole
            self._channels.update(answer.channels)

    @property
    def missing(self) -> Collection[str]:
        """Who has not answered yet."""
        return self.expected - self._answered

    def result(self) -> tuple[dict[str, int], bool]:
        """Clients by channel; False = there may be more, of either."""
        most = self._channels.most_common(CHANNELS_MAX)
        return dict(most), not self.missing and not self._cut and len(most) == len(self._channels)
