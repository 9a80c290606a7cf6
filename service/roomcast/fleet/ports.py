"""The port of the fleet: the `nodes` table, with leases and tombstones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from roomcast.fleet.lease_record import Lease, Tombstone

__all__ = ["Leases"]


class Leases(Protocol):
    """The `nodes` table."""

    async def put(self, lease: Lease) -> None:
        """Write the lease without a condition, because its id is new."""

    async def heartbeat(self, lease: Lease) -> bool:
        """Replace the node's lease.

        False = it is gone or was marked as reaped: the node must take another lease.
        """

    async def drop(self, node: str) -> None:
        """Idempotent."""

    async def all(self) -> Sequence[Lease]:
        """Every lease that was stored before the call, with expired ones, without tombstones.

        Raises Rejected beyond the adapter's bound.
        """

    async def reap(self, lease: Lease, at_ms: int) -> bool:
        """Mark the lease as reaped, unless there was a heartbeat since `lease` was read.

        From then on heartbeats are refused.

        Returns True also when it was marked before; the earlier time then stays. False = the node
        lives, or the lease is gone.
        """

    async def put_tombstone(self, node: str, at_ms: int) -> None:
        """Turn a marked lease into a tombstone, or set the time of an existing tombstone.

        Idempotent. A lease that is not marked stays as it is. A tombstone refuses heartbeats; `put`
        makes it a lease again.
        """

    async def tombstones(self) -> Sequence[Tombstone]:
        """Every tombstone. Raises Rejected when there are more than the adapter's bound."""

    async def drop_tombstone(self, tombstone: Tombstone) -> None:
        """Remove the tombstone, unless its time was set again since it was read. Idempotent."""
