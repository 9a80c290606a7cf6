"""The port to the queues and subscriptions of all nodes, for the clean-up after dead ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from roomcast.fleet.deployment import Queue, TopicSubscription

__all__ = ["Estate"]


class Estate(Protocol):
    """The queues and subscriptions of all nodes, including those of nodes that are gone.

    Too long a list raises Rejected. It is never truncated.
    """

    async def queues(self) -> Sequence[str]:
        """The names of queues that begin with this deployment's prefix.

        A very new queue may be missing.
        """

    async def queue(self, name: str) -> Queue | None:
        """A queue's properties. None = no queue has that name."""

    async def subscriptions(self) -> Sequence[TopicSubscription]:
        """The subscriptions of all topics that can be ended: those that await confirmation are
        left out.
        """

    async def unsubscribe(self, arn: str) -> None:
        """Idempotent."""

    async def delete_queue(self, name: str) -> None:
        """Idempotent."""

    async def post(self, name: str, body: str) -> None:
        """Put a message into a queue. What becomes of it if the queue is gone is nobody's."""
