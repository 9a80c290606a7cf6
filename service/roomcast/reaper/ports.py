"""The queues and subscriptions of all nodes, as whoever cleans up after dead ones needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from roomcast.fleet.deployment import Queue, TopicSubscription

__all__ = ["Estate"]


class Estate(Protocol):
    """The queues and subscriptions of all nodes, also of those that are gone. A list that is too long is Refused, never cut."""

    async def queues(self) -> Sequence[str]:
        """The names of queues that may be of this deployment: those that begin with its prefix. A very new one may be missing."""

    async def queue(self, name: str) -> Queue | None:
        """What is known of a queue. None = there is none of that name."""

    async def subscriptions(self) -> Sequence[TopicSubscription]:
        """Of the topic, those that can be ended: whatever waits for a confirmation is left out."""

    async def unsubscribe(self, arn: str) -> None:
        """Idempotent."""

    async def delete_queue(self, name: str) -> None:
        """Idempotent."""
