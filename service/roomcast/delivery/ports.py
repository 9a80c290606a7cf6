"""The ports of delivery: the topic, this instance's queue, and the sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from roomcast.ports import PortError

__all__ = [
    "CatchUpRequest",
    "Framer",
    "Gone",
    "InstanceQueue",
    "Message",
    "NodeQueue",
    "NodeTopics",
    "QueuePost",
    "QueueRebuilder",
    "ShardSubscriptions",
    "ShardTopics",
    "Sink",
    "Topic",
]


class Gone(PortError):
    """The queue does not exist any more."""


# Turns lines of JSON, joined by line breaks, into one frame of the transport, in the encoding that
# its clients asked for. The same frame goes to many sinks.
Framer = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the queue. `receipt` is needed to delete it.

    `sent_at_ms`: when the queue got it, by the clock of the queue; 0 = not known.
    """

    body: str
    receipt: str
    sent_at_ms: int = 0


class InstanceQueue(Protocol):
    """This instance's own queue and its subscription to the topic.

    Delivery is at least once, in any order.
    """

    async def open(self, name: str) -> None:
        """Create the queue (policy and tags in the create call) and subscribe it.

        Raises Rejected, Throttled, UnknownOutcome.
        """

    async def receive(self) -> Sequence[Message]:
        """Long poll: up to 10 messages, empty after about 20 s.

        Raises Gone, Throttled, UnknownOutcome, Rejected.
        """

    async def delete(self, receipts: Sequence[str]) -> None:
        """Acknowledge any number of messages, in batches of 10.

        Raises Gone, Throttled, UnknownOutcome, Rejected when some may not be deleted: they come
        again. A message that is already deleted counts as success.
        """

    async def close(self) -> None:
        """Unsubscribe, then delete the queue. Idempotent: what is already gone is no error.

        Raises Rejected when trying again is no use, and otherwise another PortError.
        """

    def abandon(self) -> None:
        """Forget the queue and its subscription, for another one: they are left to the reaper."""


class Topic(Protocol):
    """The SNS topic that every instance's queue is subscribed to: the base topic."""

    async def publish(self, body: str) -> None:
        """Send a message of up to ENVELOPE_BYTES_MAX.

        Raises Throttled, UnknownOutcome, Rejected.
        """


class ShardSubscriptions(Protocol):
    """The subscriptions of this instance's queue to topic shards.

    They end with the queue: `InstanceQueue.close` ends them as well.
    """

    async def subscribe(self, shard: int) -> None:
        """Subscribe the queue to the topic of `shard`. Idempotent: it may be done again, and then
        brings back a subscription that was lost.

        Raises Gone, Rejected, Throttled, UnknownOutcome.
        """

    async def unsubscribe(self, shard: int) -> None:
        """End that subscription. Idempotent. Raises Rejected, Throttled, UnknownOutcome."""


class ShardTopics(Protocol):
    """The topics of the topic shards."""

    async def publish_to(self, shard: int, body: str) -> None:
        """Send a message to the topic of `shard`, as `Topic.publish` does to the base topic."""


class QueuePost(Protocol):
    """The way into another node's queue."""

    async def post(self, queue: str, body: str) -> None:
        """Put a message into the queue with this name.

        Also when this node has given its own queue back. Raises Gone, also before it had one,
        Rejected, Throttled, UnknownOutcome.
        """


class NodeQueue(InstanceQueue, ShardSubscriptions, QueuePost, Protocol):
    """The queue, with all of its subscriptions, and the way into others."""


class NodeTopics(Topic, ShardTopics, Protocol):
    """The base topic, and those of the topic shards."""


class CatchUpRequest(Protocol):
    """Takes requests to look at open channels' tails, when messages may be lost."""

    def request(self, shard: int | None = None) -> None:
        """Look at the channels of a topic shard; None = at all. Returns at once."""


class QueueRebuilder(Protocol):
    """Takes requests to replace the queue, when messages are missing."""

    def rebuild_next(self) -> None:
        """Returns at once."""


class Sink(Protocol):
    """One connection as the hub sees it."""

    @property
    def framer(self) -> Framer:
        """Makes its frames. All sinks of one encoding share it, and a sink always keeps it."""

    def send(self, frame: bytes) -> None:
        """Queue one whole frame, made by its framer.

        Never blocks and never raises. A slow peer is cut off.
        """
