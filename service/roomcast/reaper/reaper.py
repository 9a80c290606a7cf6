"""Finds and removes the remains of dead nodes: queues, subscriptions, presence entries and leases.

Runs may repeat, overlap with another reaper, or break off half-way without harm. A lease is removed
last, so that the next run finds the rest. Its tombstone stays for a while, so that later runs find
entries that a waking node wrote under the lease. This module needs only the standard library,
because a Lambda runs it too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeVar

from roomcast.concurrency import each
from roomcast.delivery import signals
from roomcast.delivery.envelope import ENVELOPE_BYTES_MAX, pack, signal_text
from roomcast.delivery.ports import Topic
from roomcast.fleet.deployment import Deployment, Queue
from roomcast.fleet.end_signals import end_signal
from roomcast.fleet.lease_record import Lease, Tombstone
from roomcast.fleet.ports import Leases
from roomcast.ports import Clock, PortError, Rejected
from roomcast.presence.ports import Presence
from roomcast.reaper.ports import Estate
from roomcast.reaper.rules import (
    WHOLE_FLEET,
    DeadNode,
    Findings,
    OrphanQueue,
    Scope,
    StaleSubscription,
    dead_nodes,
    doubtful,
    is_old,
    judge,
    leave_id,
    unexplained,
)
from roomcast.wire.event_kinds import is_of_connections
from roomcast.wire.publication import ClientInfo

__all__ = [
    "FAILURES_MAX",
    "LEAVE_MESSAGES_PER_S",
    "SECOND_LOOK_S",
    "Failure",
    "NodeReport",
    "QueueReport",
    "Reaper",
    "Report",
    "Sleep",
    "SubscriptionReport",
    "Tell",
    "silent",
]

# A share of the SNS quota, which in the smallest regions is 300 a second for the whole account. A
# reaper takes as much as one node.
LEAVE_MESSAGES_PER_S: Final = 20
# SNS allows 100 a second, and stopping nodes need some of them.
_UNSUBSCRIBES_PER_S: Final = 50
# SQS returns tags 30 times a second per account and region.
_LOOKS_PER_S: Final = 20
# The wait before doubtful leases are read again. It is longer than a live node goes without a
# heartbeat: 15 s (`node.heartbeat_s`) and one call of 25 s. The Lambda has 120 s in all.
SECOND_LOOK_S: Final = 45
# The interval between progress messages during that wait.
_WAIT_TOLD_S: Final = 15
# Dead nodes cleaned up at once, and channels of each. An EC2 instance has one node per core.
_NODES_AT_ONCE: Final = 4
_CHANNELS_AT_ONCE: Final = 8
_AT_ONCE: Final = 8
# Channels whose leaves share messages. Each holds a page of entries, up to 1 MB, in memory
# meanwhile.
_CHANNELS_TOGETHER: Final = 64
# Pages of entries of one channel, and of channels of one node: several times the content of a node.
_PAGES_MAX: Final = 1000
# Failures that the report lists. Further ones are only counted.
FAILURES_MAX: Final = 100
# Bytes of a single leave in a message, so that others fit beside it.
_LEAVE_BYTES_MAX: Final = ENVELOPE_BYTES_MAX // 2

# The outcome of one find. found: not touched (a dry run). failed: the rest is left to the next run.
# spared: its node sent a heartbeat meanwhile, or another reaper was done with it first.
Outcome = Literal["found", "removed", "spared", "failed"]

Sleep = Callable[[float], Awaitable[None]]
Tell = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One dead node. `channels`: the number of channels with its entries, as far as they were
    listed. `members`: the number of clients whose leaves were sent.
    """

    node: str
    instance: str
    queue: str
    subscriptions: tuple[str, ...]
    why: str
    outcome: Outcome
    channels: int = 0
    members: int = 0


@dataclass(frozen=True, slots=True)
class QueueReport:
    """One queue without a lease. `node`: the node for which it was created."""

    queue: str
    node: str
    subscriptions: tuple[str, ...]
    why: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SubscriptionReport:
    """One subscription whose queue does not exist."""

    arn: str
    queue: str
    why: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that failed, and is left to the next run."""

    step: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """The finds and the results of one run. `live`: the number of leases whose nodes were not found
    dead.

    `failed` counts all failures, `failures` lists the first FAILURES_MAX.
    """

    dry_run: bool
    live: int
    nodes: tuple[NodeReport, ...] = ()
    queues: tuple[QueueReport, ...] = ()
    subscriptions: tuple[SubscriptionReport, ...] = ()
    failed: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the run found nothing and no step failed."""
        return not (self.nodes or self.queues or self.subscriptions or self.failed)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Freed:
    """A dead node after the first pass.

    `outcome` None: its lease is marked, and the second pass follows.
    """

    dead: DeadNode
    outcome: Outcome | None = None
    complete: bool = False


@dataclass(slots=True)
class _Failures:
    count: int = 0
    kept: list[Failure] = field(default_factory=list)

    def add(self, step: str, what: str, reason: object) -> None:
        self.count += 1
        if len(self.kept) < FAILURES_MAX:
            self.kept.append(Failure(step, what, str(reason)))


class _Pace:
    """Lets `per_s` callers a second pass."""

    def __init__(self, per_s: float, sleep: Sleep) -> None:
        self._pause_s = 1 / per_s
        self._sleep = sleep
        self._door = asyncio.Lock()

    async def turn(self) -> None:
        async with self._door:
            await self._sleep(self._pause_s)


def silent(_line: str) -> None:
    """A Tell that discards its lines."""


class Reaper:
    """Cleans up a deployment. `tell` gets a line at the start of each step that takes a while."""

    def __init__(
        self,
        *,
        leases: Leases,
        presence: Presence,
        estate: Estate,
        topic: Topic,
        clock: Clock,
        deployment: Deployment,
        tell: Tell = silent,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._leases = leases
        self._presence = presence
        self._estate = estate
        self._topic = topic
        self._clock = clock
        self._deployment = deployment
        self._tell = tell
        self._sleep = sleep
        self._messages = _Pace(LEAVE_MESSAGES_PER_S, sleep)
        self._unsubscribes = _Pace(_UNSUBSCRIBES_PER_S, sleep)
        self._looks = _Pace(_LOOKS_PER_S, sleep)

    async def run(self, *, dry_run: bool = False, scope: Scope = WHOLE_FLEET) -> Report:
        """Finds and removes. `dry_run`: only finds.

        With a `scope` of one instance, only its leases are read.

        A failed step is in the report and stops no other step. Raises PortError when the leases
        cannot be read, because no decision is possible without them.
        """
        failures = _Failures()
        if scope == WHOLE_FLEET:
            findings, live = await self._look_at_all(failures)
        else:
            findings, live = await self._look_at_some(scope, failures)
        if dry_run:
            nodes = await each(
                _NODES_AT_ONCE, findings.nodes, lambda dead: self._shown(dead, failures)
            )
            queues = [_queue_report(orphan, "found") for orphan in findings.queues]
            subscriptions = [
                _subscription_report(stale, "found") for stale in findings.subscriptions
            ]
        else:
            # Read after the leases: a lease that becomes a tombstone in between is seen in both
            # reads, never in neither.
            tombstones = await self._leases.tombstones()
            gone = frozenset(
                (*(one.lease.node for one in findings.nodes), *(one.node for one in tombstones))
            )
            nodes = [*await self._reap(findings.nodes, gone, failures)]
            if scope == WHOLE_FLEET:
                nodes += await self._tend(tombstones, gone, failures)
            queues = await each(
                _AT_ONCE, findings.queues, lambda orphan: self._remove(orphan, failures)
            )
            subscriptions = await each(
                _AT_ONCE, findings.subscriptions, lambda stale: self._end(stale, failures)
            )
        return Report(
            dry_run,
            live,
            tuple(nodes),
            tuple(queues),
            tuple(subscriptions),
            failures.count,
            tuple(failures.kept),
        )

    async def announce_end(self, instance: str) -> int:
        """Tells the nodes of an instance that it is about to end. Returns how many were told.

        Raises PortError. To repeat it does no harm.
        """
        scope = Scope(instance)
        nodes = [
            lease
            for lease in await self._leases.all()
            if scope.covers(lease) and not lease.reaped and lease.queue
        ]
        body, _ = next(pack([signal_text(end_signal(instance))], signals=True))
        for lease in nodes:
            await self._estate.post(lease.queue, body)
        return len(nodes)

    # ---- looking

    async def _look_at_all(self, failures: _Failures) -> tuple[Findings, int]:
        """Reads everything in the order that service/roomcast/reaper/rules.py requires."""
        self._tell("listing subscriptions and queues")
        subscriptions, names = await asyncio.gather(
            self._listed("list_subscriptions", self._estate.subscriptions, failures),
            self._listed("list_queues", self._estate.queues, failures),
        )
        leases, now_ms, beating = await self._look_at_leases(WHOLE_FLEET)
        self._tell(
            f"{len(leases)} leases, {len(names or ())} queues, {len(subscriptions or ())} "
            "subscriptions"
        )
        if subscriptions is None or names is None:
            # An incomplete list does not show that an item is missing.
            dead = dead_nodes(
                leases, subscriptions or (), self._deployment, now_ms, beating=beating
            )
            return Findings(dead, (), ()), len(leases) - len(dead)
        suspects = unexplained(names, subscriptions, leases, self._deployment, now_ms)
        if suspects:
            self._tell(f"looking at {len(suspects)} queues that no lease explains")
        looked_at = await each(_AT_ONCE, suspects, lambda name: self._look_at(name, failures))
        known = {name: queue for seen in looked_at if seen is not None for name, queue in (seen,)}
        findings = judge(leases, subscriptions, known, self._deployment, now_ms, beating)
        return findings, len(leases) - len(findings.nodes)

    async def _look_at_some(self, scope: Scope, failures: _Failures) -> tuple[Findings, int]:
        """Reads only the leases: it is quick, and nothing else is known about an instance."""
        leases, now_ms, beating = await self._look_at_leases(scope)
        dead = dead_nodes(leases, (), self._deployment, now_ms, scope, beating)
        live = sum(scope.covers(lease) for lease in leases) - len(dead)
        # A lease names the subscription to the base topic only.
        if dead and (self._deployment.shards > 1 or not all(_is_complete(each) for each in dead)):
            subscriptions = await self._listed(
                "list_subscriptions", self._estate.subscriptions, failures
            )
            dead = dead_nodes(leases, subscriptions or (), self._deployment, now_ms, scope, beating)
        return Findings(dead, (), ()), live

    async def _look_at_leases(self, scope: Scope) -> tuple[Sequence[Lease], int, Collection[str]]:
        """The leases, the time of the first read (ms), and the nodes that sent a heartbeat since
        then.

        A second read follows only if the first leaves a doubt. The first read's time decides which
        nodes are dead: a lease that ended after it was not read twice.
        """
        leases = await self._leases.all()
        now_ms = self._clock.now_ms()
        doubted = doubtful(leases, now_ms, scope)
        if not doubted:
            return leases, now_ms, ()
        for left_s in range(SECOND_LOOK_S, 0, -_WAIT_TOLD_S):
            self._tell(
                f"{len(doubted)} of {len(leases)} leases look expired; a second look in {left_s} s"
            )
            await self._sleep(min(left_s, _WAIT_TOLD_S))
        leases = await self._leases.all()
        before = {node: lease.heartbeat_at for node, lease in doubted.items()}
        beating = {
            lease.node
            for lease in leases
            if before.get(lease.node, lease.heartbeat_at) != lease.heartbeat_at
        }
        return leases, now_ms, beating

    async def _listed(
        self, step: str, ask: Callable[[], Awaitable[Sequence[T]]], failures: _Failures
    ) -> Sequence[T] | None:
        """The list. None: the call failed."""
        try:
            return await ask()
        except PortError as error:
            failures.add(step, self._deployment.topic_arn, error)
            return None

    async def _look_at(self, name: str, failures: _Failures) -> tuple[str, Queue | None] | None:
        """The queue of that name, if any. None: the call failed."""
        await self._looks.turn()
        try:
            return name, await self._estate.queue(name)
        except PortError as error:
            failures.add("look_at_queue", name, error)
            return None

    async def _shown(self, dead: DeadNode, failures: _Failures) -> NodeReport:
        channels: Sequence[str] = ()
        try:
            channels = await self._presence.channels(dead.lease.node)
        except PortError as error:
            failures.add("list_channels", dead.lease.node, error)
        return _node_report(dead, "found", channels=len(channels))

    # ---- removing

    async def _reap(
        self, dead: Sequence[DeadNode], gone: Collection[str], failures: _Failures
    ) -> Sequence[NodeReport]:
        """Removes everything that dead nodes held, the lease last: while it exists, the next run
        finds the rest.

        `gone`: all dead nodes. Queues and subscriptions, which cost money and messages, are removed
        for all of them first, because presence takes longer the more channels there are.
        """
        freed = await each(_AT_ONCE, dead, lambda one: self._free(one, failures))
        return await each(_NODES_AT_ONCE, freed, lambda one: self._forget(one, gone, failures))

    async def _free(self, dead: DeadNode, failures: _Failures) -> _Freed:
        """The first pass: marks the lease, ends the subscription, deletes the queue."""
        lease = dead.lease
        try:
            if not await self._leases.reap(lease, self._clock.now_ms()):
                return _Freed(dead, "spared")
        except PortError as error:
            failures.add("mark_lease", lease.node, error)
            return _Freed(dead, "failed")
        self._tell(f"cleaning up after {lease.node}: {dead.why}")
        steps = [await self._unsubscribe(arn, failures) for arn in dead.subscriptions]
        if dead.queue:
            steps.append(await self._delete_queue(dead.queue, failures))
        return _Freed(dead, complete=all(steps))

    async def _forget(
        self, freed: _Freed, gone: Collection[str], failures: _Failures
    ) -> NodeReport:
        """The second pass: removes presence, then the lease."""
        if freed.outcome is not None:
            return _node_report(freed.dead, freed.outcome)
        node = freed.dead.lease.node
        clearing = _Clearing(self._presence, self._send, self._tell, node, gone)
        done = await _done("clear_presence", node, clearing.run(), failures) and freed.complete
        if done:
            done = await _done(
                "bury", node, self._leases.put_tombstone(node, self._clock.now_ms()), failures
            )
        return _node_report(
            freed.dead,
            "removed" if done else "failed",
            channels=clearing.channels,
            members=clearing.members,
        )

    async def _tend(
        self, tombstones: Sequence[Tombstone], gone: Collection[str], failures: _Failures
    ) -> Sequence[NodeReport]:
        """Removes presence that was written under tombstones. Returns the nodes that had some."""
        tended = await each(
            _NODES_AT_ONCE, tombstones, lambda tombstone: self._tend_one(tombstone, gone, failures)
        )
        return [report for report in tended if report is not None]

    async def _tend_one(
        self, tombstone: Tombstone, gone: Collection[str], failures: _Failures
    ) -> NodeReport | None:
        node, now_ms = tombstone.node, self._clock.now_ms()
        clearing = _Clearing(self._presence, self._send, self._tell, node, gone)
        done = await _done("clear_presence", node, clearing.run(), failures)
        if done and clearing.channels:
            # Its node was awake just now: the tombstone's time starts again.
            done = await _done("bury", node, self._leases.put_tombstone(node, now_ms), failures)
        elif done and is_old(tombstone, now_ms):
            done = await _done("drop_grave", node, self._leases.drop_tombstone(tombstone), failures)
        if done and not clearing.channels:
            return None
        return NodeReport(
            node,
            tombstone.instance,
            "",
            (),
            "written after it was found dead",
            "removed" if done else "failed",
            clearing.channels,
            clearing.members,
        )

    async def _remove(self, orphan: OrphanQueue, failures: _Failures) -> QueueReport:
        """Removes the subscription first: once the queue is gone, only the subscription's own name
        leads to it.
        """
        self._tell(f"removing queue {orphan.queue.name}: {orphan.why}")
        steps = [await self._unsubscribe(arn, failures) for arn in orphan.subscriptions]
        steps.append(await self._delete_queue(orphan.queue.name, failures))
        return _queue_report(orphan, "removed" if all(steps) else "failed")

    async def _end(self, stale: StaleSubscription, failures: _Failures) -> SubscriptionReport:
        ended = await self._unsubscribe(stale.arn, failures)
        return _subscription_report(stale, "removed" if ended else "failed")

    async def _unsubscribe(self, arn: str, failures: _Failures) -> bool:
        await self._unsubscribes.turn()
        return await _done("unsubscribe", arn, self._estate.unsubscribe(arn), failures)

    async def _delete_queue(self, name: str, failures: _Failures) -> bool:
        """Deletes a queue. Returns whether none of ours is left under that name."""
        try:
            await self._estate.delete_queue(name)
        except Rejected as error:
            return await self._is_not_ours(name, error, failures)
        except PortError as error:
            failures.add("delete_queue", name, error)
            return False
        return True

    async def _is_not_ours(self, name: str, refusal: Rejected, failures: _Failures) -> bool:
        """Whether a queue whose deletion was refused is gone, or belongs to another deployment. A
        lease may name any queue.

        A missing queue has no tags, and the permission depends on tags. A foreign queue is reported
        as a failure and left alone. Its lease is removed, so it is reported once.
        """
        if name.startswith(self._deployment.queue_prefix):
            try:
                queue = await self._estate.queue(name)
            except PortError:
                failures.add("delete_queue", name, refusal)
                return False
            if queue is None:
                return True
            if self._deployment.is_ours(queue):
                failures.add("delete_queue", name, refusal)
                return False
        failures.add("leave_foreign_queue", name, refusal)
        return True

    async def _send(self, texts: Iterable[str]) -> None:
        """Sends signals to all nodes in as few messages as possible. Raises PortError."""
        for body, _ in pack(texts, signals=True):
            await self._messages.turn()
            await self._topic.publish(body)


@dataclass(frozen=True, slots=True)
class _Page:
    """Entries of a dead node in a channel: of clients that have left, and the ids of those that
    are under another node.
    """

    channel: str
    leaving: Sequence[ClientInfo]
    moved: Collection[str]


class _Clearing:
    """Removes the presence entries of one node, after telling all nodes that its clients have left.

    `gone`: dead nodes, including this one. A client that also has an entry under another node has
    not left: its node was only silent, and goes on under another lease.
    """

    def __init__(
        self,
        presence: Presence,
        send: Callable[[Iterable[str]], Awaitable[None]],
        tell: Tell,
        node: str,
        gone: Collection[str],
    ) -> None:
        self._presence = presence
        self._send = send
        self._tell = tell
        self._node = node
        self._gone = gone
        self.channels = 0
        self.members = 0

    async def run(self) -> None:
        """Clears all channels. Raises PortError. Channels that are done by then stay done."""
        for _ in range(_PAGES_MAX):
            channels = await self._presence.channels(self._node)
            if not channels:
                return
            for start in range(0, len(channels), _CHANNELS_TOGETHER):
                await self._clear(channels[start : start + _CHANNELS_TOGETHER])
                self._tell(f"{self._node}: {self.channels} channels, {self.members} members")
        raise Rejected(f"more than {_PAGES_MAX} pages of channels")

    async def _clear(self, channels: Sequence[str]) -> None:
        left = channels
        for _ in range(_PAGES_MAX):
            if not left:
                break
            pages = await each(_CHANNELS_AT_ONCE, left, self._leavers)
            leaving = [(page.channel, info) for page in pages for info in page.leaving]
            # Leaves are sent before the entries go. A run that breaks off in between repeats them,
            # and nodes drop repeated ones.
            await self._send(
                filter(None, (self._leave(channel, info) for channel, info in leaving))
            )
            self.members += len(leaving)
            cleared = await each(_CHANNELS_AT_ONCE, pages, self._cleared)
            left = [
                channel for channel, all_of_it in zip(left, cleared, strict=True) if not all_of_it
            ]
        self.channels += len(channels) - len(left)

    async def _leavers(self, channel: str) -> _Page:
        """A page of entries of a channel."""
        infos = await self._presence.entries(self._node, channel)
        elsewhere = await self._elsewhere(channel) if infos else ()
        moved = frozenset(info.client for info in infos if info.client in elsewhere)
        if is_of_connections(channel):
            # No client is in that channel: no node waits for a signal.
            return _Page(channel, (), moved)
        return _Page(channel, [info for info in infos if info.client not in moved], moved)

    async def _elsewhere(self, channel: str) -> Collection[str]:
        """The clients in the channel under other nodes. Ids of clients are unique."""
        try:
            members = await self._presence.members(channel)
        except Rejected:
            # More members than one read returns. The node that has the client corrects a wrong
            # leave.
            return ()
        return {member.info.client for member in members if member.node not in self._gone}

    async def _cleared(self, page: _Page) -> bool:
        return await self._presence.clear(self._node, page.channel, page.moved)

    def _leave(self, channel: str, info: ClientInfo) -> str:
        """The text of one leave, "" when it does not fit a message."""
        signal = signals.leave(
            self._node, leave_id(self._node, channel, info.client), channel, info
        )
        try:
            text = signal_text(signal)
        except (ValueError, RecursionError):
            return ""
        return text if len(text.encode()) <= _LEAVE_BYTES_MAX else ""


def _is_complete(dead: DeadNode) -> bool:
    """Whether the lease names the subscription. A node that died early had no time to record it."""
    return bool(dead.lease.subscription_arn) or not dead.queue


async def _done(step: str, what: str, call: Awaitable[None], failures: _Failures) -> bool:
    """Whether `call` succeeded."""
    try:
        await call
    except PortError as error:
        failures.add(step, what, error)
        return False
    return True


def _node_report(
    dead: DeadNode, outcome: Outcome, *, channels: int = 0, members: int = 0
) -> NodeReport:
    lease = dead.lease
    return NodeReport(
        lease.node,
        lease.instance,
        dead.queue,
        dead.subscriptions,
        dead.why,
        outcome,
        channels,
        members,
    )


def _queue_report(orphan: OrphanQueue, outcome: Outcome) -> QueueReport:
    return QueueReport(orphan.queue.name, orphan.node, orphan.subscriptions, orphan.why, outcome)


def _subscription_report(stale: StaleSubscription, outcome: Outcome) -> SubscriptionReport:
    return SubscriptionReport(stale.arn, stale.queue, stale.why, outcome)
