"""The `presence` table as presence needs it: who is in a channel, by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from roomcast.ports import Refused
from roomcast.wire.publication import ClientInfo

__all__ = ["Member", "Presence", "TooManyMembers"]


class TooManyMembers(Refused):
    """A channel has more members than are told of at once."""


@dataclass(frozen=True, slots=True)
class Member:
    """One connection in a channel, and the node it is on."""

    node: str
    info: ClientInfo


class Presence(Protocol):
    """Who is in a channel, over all nodes. Entries belong to their node's lease."""

    async def add(self, channel: str, member: Member) -> None:
        """Idempotent; replaces an earlier entry of the same (node, client)."""

    async def remove(self, channel: str, member: Member) -> None:
        """Idempotent."""

    async def members(self, channel: str) -> Sequence[Member]:
        """Every stored entry, in no order.

        Entries of dead nodes included: the caller filters by leases.

        Raises TooManyMembers beyond the adapter's bounds on entries and on what is read.
        """

    async def channels(self, node: str) -> Sequence[str]:
        """Channels in which `node` may have entries.

        Some of them if there are many, so ask again after `clear`.
        """

    async def entries(self, node: str, channel: str) -> Sequence[ClientInfo]:
        """Entries of `node` in `channel`, those of damaged ones with the client's id alone.

        Some if there are many.
        """

    async def clear(self, node: str, channel: str) -> bool:
        """Remove the entries that `entries` gives, or would give.

        For whoever cleans up after a dead node.

        True = that were all, and `node` is not listed with this channel any more. Idempotent.
        """
