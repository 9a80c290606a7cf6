"""The port of presence: the `presence` table, with the members of channels by node."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from roomcast.ports import Rejected
from roomcast.wire.publication import ClientInfo

__all__ = ["Member", "Presence", "TooManyMembers"]


class TooManyMembers(Rejected):
    """A channel has more members than one answer may list."""


@dataclass(frozen=True, slots=True)
class Member:
    """One connection in a channel, and the node it is on.

    For events, which are made of written entries: since when it is there (ms since 1970, 0 = it is
    not known); and whether it is written again, after an earlier lease.
    """

    node: str
    info: ClientInfo
    since_ms: int = 0
    again: bool = False


class Presence(Protocol):
    """The members of channels over all nodes. Entries belong to their node's lease.

    A call of `add` or `remove` that was given up may take effect late. It then changes no entry
    that a later call of this node has written.
    """

    async def add(self, channel: str, member: Member) -> None:
        """Write an entry. It replaces an earlier one of the same (node, client). Idempotent."""

    async def remove(self, channel: str, member: Member) -> None:
        """Remove an entry, and what `keep_out` left. Idempotent."""

    async def moved(self, channel: str, member: Member) -> None:
        """The client has an entry under another lease: that this one is removed tells nobody that
        it left. Nothing happens where there is no entry, or no event of it. Idempotent.
        """

    async def keep_out(self, channel: str, member: Member) -> None:
        """Remove an entry of which a write may still arrive, so that it then changes nothing.

        What keeps it out is stored until `remove`. Nobody is told of it. Idempotent.
        """

    def abandon(self, channel: str, member: Member) -> None:
        """Nobody will remove this entry, until `clear` does.

        From now on, `channels` of its node lists all channels in which that node has entries, until
        they are cleared; and nothing of this entry is remembered here.
        """

    async def members(self, channel: str) -> Sequence[Member]:
        """Every stored entry, in no particular order.

        Entries of dead nodes are included: the caller filters by leases.

        Raises TooManyMembers beyond the adapter's bounds on entries and on bytes that are read.
        """

    async def channels(self, node: str) -> Sequence[str]:
        """Channels in which `node` may have entries.

        If there are many, it returns some of them: call it again after `clear`.
        """

    async def entries(self, node: str, channel: str) -> Sequence[ClientInfo]:
        """Entries of `node` in `channel`. A damaged one has only the client's id.

        If there are many, it returns some of them.
        """

    async def clear(self, node: str, channel: str, moved: Collection[str] = ()) -> bool:
        """Remove the entries that `entries` returns. `moved`: the clients among them that have an
        entry under another lease.

        It is for the clean-up after a dead node.

        True = those were all, and `channels` of `node` does not list this channel any more.
        Idempotent.
        """
