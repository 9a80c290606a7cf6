"""The owner of the node's lease: reports the node's figures, and acts when the lease is lost."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import Protocol

from roomcast.delivery.canary import CanaryEars
from roomcast.delivery.hub import Hub
from roomcast.delivery.queue_state import QueueState
from roomcast.fleet.lease_record import Lease
from roomcast.presence.book import PresenceBook

__all__ = ["ItsLease", "OwnNumbers", "QueueAddress", "Users"]


class Users(Protocol):
    """The roster."""

    @property
    def users(self) -> int: ...


class QueueAddress(Protocol):
    """The address of a node's queue; None = it has none."""

    @property
    def queue_url(self) -> str | None: ...

    @property
    def subscription_arn(self) -> str | None: ...


class OwnNumbers:
    """A node's own row, as it would be written now."""

    def __init__(self, presence: PresenceBook, connections: Sized, hub: Hub, roster: Users) -> None:
        self._presence = presence
        self._connections = connections
        self._hub = hub
        self._roster = roster

    @property
    def lease(self) -> str:
        """The id of its present lease."""
        return self._presence.node

    def numbers(self, held: Lease) -> Lease:
        """Its lease with the present figures."""
        return replace(
            held,
            connections=len(self._connections),
            channels=len(self._hub),
            users=self._roster.users,
        )


class ItsLease:
    """The owner of a LeaseKeeper's lease: a node over AWS."""

    def __init__(
        self,
        numbers: OwnNumbers,
        queue: QueueAddress,
        queue_state: QueueState,
        ears: CanaryEars,
        presence: PresenceBook,
    ) -> None:
        self._numbers = numbers
        self._queue = queue
        self._queue_state = queue_state
        self._ears = ears
        self._presence = presence

    def report(self, held: Lease) -> Lease:
        """Complete the lease, at each heartbeat."""
        return replace(
            self._numbers.numbers(held),
            queue_url=self._queue.queue_url or "",
            subscription_arn=self._queue.subscription_arn or "",
            canary=self._ears.newest,
            lag_ms=self._queue_state.lag_ms,
            skew_ms=self._queue_state.skew_ms,
        )

    def lost(self, next_lease: Lease) -> None:
        """Move presence to the next lease, and have the queue of the lost one replaced."""
        self._presence.move(next_lease.node)
        if not next_lease.queue:
            self._queue_state.rebuild_next()
