"""Decides which leases, queues and subscriptions of a deployment are abandoned, as pure functions.

The decisions rest on the order in which a node creates and removes its resources, and on the order
in which a reaper reads them:

    a node starts   lease → queue → subscription        a node ends   subscription → queue → lease
    a reaper looks  subscriptions, queues → leases → queues without a lease, one by one

So if a queue or subscription is seen, its lease is seen after it. Otherwise its node has ended, or
has lost the lease.
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

# The time that a heartbeat sent before the lease's end may take (one call takes 25 s at most), with
# some difference between clocks.
REAP_GRACE_MS: Final = 30_000
# Before this age a queue without a lease may still be in use: its node may be about to delete it,
# or to write a lost lease anew.
ORPHAN_AGE_MS: Final = 15 * 60 * 1000
# A waking node learns at its next heartbeat that its lease is lost. Until then it writes presence
# entries under it. A heartbeat comes every 15 s, and a call takes 25 s at most. The rest allows for
# several failed calls.
TOMBSTONE_AGE_MS: Final = 15 * 60 * 1000
# Queues that one run looks up one by one, with two calls each. Only queues without a lease are
# looked up, and those are few.
LOOKED_AT_MAX: Final = 500

# Expired leases from which on their common cause may be the table rather than their nodes.
_MANY: Final = 2

_ID_CHARS: Final = 20
# States of a lease whose node has clients.
_SERVING: Final = ("live", "draining")


@dataclass(frozen=True, slots=True)
class Scope:
    """The leases that a run reads: all, or those of one EC2 instance, or of one task of ECS.

    `terminated`: the instance is known to be gone for good.
    """

    instance: str | None = None
    terminated: bool = False

    def __post_init__(self) -> None:
        assert self.instance or not self.terminated, "only an instance is terminated"

    def covers(self, lease: Lease) -> bool:
        """Whether the lease is in the scope."""
        return self.instance is None or lease.instance == self.instance


WHOLE_FLEET: Final = Scope()


@dataclass(frozen=True, slots=True)
class DeadNode:
    """A lease whose node is gone, and the resources to remove with it.

    `queue` "": another node holds the queue.
    """

    lease: Lease
    queue: str
    subscriptions: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class OrphanQueue:
    """A queue of this deployment without a lease."""

    queue: Queue
    subscriptions: tuple[str, ...]
    why: str

    @property
    def node(self) -> str:
        """The node for which the queue was created."""
        return self.queue.tags[NODE_TAG]


@dataclass(frozen=True, slots=True)
class StaleSubscription:
    """A subscription whose queue does not exist."""

    arn: str
    queue: str
    why: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that is to be removed."""

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
    """The leases in `scope` whose nodes are gone.

    `subscriptions`: the topic's known subscriptions.

    `beating`: nodes that just sent a heartbeat. They are alive, whatever the clocks say.
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
        # Other code may write leases too, and the role may unsubscribe from every topic of the
        # account.
        arns = [arn for arn in arns if deployment.has_subscription(arn)]
        mine = dict.fromkeys(arn for arn in arns if arn not in subscriptions_held)
        found.append(DeadNode(lease, queue, tuple(mine), reasons[lease.node]))
    return tuple(found)


def doubtful(
    leases: Sequence[Lease], now_ms: int, scope: Scope = WHOLE_FLEET
) -> Mapping[str, Lease]:
    """The leases, by node, that look expired without proof that their nodes are dead. Empty: no
    doubt.

    For the whole fleet: several expired at once, and more than half. More likely nobody could write
    to the table, or the reaper's own clock is wrong. For an instance that is terminating: leases
    that ended only recently, because its nodes may be draining.
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
    """Whether no more writes under that lease are to be expected."""
    return now_ms - tombstone.cleared_at > TOMBSTONE_AGE_MS


def unexplained(
    queue_names: Iterable[str],
    subscriptions: Sequence[TopicSubscription],
    leases: Sequence[Lease],
    deployment: Deployment,
    now_ms: int,
) -> Sequence[str]:
    """Names of queues without a lease, which must be looked up before `judge` is called.

    They come from the list of queues and from subscriptions. At most LOOKED_AT_MAX are returned.
    `now_ms` selects them, so that every queue has its turn.
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
    # A run a minute covers all of them in turn.
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
    """Everything that is to be removed.

    `looked_at`: the result for each of the `unexplained` queues. None = the queue does not exist.

    `beating`: nodes that just sent a heartbeat. They are alive, whatever the clocks say.
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
    """The id of the signal that `client` has left. It does not depend on the sender, so that
    repeats are dropped.
    """
    # A node's id contains no "#", and a channel no line break.
    text = f"{node}#{channel}\n{client}".encode(errors="backslashreplace")
    return hashlib.sha256(text).hexdigest()[:_ID_CHARS]


def _why_dead(lease: Lease, now_ms: int, scope: Scope) -> str:
    """The reason to take the node for dead. "": it may live, or is out of scope."""
    if not scope.covers(lease):
        return ""
    if lease.reaped:
        return "found dead before"
    if scope.terminated:
        return f"instance {scope.instance} was terminated"
    # The instance is terminating: waiting changes nothing.
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
    """The ARNs of subscriptions, by the name of their queue. Those to foreign queues are
    left out.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for each in subscriptions:
        queue = deployment.queue_of(each.endpoint)
        if queue is not None:
            found[queue].append(each.arn)
    return found
