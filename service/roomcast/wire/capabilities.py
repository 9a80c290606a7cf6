"""Capabilities: a token's rights beyond the channel's options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Capability", "Grant", "granted"]


class Capability(Enum):
    """A right in a channel. The values are the names in tokens."""

    SUBSCRIBE = "sub"
    PUBLISH = "pub"
    HISTORY = "hst"
    PRESENCE = "prs"


@dataclass(frozen=True, slots=True)
class Grant:
    """Capabilities in `channels`: names, or patterns in which "*" stands for any text, including
    none.
    """

    channels: tuple[str, ...]
    allow: frozenset[Capability]
    is_pattern: bool = False

    def covers(self, channel: str) -> bool:
        if self.is_pattern:
            return any(_fits(pattern, channel) for pattern in self.channels)
        return channel in self.channels


def granted(grants: Iterable[Grant], channel: str) -> frozenset[Capability]:
    """The capabilities of the first grant that covers `channel`. So a narrow grant before a wide
    one restricts it.
    """
    return next((grant.allow for grant in grants if grant.covers(channel)), frozenset())


def _fits(pattern: str, channel: str) -> bool:
    """Matches each part at its first place from the left. It never goes back, so no pattern is
    slow.
    """
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
