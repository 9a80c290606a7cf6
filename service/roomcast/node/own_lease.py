"""This node as its lease tells of it, and what it does when the lease is lost."""

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
    """Where the queue of a node is; None = there is none."""

    @property
    def queue_url(self) -> str | None: ...

    @property
    def subscription_arn(self) -> str | None: ...


class OwnNumbers:
    """What a node's own row would say if it were written now."""

    def __init__(self, presence: PresenceBook, connections: Sized, hub: Hub, roster: Users) -> None:
        self._presence = presence
        self._connections = connections
        self._hub = hub
        self._roster = roster

    @property
    def lease(self) -> str:
        """The id of its lease as it is now."""
        return self._presence.node

    def numbers(self, held: Lease) -> Lease:
        """Its lease with the numbers that are true now."""
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
        """Asked at each heartbeat."""
        return replace(
            self._numbers.numbers(held),
            queue_url=self._queue.queue_url or "",
            subscription_arn=self._queue.subscription_arn or "",
            canary=self._ears.newest,
            lag_ms=self._queue_state.lag_ms,
            skew_ms=self._queue_state.skew_ms,
        )

    def lost(self, next_lease: Lease) -> None:
        """Presence moves to the next lease, and the queue of the lost one is replaced."""
        self._presence.move(next_lease.node)
        if not next_lease.queue:
            self._queue_state.rebuild_next()
