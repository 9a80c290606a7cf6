"""The kinds of events that back ends are told, and how an item of a table says which are wanted.

The Lambda shares this module, so it needs only the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

from roomcast.frozen import frozen
from roomcast.wire.names import RESERVED_PREFIX

__all__ = [
    "CHANNEL_KINDS",
    "CONNECTION_KINDS",
    "EVENTS_ATTRIBUTE",
    "MOVED_ATTRIBUTE",
    "OCCUPANCY_KINDS",
    "PUBLISHED",
    "MalformedMark",
    "Mark",
    "connections_of",
    "has_entries",
    "is_of_connections",
]

_ENTERED: Final = ("joined", "subscribed")
_LEFT: Final = ("left", "unsubscribed")
OCCUPANCY_KINDS: Final = ("occupied", "vacated")
PUBLISHED: Final = "published"
# What a namespace may want, and what the connections of a deployment may.
CHANNEL_KINDS: Final = (*_ENTERED, *_LEFT, *OCCUPANCY_KINDS, PUBLISHED)
CONNECTION_KINDS: Final = ("connected", "disconnected")

# The attribute of items of which events are made. The Lambda gets records of no others. Nodes and
# Lambdas of releases without it pass over it.
EVENTS_ATTRIBUTE: Final = "events"
# On an entry whose client has another one by now: its removal is nobody's leaving.
MOVED_ATTRIBUTE: Final = "moved"
# The pseudo channels with an entry a connection, one channel a node. Nobody can name them, and no
# namespace has them.
_CONNECTIONS: Final = f"{RESERVED_PREFIX}connections:"


class MalformedMark(ValueError):
    """An attribute that no node wrote."""


@frozen
class Mark:
    """What the attribute says: the `kinds` that are wanted; since when (ms since 1970) the client
    is there, 0 = it does not say; and whether the entry was written `again`, under another lease.
    """

    kinds: tuple[str, ...]
    since_ms: int = 0
    again: bool = False

    def text(self) -> str:
        said: dict[str, Any] = {"kinds": list(self.kinds)}
        if self.since_ms:
            said["since"] = self.since_ms
        if self.again:
            said["again"] = True
        return json.dumps(said, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Raises MalformedMark. Kinds of later releases are left out."""
        try:
            said = json.loads(text)
            kinds, since_ms = said["kinds"], said.get("since", 0)
            known = (*CHANNEL_KINDS, *CONNECTION_KINDS)
            return cls(
                tuple(kind for kind in known if kind in kinds),
                int(since_ms),
                said.get("again") is True,
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise MalformedMark("not what a node wrote") from error

    def entered(self) -> tuple[str, ...]:
        """The events when an entry appears."""
        return tuple(kind for kind in (*_ENTERED, "connected") if kind in self.kinds)

    def left(self) -> tuple[str, ...]:
        """The events when an entry is gone."""
        return tuple(kind for kind in (*_LEFT, "disconnected") if kind in self.kinds)

    def occupancy(self) -> tuple[str, ...]:
        """Those of the channel as a whole."""
        return tuple(kind for kind in OCCUPANCY_KINDS if kind in self.kinds)


def has_entries(kinds: Collection[str]) -> bool:
    """Whether these events need to know who is in the channel."""
    return any(kind != PUBLISHED for kind in kinds)


def connections_of(node: str) -> str:
    """The pseudo channel with an entry for each connection of a node."""
    return f"{_CONNECTIONS}{node}"


def is_of_connections(channel: str) -> bool:
    """Whether that is what `channel` is."""
    return channel.startswith(_CONNECTIONS)
