"""What roomcast needs from the outside: one Protocol a capability, with the guarantees it must give.

Every method is asynchronous, bounded in time, and safe to cancel. Errors are the types below and no
others: an adapter maps its vendor's errors to them at its edge and keeps the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.core.holdings import Grave, Lease, Queue, Subscription
from service.core.idempotency import KeyItem
from service.core.lifecycle import Outlook
from service.core.log_item import Head, LogItem
from service.core.publication import ClientInfo

__all__ = [
    "BeliefEnded",
    "ChannelTable",
    "Clock",
    "Contended",
    "Estate",
    "Framer",
    "Gone",
    "Grave",
    "Holders",
    "InstanceQueue",
    "Lease",
    "Leases",
    "Machine",
    "Member",
    "Message",
    "Metric",
    "Metrics",
    "NewId",
    "Page",
    "PortError",
    "Presence",
    "Refused",
    "ScalingGroup",
    "Sink",
    "Throttled",
    "TooManyMembers",
    "Topic",
    "UnknownOutcome",
]


class PortError(Exception):
    """Base of what a port raises."""


class Throttled(PortError):
    """Known not to have happened; the same call may succeed later. Back off."""


class UnknownOutcome(PortError):
    """May or may not have happened (time-out, reset, 5xx)."""


class Refused(PortError):
    """Known not to have happened, and would not the next time: permission, validation, a missing resource."""


class TooManyMembers(Refused):
    """A channel has more members than are told of at once."""


class Contended(PortError):
    """Known not to have happened: another write of the same item was just being carried out. Look again first."""


class BeliefEnded(PortError):
    """Not sent: the tail on which this append rests is no longer to be believed (checked after signing)."""


class Gone(PortError):
    """The queue does not exist any more."""


class Clock(Protocol):
    """Time, so that tests and the simulation can own it."""

    def now_ms(self) -> int:
        """Wall clock, ms since 1970. May be skewed against other nodes by less than half of MARGIN."""

    def monotonic_s(self) -> float:
        """Seconds; never goes back; only differences mean anything."""


# Turns lines of JSON, joined by line breaks, into one frame of the transport, in the encoding that its clients asked
# for: once for all the sinks that it goes to.
Framer = Callable[[bytes], bytes]

# Fresh random text of at least 64 bits, of characters [0-9a-z].
NewId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Holders:
    """What stands in the way of a conditional write: the log item at its offset, the key items of keys that are taken.

    At least one of them. DynamoDB may name some of several reasons only.
    """

    item: LogItem | None = None
    keys: tuple[KeyItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Log items ascending by offset. `more`: the table holds further items in the direction of reading."""

    items: tuple[LogItem, ...]
    more: bool


class ChannelTable(Protocol):
    """The items of the `channels` table, and the keys of table `idempotency`. Every read is strongly consistent; malformed items raise Refused."""

    async def newest(self, channel: str) -> LogItem | Head | None:
        """The item with the greatest key: the newest log item, else the head, else None."""

    async def head(self, channel: str) -> Head | None:
        """The head item."""

    async def key(self, key: str) -> KeyItem | None:
        """The key item (see `stored_key`), expired or not."""

    async def put_item(self, item: LogItem, believed_until_ms: int) -> LogItem | None:
        """Write `item` if its key is free: None = it is written now. Otherwise the item that holds the key
        (the caller compares `batch`). One attempt, no retry inside.

        Raises BeliefEnded (the wall clock, read after signing, is past `believed_until_ms`: not sent),
        Contended, Throttled, UnknownOutcome, Refused.
        """

    async def put_keyed_item(
        self, item: LogItem, keys: Sequence[KeyItem], believed_until_ms: int
    ) -> Holders | None:
        """Write `item` and all `keys` (into table `idempotency`) if all their keys are free, or none of them:
        None = they are written now. Otherwise who holds them (the caller compares `batch`). A key item counts as
        long as it is there, expired or not. `keys`: 1 to ITEM_KEYS_MAX, all different.

        One attempt, and the same errors as `put_item`.
        """

    async def put_head(self, head: Head, expected_version: str | None) -> bool:
        """Write `head` if the stored head's version is `expected_version` (None: if there is no head).

        False = the condition failed. Raises Throttled, UnknownOutcome, Refused.
        """

    async def read_behind(self, channel: str, offset: int, items_max: int) -> Page:
        """Items whose key is > `offset`, ascending: what was appended behind an item that ends at `offset`."""

    async def read_forward(self, channel: str, from_offset: int, items_max: int) -> Page:
        """Items that cover offsets ≥ `from_offset`, ascending, beginning with the one that spans it, if any."""

    async def read_backward(self, channel: str, to_offset: int, items_max: int) -> Page:
        """The last `items_max` items whose key is ≤ `to_offset`, returned ascending."""


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
        """Every stored entry, in no order, entries of dead nodes included (the caller filters by leases).

        Raises TooManyMembers beyond the adapter's bounds on entries and on what is read.
        """

    async def channels(self, node: str) -> Sequence[str]:
        """Channels in which `node` may have entries: some of them if there are many, so ask again after `clear`."""

    async def entries(self, node: str, channel: str) -> Sequence[ClientInfo]:
        """Entries of `node` in `channel`, those of damaged ones with the client's id alone. Some if there are many."""

    async def clear(self, node: str, channel: str) -> bool:
        """Remove the entries that `entries` gives, or would give: for whoever cleans up after a dead node.

        True = that were all, and `node` is not listed with this channel any more. Idempotent.
        """


class Leases(Protocol):
    """The `nodes` table."""

    async def put(self, lease: Lease) -> None:
        """Write the lease, unconditionally: the node's own id is new."""

    async def heartbeat(self, lease: Lease) -> bool:
        """Replace the node's lease. False = it is gone or was marked `reaped`: the node must rebuild."""

    async def drop(self, node: str) -> None:
        """Idempotent."""

    async def all(self) -> Sequence[Lease]:
        """Every lease that was stored before the call, expired ones included, buried ones not.

        Raises Refused beyond the adapter's bound.
        """

    async def reap(self, lease: Lease, at_ms: int) -> bool:
        """Mark the lease as reaped, unless its node beat since `lease` was read: from then on heartbeats are refused.

        True also when it was marked before, whose time then stays. False = the node lives, or the lease is gone.
        """

    async def bury(self, node: str, at_ms: int) -> None:
        """Make a grave of a lease that is marked, or say of a grave that it was cleared again. Idempotent.

        A lease that is not marked stays what it is. Heartbeats of a buried one are refused; `put` makes it a lease again.
        """

    async def graves(self) -> Sequence[Grave]:
        """Every grave. Raises Refused beyond the adapter's bound."""

    async def drop_grave(self, grave: Grave) -> None:
        """Idempotent. One that was cleared again since it was read stays."""


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
        """Unsubscribe, then delete the queue. Idempotent; what is gone already is success."""


class Estate(Protocol):
    """The queues and subscriptions of all nodes, also of those that are gone. A list that is too long is Refused, never cut."""

    async def queues(self) -> Sequence[str]:
        """The names of queues that may be of this deployment: those that begin with its prefix. A very new one may be missing."""

    async def queue(self, name: str) -> Queue | None:
        """What is known of a queue. None = there is none of that name."""

    async def subscriptions(self) -> Sequence[Subscription]:
        """Of the topic, those that can be ended: whatever waits for a confirmation is left out."""

    async def unsubscribe(self, arn: str) -> None:
        """Idempotent."""

    async def delete_queue(self, name: str) -> None:
        """Idempotent."""


class Topic(Protocol):
    """The SNS topic that every instance's queue is subscribed to."""

    async def publish(self, body: str) -> None:
        """One message of at most ENVELOPE_BYTES_MAX. Raises Throttled, UnknownOutcome, Refused."""


class Machine(Protocol):
    """The EC2 instance that this process runs on, as its metadata tell."""

    @property
    def id(self) -> str:
        """The instance id."""

    async def outlook(self) -> Outlook:
        """What is about to happen to it. Within a few seconds. Raises Throttled, UnknownOutcome, Refused."""


class ScalingGroup(Protocol):
    """One machine in its Auto Scaling group, which waits at a lifecycle hook for what the machine has to say."""

    async def complete(self, hook: str) -> bool:
        """The machine may go on to its next state. False = nothing waited at `hook` for it, which is no failure.

        Raises Throttled, UnknownOutcome, Refused.
        """

    async def heartbeat(self, hook: str) -> bool:
        """The group is to wait at `hook` for another time-out. False = it does not wait. Errors as `complete`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One reading. `unit`: Count, Milliseconds, Seconds or None (a plain number)."""

    name: str
    value: float
    unit: str


class Metrics(Protocol):
    """Where readings of this node are put for dashboards and alarms."""

    async def put(self, readings: Sequence[Metric]) -> None:
        """All of them or none. A repeat after UnknownOutcome counts twice. Raises Throttled, UnknownOutcome, Refused."""


class Sink(Protocol):
    """One connection as the hub sees it."""

    @property
    def framer(self) -> Framer:
        """Makes its frames: the same object for all sinks of one encoding, always the same for one sink."""

    def send(self, frame: bytes) -> None:
        """Queue one whole frame, made by its framer. Never blocks, never raises; a slow peer is cut off."""
