"""What a token lets its bearer do beyond what the channel's options let everybody do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Capability", "Grant", "granted"]


class Capability(Enum):
    """The names are those of tokens."""

    SUBSCRIBE = "sub"
    PUBLISH = "pub"
    HISTORY = "hst"
    PRESENCE = "prs"


@dataclass(frozen=True, slots=True)
class Grant:
    """What is allowed in `channels`: names, or patterns in which "*" stands for any text, also none."""

    channels: tuple[str, ...]
    allow: frozenset[Capability]
    is_pattern: bool = False

    def covers(self, channel: str) -> bool:
        if self.is_pattern:
            return any(_fits(pattern, channel) for pattern in self.channels)
        return channel in self.channels


def granted(grants: Iterable[Grant], channel: str) -> frozenset[Capability]:
    """What the first grant that covers `channel` allows there: a narrow one before a wide one takes away from it."""
    return next((grant.allow for grant in grants if grant.covers(channel)), frozenset())


def _fits(pattern: str, channel: str) -> bool:
    """Each part at its first place from the left; it never goes back, so no pattern is slow."""
    first, *others = pattern.split("*")
    if not others:
        return channel == pattern
    *inner, last = others
    place = len(first)
    if not channel.startswith(first):
        return False
    for part in inner:
        place = channel.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return channel.endswith(last) and place <= len(channel) - len(last)
