"""What of a deployment's leases, queues and subscriptions belongs to nobody any more, and why: pure decisions.

What they rest on is the order in which a node makes and leaves things, and the order in which somebody looks:

    a node starts   lease → queue → subscription        a node ends   subscription → queue → lease
    a reaper looks  subscriptions, queues → leases → what is not explained by a lease, one by one

A queue or subscription that was seen therefore has a lease that is seen after it, or its node has ended, or lost it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from roomcast.fleet.deployment import NODE_TAG, Deployment, Queue, TopicSubscription
from roomcast.fleet.lease_record import Lease, Tombstone

__all__ = [
    "LOOKED_AT_MAX",
    "ORPHAN_AGE_MS",
    "REAP_GRACE_MS",
    "TOMBSTONE_AGE_MS",
    "WHOLE_FLEET",
    "DeadNode",
    "Findings",
    "OrphanQueue",
    "Scope",
    "StaleSubscription",
    "dead_nodes",
    "doubtful",
    "is_old",
    "judge",
    "leave_id",
    "unexplained",
]

# What a heartbeat may take that was sent before its lease ended (one call takes 25 s at most), and clocks that differ.
REAP_GRACE_MS: Final = 30_000
# A queue without a lease may be one that is about to be deleted by its node, or whose lease was lost and is written anew.
ORPHAN_AGE_MS: Final = 15 * 60 * 1000
# A node that wakes learns of the loss of its lease with its next heartbeat: until then it writes presence entries under it. It
# beats every 15 s, and a call takes 25 s at most; the rest is for a table that fails it several times.
TOMBSTONE_AGE_MS: Final = 15 * 60 * 1000
# Queues that one run looks at one by one, two calls each: only those that no lease explains, which are few.
LOOKED_AT_MAX: Final = 500

# From so many on, leases that end together say less of their nodes than of the table they are written to.
_MANY: Final = 2

_ID_CHARS: Final = 20
# States of a lease whose node has clients.
_SERVING: Final = ("live", "draining")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose leases are looked at: all, or those of one EC2 instance. `terminated`: it is known to be gone for good."""

    instance: str | None = None
    terminated: bool = False

    def __post_init__(self) -> None:
        assert self.instance or not self.terminated, "only an instance is terminated"

    def covers(self, lease: Lease) -> bool:
        """Whether the lease is one of those looked at."""
        return self.instance is None or lease.instance == self.instance


WHOLE_FLEET: Final = Scope()


@dataclass(frozen=True, slots=True)
class DeadNode:
    """A lease whose node is gone, and what is to be removed with it. `queue` "": another node holds it."""

    lease: Lease
    queue: str
    subscriptions: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class OrphanQueue:
    """A queue of ours without a lease."""

    queue: Queue
    subscriptions: tuple[str, ...]
    why: str

    @property
    def node(self) -> str:
        """The lease under which it was made."""
        return self.queue.tags[NODE_TAG]


@dataclass(frozen=True, slots=True)
class StaleSubscription:
    """A subscription whose queue does not exist."""

    arn: str
    queue: str
    why: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that is to be reaped."""

    nodes: tuple[DeadNode, ...]
    queues: tuple[OrphanQueue, ...]
    subscriptions: tuple[StaleSubscription, ...]


def dead_nodes(
    leases: Sequence[Lease],
    subscriptions: Sequence[TopicSubscription],
    deployment: Deployment,
    now_ms: int,
    scope: Scope = WHOLE_FLEET,
    beating: Collection[str] = (),
) -> tuple[DeadNode, ...]:
    """The leases in `scope` whose nodes are gone. `subscriptions`: those of the topic that are known.

    `beating`: nodes that were just heard of, whatever the clocks say.
    """
    reasons = {
        lease.node: why
        for lease in leases
        if lease.node not in beating and (why := _why_dead(lease, now_ms, scope))
    }
    by_queue = _by_queue(subscriptions, deployment)
    alive = _others(leases, reasons)
    queues_held = {lease.queue for lease in alive}
    subscriptions_held = {lease.subscription_arn for lease in alive}
    subscriptions_held.update(arn for queue in queues_held for arn in by_queue.get(queue, ()))
    found: list[DeadNode] = []
    for lease in leases:
        if lease.node not in reasons:
            continue
        queue = "" if lease.queue in queues_held else lease.queue
        arns = [lease.subscription_arn, *(by_queue.get(queue, ()) if queue else ())]
        # A lease is a row that others may write too; unsubscribing is allowed for every topic of the account.
        arns = [arn for arn in arns if deployment.has_subscription(arn)]
        mine = dict.fromkeys(arn for arn in arns if arn not in subscriptions_held)
        found.append(DeadNode(lease, queue, tuple(mine), reasons[lease.node]))
    return tuple(found)


def doubtful(
    leases: Sequence[Lease], now_ms: int, scope: Scope = WHOLE_FLEET
) -> Mapping[str, Lease]:
    """The leases that look expired, by node, when that is no proof that their nodes are dead; empty: no doubt.

    Of the whole fleet: several at once, and more than half. Then it is rather the table that nobody could write to, or
    the clock of whoever looks. Of an instance that is about to end: those whose time is not long past, because its
    nodes may be draining.
    """
    open_ = [lease for lease in leases if scope.covers(lease) and not lease.reaped]
    expired = {lease.node: lease for lease in open_ if _why_dead(lease, now_ms, scope)}
    if scope.terminated:
        return {}
    if scope.instance is None:
        return expired if len(expired) >= _MANY and 2 * len(expired) > len(open_) else {}
    return {
        node: lease
        for node, lease in expired.items()
        if lease.state in _SERVING and now_ms <= lease.expires_at + REAP_GRACE_MS
    }


def is_old(tombstone: Tombstone, now_ms: int) -> bool:
    """Whether nobody can be expected to write anything more under that lease."""
    return now_ms - tombstone.cleared_at > TOMBSTONE_AGE_MS


def unexplained(
    queue_names: Iterable[str],
    subscriptions: Sequence[TopicSubscription],
    leases: Sequence[Lease],
    deployment: Deployment,
    now_ms: int,
) -> Sequence[str]:
    """Names of queues that no lease explains, and that must be looked at before `judge` is asked.

    Those that were listed, and those that a subscription leads to. At most LOOKED_AT_MAX of them; `now_ms` decides
    which, so that all of them have their turn.
    """
    named = {lease.queue for lease in leases}
    listed = {name for name in queue_names if name.startswith(deployment.queue_prefix)}
    subscribed = {
        name
        for name in _by_queue(subscriptions, deployment)
        if name.startswith(deployment.queue_prefix) and name not in listed
    }
    names = sorted((listed | subscribed) - named)
    if len(names) <= LOOKED_AT_MAX:
        return names
    # A run a minute looks at all of them in turn.
    start = now_ms // 60_000 * LOOKED_AT_MAX % len(names)
    return (names[start:] + names[:start])[:LOOKED_AT_MAX]


def judge(
    leases: Sequence[Lease],
    subscriptions: Sequence[TopicSubscription],
    looked_at: Mapping[str, Queue | None],
    deployment: Deployment,
    now_ms: int,
    beating: Collection[str] = (),
) -> Findings:
    """What is to be reaped. `looked_at`: what was found of the `unexplained` queues, None = there is none.

    `beating`: nodes that were just heard of, whatever the clocks say.
    """
    named = {lease.queue for lease in leases}
    dead = dead_nodes(leases, subscriptions, deployment, now_ms, beating=beating)
    alive = _others(leases, (each.lease.node for each in dead))
    nodes = {lease.node for lease in alive}
    held = {lease.subscription_arn for lease in alive}
    by_queue = {
        name: tuple(arn for arn in arns if arn not in held)
        for name, arns in _by_queue(subscriptions, deployment).items()
    }
    orphans: list[OrphanQueue] = []
    stale: list[StaleSubscription] = []
    for name, queue in looked_at.items():
        if name in named:
            continue
        if queue is None:
            stale.extend(
                StaleSubscription(arn, name, "its queue does not exist")
                for arn in by_queue.get(name, ())
                if name.startswith(deployment.queue_prefix)
            )
        elif deployment.is_ours(queue) and queue.tags[NODE_TAG] not in nodes:
            age_ms = now_ms - queue.created_at
            if age_ms > ORPHAN_AGE_MS:
                why = f"no lease, and made {age_ms // 60_000} min ago"
                orphans.append(OrphanQueue(queue, by_queue.get(name, ()), why))
    return Findings(dead, tuple(orphans), tuple(stale))


def leave_id(node: str, channel: str, client: str) -> str:
    """The id of the signal that `client` left with its node: the same whoever sends it, so that repeats are dropped."""
    # A node holds no "#", a channel no line break.
    text = f"{node}#{channel}\n{client}".encode(errors="backslashreplace")
    return hashlib.sha256(text).hexdigest()[:_ID_CHARS]


def _why_dead(lease: Lease, now_ms: int, scope: Scope) -> str:
    """Empty: it may live, or is not looked at."""
    if not scope.covers(lease):
        return ""
    if lease.reaped:
        return "found dead before"
    if scope.terminated:
        return f"instance {scope.instance} was terminated"
    # An instance that is asked about is about to end: nothing comes of waiting.
    grace_ms = REAP_GRACE_MS if scope.instance is None else 0
    if now_ms > lease.expires_at + grace_ms:
        return f"no heartbeat for {(now_ms - lease.heartbeat_at) // 1000} s"
    return ""


def _others(leases: Iterable[Lease], nodes: Iterable[str]) -> Sequence[Lease]:
    """The leases of all but `nodes`."""
    excluded = set(nodes)
    return [lease for lease in leases if lease.node not in excluded]


def _by_queue(
    subscriptions: Iterable[TopicSubscription], deployment: Deployment
) -> Mapping[str, Sequence[str]]:
    """The ARNs of subscriptions, by the queue that they lead to. Others are nobody's business here."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for each in subscriptions:
        queue = deployment.queue_of(each.endpoint)
        if queue is not None:
            found[queue].append(each.arn)
    return found
