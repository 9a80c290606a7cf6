"""The topic, this instance's queue, and the sockets, as delivery needs them."""

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
    "QueueRebuilder",
    "Sink",
    "Topic",
]


class Gone(PortError):
    """The queue does not exist any more."""


# Turns lines of JSON, joined by line breaks, into one frame of the transport, in the encoding that its clients asked
# for: once for all the sinks that it goes to.
Framer = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the queue; `receipt` is needed to delete it.

    `sent_at_ms`: when the queue got it, by the clock of the queue; 0 = not known.
    """

    body: str
    receipt: str
    sent_at_ms: int = 0


class InstanceQueue(Protocol):
    """This instance's own queue and its subscription to the topic. Delivery is at least once, in any order."""

    async def open(self, name: str) -> None:
        """Create the queue (policy and tags in the create call) and subscribe it. Raises Refused, Throttled, UnknownOutcome."""

    async def receive(self) -> Sequence[Message]:
        """Long poll: up to 10 messages, empty after about 20 s. Raises Gone, Throttled, UnknownOutcome, Refused."""

    async def delete(self, receipts: Sequence[str]) -> None:
        """Acknowledge any number of messages, in batches of 10.

        Raises Gone, Throttled, UnknownOutcome, Refused when some may not be: they come again. What is gone is success.
        """

    async def close(self) -> None:
        """Unsubscribe, then delete the queue. Idempotent; what is gone already is success.

        Raises Refused when trying again is no use, and otherwise another PortError.
        """

    def abandon(self) -> None:
        """Forget the queue and its subscription, for another one: they are left to the reaper."""


class Topic(Protocol):
    """The SNS topic that every instance's queue is subscribed to."""

    async def publish(self, body: str) -> None:
        """One message of at most ENVELOPE_BYTES_MAX. Raises Throttled, UnknownOutcome, Refused."""


class CatchUpRequest(Protocol):
    """Whoever may not have heard everything asks for a look at the ends of all open channels."""

    def request(self) -> None:
        """Returns at once."""


class QueueRebuilder(Protocol):
    """Whoever finds that the queue does not bring what it should asks for another one."""

    def rebuild_next(self) -> None:
        """Returns at once."""


class Sink(Protocol):
    """One connection as the hub sees it."""

    @property
    def framer(self) -> Framer:
        """Makes its frames: the same object for all sinks of one encoding, always the same for one sink."""

    def send(self, frame: bytes) -> None:
        """Queue one whole frame, made by its framer. Never blocks, never raises; a slow peer is cut off."""
