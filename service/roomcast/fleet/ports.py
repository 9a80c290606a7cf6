"""The `nodes` table as the fleet needs it: who lives, and who is to be cleaned up after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from roomcast.fleet.lease_record import Lease, Tombstone

__all__ = ["Leases"]


class Leases(Protocol):
    """The `nodes` table."""

    async def put(self, lease: Lease) -> None:
        """Write the lease, unconditionally: the node's own id is new."""

    async def heartbeat(self, lease: Lease) -> bool:
        """Replace the node's lease.

        False = it is gone or was marked `reaped`: the node must rebuild.
        """

    async def drop(self, node: str) -> None:
        """Idempotent."""

    async def all(self) -> Sequence[Lease]:
        """Every lease that was stored before the call, expired ones included, tombstones not.

        Raises Refused beyond the adapter's bound.
        """

    async def reap(self, lease: Lease, at_ms: int) -> bool:
        """Mark the lease as reaped, unless its node beat since `lease` was read.

        From then on heartbeats are refused.

        True also when it was marked before, whose time then stays. False = the node lives, or the
        lease is gone.
        """

    async def put_tombstone(self, node: str, at_ms: int) -> None:
        """Make a tombstone of a marked lease, or say that a tombstone was cleared again.

        Idempotent. A lease that is not marked stays what it is. Heartbeats of a tombstone are
        refused; `put` makes it a lease again.
        """

    async def tombstones(self) -> Sequence[Tombstone]:
        """Every tombstone. Raises Refused beyond the adapter's bound."""

    async def drop_tombstone(self, tombstone: Tombstone) -> None:
        """Idempotent. One that was cleared again since it was read stays."""
