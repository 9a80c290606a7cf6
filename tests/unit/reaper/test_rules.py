"""What is reaped, and above all what is not: by example,
and for worlds and moments of every kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.fleet.deployment import Deployment, Queue, TopicSubscription, queue_tags
from roomcast.fleet.lease_record import Lease, Tombstone, standing
from roomcast.reaper.rules import (
    LOOKED_AT_MAX,
    ORPHAN_AGE_MS,
    REAP_GRACE_MS,
    TOMBSTONE_AGE_MS,
    DeadNode,
    Findings,
    Scope,
    dead_nodes,
    is_old,
    judge,
    leave_id,
    unexplained,
)

TOPIC: Final = "arn:aws:sns:eu-west-1:000000000000:topic"
DEPLOYMENT: Final = Deployment(TOPIC, "roomcast-")
NOW: Final = 1_700_000_000_000
TTL_MS: Final = 60_000
NOTHING: Final = Findings((), (), ())


def lease(node: str = "n1", *, left_ms: int = TTL_MS, **changes: object) -> Lease:
    """The lease of a node that has `left_ms` to live."""
    made = Lease(
        node, f"roomcast-{node}", "live", NOW - 3_600_000, NOW + left_ms - TTL_MS, NOW + left_ms
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields of a lease


def subscription(queue: str, number: int = 1) -> TopicSubscription:
    return TopicSubscription(f"{TOPIC}:{queue}-{number}", DEPLOYMENT.queue_arn(queue))


def made_by(node: str, name: str | None = None, age_ms: int = ORPHAN_AGE_MS + 1) -> Queue:
    return Queue(name or f"roomcast-{node}", NOW - age_ms, queue_tags(TOPIC, node))


@dataclass(frozen=True, slots=True)
class World:
    """Everything that there is."""

    leases: Sequence[Lease] = ()
    queues: Sequence[Queue] = ()
    subscriptions: Sequence[TopicSubscription] = ()

    def findings(self, now_ms: int = NOW) -> Findings:
        names = [queue.name for queue in self.queues]
        looked_at: Mapping[str, Queue | None] = {
            name: next((queue for queue in self.queues if queue.name == name), None)
            for name in unexplained(names, self.subscriptions, self.leases, DEPLOYMENT, now_ms)
        }
        return judge(self.leases, self.subscriptions, looked_at, DEPLOYMENT, now_ms)

    def without(self, found: Findings) -> World:
        """What is left when all of it was removed."""
        nodes = {each.lease.node for each in found.nodes}
        queues, arns = removed(found)
        return World(
            [each for each in self.leases if each.node not in nodes],
            [each for each in self.queues if each.name not in queues],
            [each for each in self.subscriptions if each.arn not in arns],
        )


def removed(found: Findings) -> tuple[set[str], set[str]]:
    """Queues by name and subscriptions by ARN."""
    queues = {each.queue for each in found.nodes} | {each.queue.name for each in found.queues}
    arns = {arn for node in found.nodes for arn in node.subscriptions}
    arns |= {arn for orphan in found.queues for arn in orphan.subscriptions}
    arns |= {each.arn for each in found.subscriptions}
    return queues - {""}, arns


# ---- by example


@pytest.mark.parametrize(
    "found, says",
    [
        (lease(left_ms=1), "live"),
        (lease(left_ms=0), "expired"),
        (lease(left_ms=-1), "expired"),
        (lease(left_ms=1, reaped=5), "reaped"),
        (lease(left_ms=-1, reaped=5), "reaped"),
    ],
)
def test_how_a_node_stands(found: Lease, says: str) -> None:
    assert standing(found, NOW) == says


@pytest.mark.parametrize(
    "left_ms, is_dead",
    [(1, False), (0, False), (-REAP_GRACE_MS, False), (-REAP_GRACE_MS - 1, True)],
)
def test_a_node_is_dead_some_time_after_its_lease_ended(left_ms: int, is_dead: bool) -> None:
    found = World(
        [lease(left_ms=left_ms)], [made_by("n1")], [subscription("roomcast-n1")]
    ).findings()
    assert bool(found.nodes) is is_dead
    if is_dead:
        [dead] = found.nodes
        assert dead.queue == "roomcast-n1"
        assert dead.subscriptions == (subscription("roomcast-n1").arn,)
        assert dead.why == "no heartbeat for 90 s"
    assert (found.queues, found.subscriptions) == ((), ())


@pytest.mark.parametrize(
    "age_ms, old", [(0, False), (TOMBSTONE_AGE_MS, False), (TOMBSTONE_AGE_MS + 1, True)]
)
def test_a_tombstone_stays_for_a_while(age_ms: int, old: bool) -> None:
    assert is_old(Tombstone("n1", "", NOW - age_ms), NOW) is old


def test_a_lease_that_was_marked_is_cleaned_up_after_whatever_it_says() -> None:
    [dead] = World([lease(reaped=NOW - 1)]).findings().nodes
    assert dead.why == "found dead before"


def test_the_subscription_is_known_from_the_lease_and_from_the_list() -> None:
    gone = lease(left_ms=-TTL_MS, subscription_arn=f"{TOPIC}:old")
    world = World([gone], [], [subscription("roomcast-n1"), subscription("roomcast-n2")])
    [dead] = world.findings().nodes
    assert dead.subscriptions == (f"{TOPIC}:old", subscription("roomcast-n1").arn)


def test_a_node_that_died_before_it_had_a_queue() -> None:
    gone = lease(left_ms=-TTL_MS, queue="")
    assert World([gone]).findings().nodes == (DeadNode(gone, "", (), "no heartbeat for 120 s"),)


@pytest.mark.parametrize("age_ms, is_orphan", [(ORPHAN_AGE_MS, False), (ORPHAN_AGE_MS + 1, True)])
def test_a_queue_without_a_lease_is_an_orphan_when_it_is_old(age_ms: int, is_orphan: bool) -> None:
    world = World([], [made_by("n1", age_ms=age_ms)], [subscription("roomcast-n1")])
    found = world.findings()
    assert bool(found.queues) is is_orphan
    if is_orphan:
        [orphan] = found.queues
        assert (orphan.node, orphan.why) == ("n1", "no lease, and made 15 min ago")
        assert orphan.subscriptions == (subscription("roomcast-n1").arn,)
    assert found.subscriptions == ()


@pytest.mark.parametrize(
    "queue",
    [
        Queue("roomcast-n1", 0),
        Queue("roomcast-n1", 0, {"app": "roomcast", "node": "n1"}),
        Queue("roomcast-n1", 0, queue_tags(f"{TOPIC}-2", "n1")),
        Queue("roomcast-n1", 0, queue_tags(TOPIC, "n1") | {"app": "other"}),
    ],
)
def test_a_queue_of_others_is_left_alone_whatever_its_name(queue: Queue) -> None:
    assert World([], [queue], [subscription(queue.name)]).findings() == NOTHING


def test_a_queue_that_its_node_has_left_is_its_own_to_remove() -> None:
    """A node that rebuilds closes the old queue first.
    If that failed, it goes when the node does.
    """
    old = made_by("n1", "roomcast-n1-old")
    assert World([lease()], [old, made_by("n1")]).findings() == NOTHING
    found = World([lease(left_ms=-TTL_MS)], [old, made_by("n1")]).findings()
    assert removed(found)[0] == {"roomcast-n1-old", "roomcast-n1"}


def test_a_subscription_whose_queue_is_gone_is_ended() -> None:
    found = World([], [], [subscription("roomcast-n1"), subscription("roomcast-n1", 2)]).findings()
    assert [each.queue for each in found.subscriptions] == ["roomcast-n1"] * 2
    assert (found.nodes, found.queues) == ((), ())


@pytest.mark.parametrize(
    "endpoint",
    [
        "arn:aws:sqs:eu-west-1:000000000000:other-queue",
        "arn:aws:sqs:eu-west-2:000000000000:roomcast-n1",
        "arn:aws:sqs:eu-west-1:000000000001:roomcast-n1",
        "arn:aws:lambda:eu-west-1:000000000000:function:roomcast-n1",
        "https://example.com",
    ],
)
def test_a_subscription_of_others_is_left_alone(endpoint: str) -> None:
    assert World([], [], [TopicSubscription(f"{TOPIC}:1", endpoint)]).findings() == NOTHING


def test_an_instance_that_is_terminated_takes_its_fresh_leases_with_it() -> None:
    leases = [
        lease("n1", instance="i-1"),
        lease("n2", instance="i-1", left_ms=-TTL_MS),
        lease("n3", instance="i-2", left_ms=-TTL_MS),
        lease("n4", left_ms=-TTL_MS),
    ]
    found = dead_nodes(leases, (), DEPLOYMENT, NOW, Scope("i-1", terminated=True))
    assert [dead.lease.node for dead in found] == ["n1", "n2"]
    assert {dead.why for dead in found} == {"instance i-1 was terminated"}


def test_of_an_instance_that_is_about_to_end_a_fresh_lease_lives() -> None:
    leases = [lease("n1", instance="i-1", left_ms=1), lease("n2", instance="i-1", left_ms=-1)]
    found = dead_nodes(leases, (), DEPLOYMENT, NOW, Scope("i-1"))
    assert [dead.lease.node for dead in found] == ["n2"]


def test_all_queues_that_nothing_explains_have_their_turn() -> None:
    names = [f"roomcast-{number:04}" for number in range(3 * LOOKED_AT_MAX)]
    turns = [unexplained(names, (), (), DEPLOYMENT, NOW + minute * 60_000) for minute in range(3)]
    assert [len(turn) for turn in turns] == [LOOKED_AT_MAX] * 3
    assert sorted(name for turn in turns for name in turn) == names


def test_a_leave_has_one_id() -> None:
    ids = {
        leave_id(*names)
        for names in (("n", "c", "x"), ("n", "c", "y"), ("n", "d", "x"), ("m", "c", "x"))
    }
    assert len(ids) == 4
    assert leave_id("n", "c", "x") == leave_id("n", "c", "x")


def test_what_a_lease_names_need_not_be_looked_at() -> None:
    names = ["roomcast-n1", "roomcast-n2", "other"]
    subscriptions = [subscription(name) for name in ("roomcast-n1", "roomcast-n3", "other-2")]
    looked_at = unexplained(
        names, subscriptions, [lease(), lease("n4", left_ms=-TTL_MS)], DEPLOYMENT, NOW
    )
    assert looked_at == ["roomcast-n2", "roomcast-n3"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_lease_names_is_safe_even_when_looked_at(there: bool) -> None:
    looked_at = {"roomcast-n1": made_by("gone", "roomcast-n1") if there else None}
    assert judge([lease()], [subscription("roomcast-n1")], looked_at, DEPLOYMENT, NOW) == NOTHING


def test_a_lease_that_names_a_subscription_of_another_topic() -> None:
    gone = lease(left_ms=-TTL_MS, subscription_arn=f"{TOPIC}-2:1")
    [found] = World([gone], [], [subscription("roomcast-n1")]).findings().nodes
    assert found.subscriptions == (subscription("roomcast-n1").arn,)


def test_a_dead_lease_that_names_what_a_live_one_holds() -> None:
    held = subscription("roomcast-n1")
    dead = lease("n2", left_ms=-TTL_MS, queue="roomcast-n1", subscription_arn=held.arn)
    [found] = World([lease(), dead], [made_by("n1")], [held]).findings().nodes
    assert (found.lease.node, found.queue, found.subscriptions) == ("n2", "", ())


# ---- worlds of every kind

NODES: Final = ["n1", "n2", "n3"]
QUEUES: Final = ["roomcast-n1", "roomcast-n2", "roomcast-n3", "roomcast-x", "other"]
ARNS: Final = [f"{TOPIC}:{number}" for number in range(4)]
ENDPOINTS: Final = [
    *(DEPLOYMENT.queue_arn(name) for name in QUEUES),
    "arn:aws:sqs:eu-west-1:999999999999:roomcast-n1",
    "arn:aws:lambda:eu-west-1:000000000000:function:roomcast-n1",
    "https://example.com",
]
FOREIGN_TAGS: Final = [
    {},
    {"app": "roomcast"},
    {"app": "roomcast", "node": "n1"},
    {"app": "roomcast", "topic": f"{TOPIC}2", "node": "n1"},
    {"topic": TOPIC, "node": "n1"},
]
AGES: Final = st.integers(-10_000, 3 * ORPHAN_AGE_MS)


@st.composite
def leases_of(draw: st.DrawFn, node: str) -> Lease:
    left_ms = draw(st.integers(-4 * REAP_GRACE_MS, TTL_MS))
    return lease(
        node,
        left_ms=left_ms,
        queue=draw(st.sampled_from(["", *QUEUES])),
        subscription_arn=draw(st.sampled_from(["", *ARNS])),
        reaped=draw(st.sampled_from([0, 0, 0, NOW - 5])),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    nodes = draw(st.lists(st.sampled_from(NODES), unique=True))
    names = draw(st.lists(st.sampled_from(QUEUES), unique=True))
    tags = st.sampled_from([*FOREIGN_TAGS, *(queue_tags(TOPIC, node) for node in [*NODES, "n9"])])
    arns = draw(st.lists(st.sampled_from(ARNS), unique=True))
    return World(
        [draw(leases_of(node)) for node in nodes],
        [Queue(name, NOW - draw(AGES), draw(tags)) for name in names],
        [TopicSubscription(arn, draw(st.sampled_from(ENDPOINTS))) for arn in arns],
    )


def may_live(each: Lease) -> bool:
    return not each.reaped and each.expires_at + REAP_GRACE_MS >= NOW


@given(worlds())
def test_what_a_live_lease_holds_is_never_touched(world: World) -> None:
    found = world.findings()
    queues, arns = removed(found)
    for each in filter(may_live, world.leases):
        assert each.node not in {dead.lease.node for dead in found.nodes}
        assert each.queue not in queues
        assert each.subscription_arn not in arns
        if each.queue:
            endpoint = DEPLOYMENT.queue_arn(each.queue)
            assert not arns & {sub.arn for sub in world.subscriptions if sub.endpoint == endpoint}


@given(worlds())
def test_what_belongs_to_others_is_never_touched(world: World) -> None:
    queues, arns = removed(world.findings())
    named = {each.queue for each in world.leases}
    written_down = {each.subscription_arn for each in world.leases}
    for queue in world.queues:
        if queue.tags in FOREIGN_TAGS and queue.name not in named:
            assert queue.name not in queues
    there = {queue.name for queue in world.queues}
    for sub in world.subscriptions:
        if sub.arn in arns - written_down:
            name = DEPLOYMENT.queue_of(sub.endpoint)
            assert name is not None, "nothing but queues of our account and region"
            assert name in queues or (name not in there and name.startswith("roomcast-"))


@given(worlds())
def test_every_dead_lease_is_found(world: World) -> None:
    dead = {each.lease.node for each in world.findings().nodes}
    assert dead == {each.node for each in world.leases if not may_live(each)}


@given(worlds())
def test_what_is_removed_is_not_found_again(world: World) -> None:
    assert world.without(world.findings()).findings() == NOTHING


@given(worlds())
def test_a_young_queue_without_a_lease_waits(world: World) -> None:
    queues, _ = removed(world.findings())
    named = {each.queue for each in world.leases}
    young = {queue.name for queue in world.queues if NOW - queue.created_at <= ORPHAN_AGE_MS}
    assert not queues & (young - named)


# ---- moments of every kind: a node goes on while somebody looks


@dataclass(slots=True)
class Node:
    """What one node does, step by step, in the order of service/roomcast/aws/queue.py and
    service/roomcast/delivery/listener.py.
    """

    name: str
    leases: dict[str, Lease] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    subscriptions: dict[str, TopicSubscription] = field(default_factory=dict)

    def script(self) -> Sequence[tuple[str, str]]:
        """Start, rebuild once, end."""
        first, second = f"roomcast-{self.name}-1", f"roomcast-{self.name}-2"
        return [
            ("lease", first), ("create", first), ("subscribe", first),
            ("unsubscribe", first), ("delete", first),
            ("lease", second), ("create", second), ("subscribe", second), ("write down", second),
            ("unsubscribe", second), ("delete", second), ("drop", ""),
        ]  # fmt: skip

    def do(self, step: str, queue: str) -> None:
        match step:
            case "lease":
                self.leases[self.name] = lease(self.name, queue=queue)
            case "write down":
                # A heartbeat, the first that knows of the subscription.
                self.leases[self.name] = replace(
                    self.leases[self.name], subscription_arn=subscription(queue).arn
                )
            case "create":
                # As old as can be: not its age, but the order of things must protect it.
                self.queues[queue] = Queue(queue, 0, queue_tags(TOPIC, self.name))
            case "subscribe":
                self.subscriptions[queue] = subscription(queue)
            case "unsubscribe":
                del self.subscriptions[queue]
            case "delete":
                del self.queues[queue]
            case "drop":
                del self.leases[self.name]


# How many of its steps a node has done when the reaper lists subscriptions, and queues,
# reads leases, and looks at single queues; and whether SQS lists a queue that was just made.
MOMENTS: Final = st.tuples(*[st.integers(0, 12)] * 4, st.booleans())


@given(st.lists(MOMENTS, min_size=1, max_size=3))
def test_a_node_that_goes_on_meanwhile_is_never_harmed(
    moments: list[tuple[int, int, int, int, bool]],
) -> None:
    subscriptions: list[TopicSubscription] = []
    names: list[str] = []
    leases: list[Lease] = []
    there: dict[str, Queue] = {}
    nodes = [Node(f"n{number}") for number in range(len(moments))]
    for node, (*steps_done, lists_at_once) in zip(nodes, moments, strict=True):
        # Subscriptions and queues are listed side by side; the rest comes after both.
        listing = steps_done[:2]
        when_read, when_looked = (
            max(listing) + steps_done[2],
            max(listing) + steps_done[2] + steps_done[3],
        )
        for done, step in enumerate([*node.script(), ("wait", "")]):
            if done == listing[0]:
                subscriptions += node.subscriptions.values()
            if done == listing[1]:
                names += node.queues if lists_at_once else ()
            if done == min(when_read, 12):
                leases += node.leases.values()
            if done == min(when_looked, 12):
                there |= node.queues
                break
            node.do(*step)
    suspects = unexplained(names, subscriptions, leases, DEPLOYMENT, NOW)
    found = judge(
        leases, subscriptions, {name: there.get(name) for name in suspects}, DEPLOYMENT, NOW
    )
    queues, arns = removed(found)
    assert not found.nodes
    for node in nodes:
        held = [each.queue for each in node.leases.values()]
        # A queue that its node is about to delete may be deleted; one that it goes on with may not.
        assert not queues & set(held)
        assert not arns & {sub.arn for queue, sub in node.subscriptions.items() if queue in held}
