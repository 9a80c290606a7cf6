"""Orders of the application: found, carried out and told by connections of this
node and of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import jwt
import pytest
from structlog.testing import capture_logs

from roomcast.auth.claims import ServerSubscription
from roomcast.client import server_orders as orders_module
from roomcast.client import subscribe as subscribe_module
from roomcast.delivery import broadcaster as broadcaster_module
from roomcast.delivery import signals
from roomcast.delivery.allowance import THROTTLED_S
from roomcast.delivery.envelope import Signal
from roomcast.fleet import order_post as order_post_module
from roomcast.fleet import orders as fleet_orders
from roomcast.fleet.badges import CLIENT_DIGITS, badge_of_node, client_id, session_name
from roomcast.fleet.lease_record import Lease
from roomcast.fleet.mailbox import LEASES_S
from roomcast.fleet.order_signals import (
    DisconnectOrder,
    Order,
    RefreshOrder,
    SubscribeOrder,
    Target,
    UnsubscribeOrder,
    order_signal,
)
from roomcast.log.appender import Full, TooLarge
from roomcast.node import node as node_module
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome
from roomcast.wire.channels import ChannelOptions, ChannelOverride, ChannelRules
from roomcast.wire.codes import Disconnect, DisconnectCode
from roomcast.wire.encoding import stored_of
from roomcast.wire.publication import Publication, StreamPosition
from tests.unit.worlds import SECRET, Client, Fleet, LocalNode, envelope, settled, until

HISTORY: Final = ChannelOptions(history_size=10, history_ttl_s=60, allow_positioning=True)
RULES: Final = ChannelRules(
    without_namespace=replace(
        HISTORY, allow_subscribe_for_client=True, allow_publish_for_client=True
    ),
    namespaces={
        "plain": ChannelOptions(allow_subscribe_for_client=True),
        "sure": replace(HISTORY, force_recovery=True),
        "seen": replace(HISTORY, presence=True, join_leave=True, force_push_join_leave=True),
    },
)
BANNED: Final = DisconnectCode(4500, "banned")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def nodes(fleet: Fleet) -> AsyncIterator[tuple[LocalNode, LocalNode]]:
    """Two nodes that hear each other."""
    made = (secured(fleet, "a"), secured(fleet, "b"))
    fleet.stream_to_topic()
    async with AsyncExitStack() as running:
        for node in made:
            await running.enter_async_context(node.running())
        yield made
        for node in made:
            await node.close()


def secured(fleet: Fleet, name: str, **changes: Any) -> LocalNode:
    return fleet.node(name, insecure=False, secret=SECRET, rules=RULES, **changes)


@pytest.fixture
async def node(
    fleet: Fleet, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LocalNode]:
    monkeypatch.setattr(
        fleet_orders, "WORK_A_TURN", getattr(request, "param", fleet_orders.WORK_A_TURN)
    )
    made = secured(fleet, "a")
    yield made
    await made.close()


def with_work_a_turn(work: int) -> pytest.MarkDecorator:
    """`node` does so much in a turn."""
    return pytest.mark.parametrize("node", [work], indirect=True, ids=[""])


async def connected(node: LocalNode, user: str = "ann", **claims: Any) -> Client:
    return await node.client(token=jwt.encode({"sub": user, **claims}, SECRET))


def give(node: LocalNode, order: Order) -> None:
    node.assembly.node.orders.give(order)


def closed_with(client: Client) -> Any:
    return client.socket.closed_with


def subscribed(client: Client, channel: str) -> list[Any]:
    """What the client was told of its subscription by the server."""
    return [
        push["subscribe"]
        for push in client.socket.pushes
        if push.get("channel") == channel and "subscribe" in push
    ]


# ---- who is meant


async def test_an_order_is_for_the_user_on_whatever_node(
    nodes: tuple[LocalNode, LocalNode],
) -> None:
    here, there = nodes
    ann_here, ann_there, bob = (
        await connected(here),
        await connected(there),
        await connected(there, "bob"),
    )
    give(here, DisconnectOrder(Target("ann"), BANNED))
    assert closed_with(ann_here) == BANNED, "here it is carried out at once"
    await until(lambda: closed_with(ann_there))
    assert closed_with(ann_there) == BANNED
    assert closed_with(bob) is None


async def test_an_order_may_be_for_one_client_or_all_but_some(node: LocalNode) -> None:
    ann = [await connected(node) for _ in range(4)]
    bob = await connected(node, "bob")
    give(node, DisconnectOrder(Target("ann", ann[0].id), BANNED))
    give(node, DisconnectOrder(Target(None, ann[1].id), BANNED))
    give(node, DisconnectOrder(Target("ann", bob.id), BANNED))
    give(node, DisconnectOrder(Target("ann", session="s"), BANNED))
    give(node, DisconnectOrder(Target(""), BANNED))
    assert [closed_with(each) for each in (*ann, bob)] == [BANNED, BANNED, None, None, None]
    give(node, DisconnectOrder(Target("ann"), BANNED, frozenset({ann[2].id})))
    assert [closed_with(each) for each in (*ann, bob)] == [BANNED, BANNED, None, BANNED, None]
    assert node.assembly.node.services.roster.users == 2


async def test_a_repeat_is_known_however_much_came_between(node: LocalNode) -> None:
    """Whoever was disconnected may have come back."""
    body = envelope(signals=[order_signal(DisconnectOrder(Target("ann"), BANNED), "b", "1")])
    first = await connected(node)
    node.assembly.intake.take([body])
    assert closed_with(first) == BANNED
    noise = [Signal("join", str(number), "b", "plain:x", {}) for number in range(10_100)]
    node.assembly.intake.take(
        [envelope(signals=noise[at : at + 1000]) for at in range(0, len(noise), 1000)]
    )
    second = await connected(node)
    node.assembly.intake.take([body])
    assert closed_with(second) is None


async def test_what_is_no_order_does_nothing(node: LocalNode) -> None:
    ann = await connected(node)
    with capture_logs() as logs:
        node.assembly.intake.take(
            [
                envelope(signals=[Signal("disconnect", "1", "b", "", {"client": 5})]),
                envelope(signals=[Signal("unheard-of", "2", "b", "", {"user": "ann"})]),
            ]
        )
    assert [entry["event"] for entry in logs] == ["order_malformed"]
    assert closed_with(ann) is None


@pytest.mark.parametrize(
    "kind, said",
    [
        ("disconnect", {"code": 0}),
        ("disconnect", {"code": 1009, "reason": "an SDK would not come back"}),
        ("disconnect", {"code": 4000, "reason": '{"reconnect":false}'}),
        ("refresh", {"expires_at": 2**60}),
        ("subscribe", {"since": {"offset": 2**60}}),
    ],
)
async def test_an_order_that_no_server_gives_is_not_carried_out(
    node: LocalNode, kind: str, said: dict[str, Any]
) -> None:
    """Whoever may publish to the topic can write one."""
    ann = await connected(node)
    with capture_logs() as logs:
        node.assembly.intake.take(
            [envelope(signals=[Signal(kind, "1", "b", "room", {"user": "ann"} | said)])]
        )
    assert [entry["event"] for entry in logs] == ["order_malformed"]
    assert closed_with(ann) is None
    assert ann.socket.pushes == []


async def test_an_order_is_given_to_everybody_or_to_nobody(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await connected(node)
    whitelist = frozenset(f"{number:064d}" for number in range(3000))
    with pytest.raises(TooLarge):
        give(node, DisconnectOrder(Target("ann"), BANNED, whitelist))
    monkeypatch.setattr(broadcaster_module, "WAITING_BYTES_MAX", 0)
    with pytest.raises(Full):
        give(node, DisconnectOrder(Target("ann"), BANNED))
    assert closed_with(ann) is None


# ---- how many at once


def said_by(node: LocalNode, *orders: Order) -> list[str]:
    """One message of another node with `orders`."""
    said = [order_signal(order, "b", f"id-{number}") for number, order in enumerate(orders)]
    return [envelope(signals=said)]


def closed(clients: Sequence[Client]) -> int:
    return sum(closed_with(client) is not None for client in clients)


async def turns_until(done: Callable[[], object], count: Callable[[], int]) -> list[int]:
    """How much `count` grew in each turn of the event loop until `done`."""
    grown, before = [], count()
    while not done():
        await asyncio.sleep(0)
        now = count()
        grown.append(now - before)
        before = now
    return grown


@with_work_a_turn(5)
async def test_an_order_for_many_connections_leaves_others_their_turn(node: LocalNode) -> None:
    ann = [await connected(node) for _ in range(23)]
    give(node, DisconnectOrder(Target("ann"), BANNED))
    assert closed(ann) == 5, "it is begun at once"
    grown = await turns_until(lambda: closed(ann) == len(ann), lambda: closed(ann))
    assert sum(grown) == 18
    assert max(grown) == 5
    assert {closed_with(each) for each in ann} == {BANNED}


@with_work_a_turn(5)
async def test_many_orders_in_one_message_leave_others_their_turn(node: LocalNode) -> None:
    clients = [await connected(node, f"user {number}") for number in range(13)]
    orders = [DisconnectOrder(Target(f"user {number}"), BANNED) for number in range(13)]
    node.assembly.intake.take(said_by(node, *orders))
    assert closed(clients) == 5
    grown = await turns_until(lambda: closed(clients) == 13, lambda: closed(clients))
    assert max(grown) == 5
    # In a turn of its own there is room again.
    late = await connected(node, "late")
    give(node, DisconnectOrder(Target("late"), BANNED))
    assert closed_with(late) == BANNED


@with_work_a_turn(9)
async def test_what_a_connection_is_subscribed_to_counts(node: LocalNode) -> None:
    ann = [await connected(node, channels=["a", "b", "c"]) for _ in range(6)]
    give(node, UnsubscribeOrder(Target("ann"), ""))

    def left() -> int:
        return -sum(len(each.connection.session.channels) for each in ann)

    grown = await turns_until(lambda: left() == 0, left)
    assert max(grown) == 9, "three connections of three subscriptions each"
    assert sum(grown) == 18


@with_work_a_turn(3)
async def test_orders_keep_their_order(node: LocalNode) -> None:
    ann = [await connected(node) for _ in range(8)]
    bob = await connected(node, "bob")
    since = DisconnectCode(4501, "too late")
    node.assembly.intake.take(
        said_by(
            node,
            RefreshOrder(Target("ann"), expires_at=2_000_000_000),
            DisconnectOrder(Target("ann"), BANNED),
            DisconnectOrder(Target("bob"), BANNED),
        )
    )
    give(node, DisconnectOrder(Target("ann"), since))
    await until(lambda: closed_with(bob))
    assert [closed_with(each) for each in ann] == [BANNED] * 8
    for each in ann:
        assert any("refresh" in push for push in each.socket.pushes), "before it was closed"


@with_work_a_turn(3)
async def test_publications_before_an_order_for_many_reach_all_of_them(node: LocalNode) -> None:
    ann = [await connected(node) for _ in range(8)]
    for each in ann:
        await each.subscribe("plain:x")
    before = signals.publication("b", "1", "plain:x", stored_of(Publication("before")))
    order = order_signal(DisconnectOrder(Target("ann"), BANNED), "b", "2")
    node.assembly.intake.take([envelope(signals=[before, order])])
    await until(lambda: closed(ann) == 8)
    for each in ann:
        assert [push["pub"]["data"] for push in each.socket.pushes if "pub" in push] == ["before"]


@with_work_a_turn(1)
async def test_an_order_is_for_those_who_are_there_when_it_comes(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was disconnected may have come back. Whoever has gone meanwhile is left alone."""
    ann = [await connected(node) for _ in range(60)]
    carried_out: list[Order] = []
    monkeypatch.setattr(ann[-1].connection, "order_refresh", carried_out.append)
    give(node, RefreshOrder(Target("ann"), expires_at=2_000_000_000))
    give(node, DisconnectOrder(Target("ann"), BANNED))
    node.assembly.node.closed(ann[-1].connection)
    again = await connected(node)
    assert closed(ann) < 59
    await node.assembly.node.orders.carried_out()
    assert [closed_with(each) for each in ann] == [BANNED] * 59 + [None]
    assert carried_out == []
    assert closed_with(again) is None


@with_work_a_turn(1)
async def test_so_many_connections_wait_for_orders_and_no_more(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_orders, "CONNECTIONS_WAITING_MAX", 4)
    ann, bob = [await connected(node) for _ in range(6)], await connected(node, "bob")
    give(node, DisconnectOrder(Target("ann"), BANNED))
    sent = node.assembly.broadcaster.waiting_bytes
    with pytest.raises(Full):
        give(node, DisconnectOrder(Target("bob"), BANNED))
    assert node.assembly.broadcaster.waiting_bytes == sent, "no node has heard of it"
    with capture_logs() as logs:
        node.assembly.intake.take(said_by(node, DisconnectOrder(Target("bob"), BANNED)))
    assert [entry["event"] for entry in logs if entry["event"].startswith("order")] == [
        "order_shed"
    ]
    await node.assembly.node.orders.carried_out()
    assert closed(ann) == 6
    assert closed_with(bob) is None
    give(node, DisconnectOrder(Target("bob"), BANNED))
    assert closed_with(bob) == BANNED


@with_work_a_turn(2)
async def test_orders_that_came_are_carried_out_before_the_node_says_goodbye(
    node: LocalNode,
) -> None:
    ann, bob = [await connected(node) for _ in range(9)], await connected(node, "bob")
    give(node, DisconnectOrder(Target("ann"), BANNED))
    await node.assembly.node.drain(0.0, lambda: 0.5)
    assert [closed_with(each) for each in ann] == [BANNED] * 9
    assert closed_with(bob) == Disconnect.SHUTDOWN


@with_work_a_turn(0)
async def test_a_node_that_ends_does_not_wait_for_orders_without_end(
    node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "ANSWERS_S", 0.0)
    ann = [await connected(node) for _ in range(3)]
    give(node, DisconnectOrder(Target("ann"), BANNED))
    await node.assembly.node.drain(0.0, lambda: 0.5)
    assert [closed_with(each) for each in ann] == [Disconnect.SHUTDOWN] * 3


# ---- how it gets there


def live(fleet: Fleet, *nodes: LocalNode, lease: str = "") -> None:
    """Leases by which the nodes are found."""
    now = fleet.clock.now_ms()
    for node in nodes:
        name = node.assembly.node.id
        fleet.world.leases[lease or name] = Lease(
            lease or name,
            node.queue_names[-1],
            "live",
            now,
            now,
            now + 60_000,
            badge=badge_of_node(name),
        )


def sent(fleet: Fleet) -> dict[str, int]:
    """Calls that send messages."""
    return {call: fleet.traffic.calls[call] for call in ("post", "publish")}


@pytest.fixture
def found(fleet: Fleet, nodes: tuple[LocalNode, LocalNode]) -> tuple[LocalNode, LocalNode]:
    """Two nodes that hear and find each other."""
    live(fleet, *nodes)
    return nodes


def refreshes(client: Client) -> int:
    return sum("refresh" in push for push in client.socket.pushes)


def refresh(client: Client) -> RefreshOrder:
    return RefreshOrder(Target(None, client.id))


async def test_an_order_for_a_client_goes_to_its_node_whatever_the_topic_says(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    here, there = found
    ann, before = await connected(there), sent(fleet)
    fleet.world.fail_next("publish", Rejected("simulated"), times=100)
    await here.assembly.node.orders.give(DisconnectOrder(Target("ann", ann.id), BANNED))
    await until(lambda: closed_with(ann))
    assert closed_with(ann) == BANNED
    assert sent(fleet) == {"post": 1, "publish": before["publish"]}


async def test_an_order_for_a_client_that_is_here_needs_no_message(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    ann, before = await connected(found[0]), sent(fleet)
    given = found[0].assembly.node.orders.give(DisconnectOrder(Target(None, ann.id), BANNED))
    assert given.done()
    assert closed_with(ann) == BANNED
    # Of this node, and no more here.
    found[0].assembly.node.closed(ann.connection)
    await found[0].assembly.node.orders.give(DisconnectOrder(Target(None, ann.id), BANNED))
    assert sent(fleet) == before


async def test_an_order_is_given_when_it_is_in_the_queue(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    ann, held = await connected(found[1]), fleet.traffic.hold("post", "call")
    given = found[0].assembly.node.orders.give(refresh(ann))
    await held.arrived()
    await settled()
    assert not given.done()
    held.release()
    await given
    await until(lambda: refreshes(ann))


@pytest.mark.parametrize("effect", ["none", "applied"])
async def test_what_a_queue_does_not_take_goes_through_the_topic_and_is_the_same_order(
    fleet: Fleet, found: tuple[LocalNode, LocalNode], effect: Any
) -> None:
    ann, before = await connected(found[1]), sent(fleet)
    fleet.world.fail_next("post", UnknownOutcome("simulated"), effect)
    await found[0].assembly.node.orders.give(refresh(ann))
    assert sent(fleet) == {"post": 1, "publish": before["publish"] + 1}
    await until(lambda: refreshes(ann))
    await settled()
    assert refreshes(ann) == 1


async def test_that_no_queue_takes_orders_is_told_now_and_then(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    """As where `sqs:SendMessage` is not allowed."""
    ann = await connected(found[1])
    fleet.world.fail_next("post", Rejected("simulated"), times=100)
    with capture_logs() as logs:
        for _ in range(20):
            await found[0].assembly.node.orders.give(refresh(ann))
    assert [entry["passed_over"] for entry in logs if entry["event"] == "order_not_mailed"] == [0]


async def test_an_order_that_goes_nowhere_is_told(
    fleet: Fleet, found: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_post_module, "SEND_S", 0.1)
    ann = await connected(found[1])
    fleet.world.fail_next("post", Throttled("simulated"), times=100)
    fleet.world.fail_next("publish", Throttled("simulated"), times=100)
    with capture_logs() as logs, pytest.raises(UnknownOutcome, match="in time"):
        await found[0].assembly.node.orders.give(refresh(ann))
    assert [entry["event"] for entry in logs if entry["event"].startswith("order")] == [
        "order_not_mailed",
        "order_not_sent",
    ]
    assert refreshes(ann) == 0


async def test_a_queue_that_hangs_leaves_time_for_the_topic(
    fleet: Fleet, found: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_post_module, "QUEUE_S", 0.01)
    ann, held = await connected(found[1]), fleet.traffic.hold("post", "call")
    await found[0].assembly.node.orders.give(refresh(ann))
    await until(lambda: refreshes(ann))
    held.release()
    await settled()
    assert refreshes(ann) == 1


async def test_an_order_for_a_user_is_published_until_the_topic_has_it(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    here, there = found
    ann, before = [await connected(here), await connected(there)], sent(fleet)
    fleet.world.fail_next("publish", UnknownOutcome("simulated"), "applied")
    fleet.world.fail_next("publish", Throttled("simulated"))
    given = here.assembly.node.orders.give(RefreshOrder(Target("ann")))
    assert refreshes(ann[0]) == 1, "here at once"
    await until(lambda: sent(fleet)["publish"] == before["publish"] + 2)
    await settled()
    fleet.clock.advance(THROTTLED_S)
    await given
    assert sent(fleet) == {"post": 0, "publish": before["publish"] + 3}
    await until(lambda: refreshes(ann[1]))
    await settled()
    assert [refreshes(each) for each in ann] == [1, 1]


async def test_an_order_that_the_topic_refuses_is_told_at_once(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    fleet.world.fail_next("publish", Rejected("simulated"), times=100)
    with pytest.raises(Rejected):
        await found[0].assembly.node.orders.give(RefreshOrder(Target("ann")))


@pytest.mark.parametrize(
    "client", [str(UUID(int=4, version=4)), client_id("00000000", "0" * CLIENT_DIGITS), "c"]
)
async def test_who_is_not_known_is_looked_for_everywhere(
    fleet: Fleet, found: tuple[LocalNode, LocalNode], client: str
) -> None:
    """Such as clients of an older release; and it is no error that there is nobody."""
    before = sent(fleet)
    await found[0].assembly.node.orders.give(RefreshOrder(Target(None, client)))
    assert sent(fleet) == {"post": 0, "publish": before["publish"] + 1}


async def test_a_node_keeps_its_badge_when_its_lease_is_another(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    here, there = found
    ann, before = await connected(there), sent(fleet)
    await here.assembly.node.orders.give(refresh(ann))
    fleet.world.leases.pop("b")
    live(fleet, there, lease="another")
    fleet.clock.advance(LEASES_S + 0.1)
    await here.assembly.node.orders.give(refresh(ann))
    await until(lambda: refreshes(ann) == 2)
    assert sent(fleet) == {"post": 2, "publish": before["publish"]}


async def test_an_order_for_a_node_whose_queue_is_gone_goes_through_the_topic(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    """It is about to have another, or has it, and its lease does not say so."""
    ann, before = await connected(found[1]), sent(fleet)
    fleet.world.leases["b"] = replace(fleet.world.leases["b"], queue="gone")
    await found[0].assembly.node.orders.give(refresh(ann))
    await until(lambda: refreshes(ann))
    assert sent(fleet)["publish"] == before["publish"] + 1


async def test_nodes_with_one_badge_both_hear(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    here, there = found
    ann = await connected(there)
    fleet.world.leases["c"] = replace(fleet.world.leases["b"], node="c", queue="queue-c")
    fleet.world.create_queue("queue-c")
    await here.assembly.node.orders.give(refresh(ann))
    assert len(fleet.world.queues["queue-c"].waiting) == 1
    await until(lambda: refreshes(ann))


async def test_an_order_may_be_for_a_session(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    here, there = found
    ann, other = await connected(there), await connected(there)
    ann.socket.session = session_name(badge_of_node("b"), "secret")
    before = sent(fleet)
    await here.assembly.node.orders.give(
        DisconnectOrder(Target("ann", session=ann.socket.session), BANNED)
    )
    await until(lambda: closed_with(ann))
    assert closed_with(other) is None
    assert sent(fleet) == {"post": 1, "publish": before["publish"]}


async def test_a_session_goes_to_its_node_or_nowhere(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    """It is a secret, and every program that is subscribed to the topic would read it."""
    give, before = found[0].assembly.node.orders.give, sent(fleet)
    fleet.world.fail_next("post", Throttled("simulated"))
    with pytest.raises(Throttled):
        await give(UnsubscribeOrder(Target("ann", session=badge_of_node("b") + "secret"), ""))
    for nobodys in ("secret", "0" * 8 + "secret"):
        await give(UnsubscribeOrder(Target("ann", session=nobodys), ""))
    assert sent(fleet) == {"post": 1, "publish": before["publish"]}


async def test_for_a_session_whose_node_cannot_be_looked_up_each_order_fails(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    give, before = found[0].assembly.node.orders.give, sent(fleet)
    fleet.world.fail_next("all", UnknownOutcome("simulated"), times=100)
    for _ in range(10):
        with pytest.raises(PortError):
            await give(UnsubscribeOrder(Target("ann", session=badge_of_node("b") + "secret"), ""))
    assert sent(fleet) == before


async def test_orders_for_one_client_that_are_given_together_keep_their_order(
    fleet: Fleet, found: tuple[LocalNode, LocalNode]
) -> None:
    """However large they are."""
    here, there = found
    ann, held = await connected(there), fleet.traffic.hold("post", "call")
    give, target = here.assembly.node.orders.give, Target(None, ann.id)
    given = [give(refresh(ann))]
    await held.arrived()
    given += [
        give(SubscribeOrder(target, "room", ServerSubscription(data="x" * 6000))),
        give(UnsubscribeOrder(target, "room")),
    ]
    await settled()
    held.release()
    await asyncio.gather(*given)
    await until(lambda: subscribed(ann, "room"))
    await settled()
    assert "room" not in ann.connection._subscriptions


async def test_orders_that_are_being_sent_are_bounded(
    fleet: Fleet, found: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = found
    ann, held = await connected(there), fleet.traffic.hold("post", "call")
    orders = here.assembly.node.orders
    first = orders.give(refresh(ann))
    monkeypatch.setattr(order_post_module, "SENDING_BYTES_MAX", orders._post._sending_bytes)
    with pytest.raises(Full):
        orders.give(refresh(ann))
    held.release()
    await first
    await orders.give(refresh(ann))
    await orders.sent()
    assert not orders._post._sending_bytes
    await until(lambda: refreshes(ann) == 2)


# ---- unsubscribe


async def test_a_subscription_is_ended_whoever_made_it(nodes: tuple[LocalNode, LocalNode]) -> None:
    here, there = nodes
    ann, bob = (
        await connected(there, channels=["seen:x"]),
        await connected(there, "bob", channels=["seen:x"]),
    )
    await ann.subscribe("room")
    for channel in ("room", "seen:x"):
        give(here, UnsubscribeOrder(Target("ann"), channel))
    await until(lambda: ann.socket.unsubscribed("room") and ann.socket.unsubscribed("seen:x"))
    assert ann.socket.unsubscribed("room") == ann.socket.unsubscribed("seen:x") == [2000]
    await until(lambda: bob.socket.told("seen:x", "leave"))
    assert bob.socket.told("seen:x", "leave") == [ann.id]
    await there.assembly.background.finish()
    assert (await there.assembly.node.services.presence.members("seen:x")).keys() == {bob.id}
    assert ann.connection.session.channels == set()
    # It may subscribe again.
    assert isinstance(await ann.subscribe("room"), dict)


async def test_what_a_client_says_does_not_meet_an_order_half_way(
    fleet: Fleet, node: LocalNode
) -> None:
    """Also one that came while it waited for another."""
    ann = await connected(node)
    held = fleet.traffic.hold("newest")
    give(node, SubscribeOrder(Target("ann"), "room"))
    await held.arrived()
    saying = asyncio.create_task(ann.say({"subscribe": {"channel": "room"}}))
    await settled()
    give(node, UnsubscribeOrder(Target("ann"), "room"))
    held.release()
    [command] = await saying
    assert "subscribe" in await ann.answer(command)
    assert ann.socket.unsubscribed("room") == [2000]
    assert not ann.connection._subscriptions["room"].is_server_side


async def test_all_subscriptions_may_be_ended_at_once(node: LocalNode) -> None:
    ann = await connected(node)
    for channel in ("one", "two", "plain:x"):
        await ann.subscribe(channel)
    give(node, UnsubscribeOrder(Target("ann"), "not:subscribed"))
    give(node, UnsubscribeOrder(Target("ann"), ""))
    await until(lambda: len(ann.socket.pushes) == 3)
    assert {push["channel"] for push in ann.socket.pushes} == {"one", "two", "plain:x"}
    assert not len(node.assembly.hub)


async def test_a_subscription_that_is_being_made_is_ended_after_it(
    fleet: Fleet, node: LocalNode
) -> None:
    ann = await connected(node)
    held = fleet.traffic.hold("newest")
    [command] = await ann.say({"subscribe": {"channel": "room"}})
    await held.arrived()
    give(node, UnsubscribeOrder(Target("ann"), "room"))
    await settled()
    assert ann.socket.pushes == []
    held.release()
    assert "subscribe" in await ann.answer(command)
    await until(lambda: ann.socket.unsubscribed("room"))
    # What the client says after it waits for it as well.
    held = fleet.traffic.hold("newest")
    [command] = await ann.say({"subscribe": {"channel": "room"}})
    await held.arrived()
    give(node, UnsubscribeOrder(Target("ann"), "room"))
    give(node, SubscribeOrder(Target("ann"), "room"))
    saying = asyncio.create_task(ann.say({"subscribe": {"channel": "room"}}))
    await settled()
    held.release()
    [again] = await saying
    assert (await ann.answer(again))["error"]["code"] == 105
    assert [next(iter(push.keys() - {"channel"})) for push in ann.socket.pushes] == [
        "unsubscribe",
        "unsubscribe",
        "subscribe",
    ]


# ---- subscribe


async def test_a_client_is_subscribed_and_told(nodes: tuple[LocalNode, LocalNode]) -> None:
    here, there = nodes
    bob, ann = await connected(there, "bob", channels=["seen:x"]), await connected(there)
    sub = ServerSubscription(info={"role": "guest"}, data={"hello": 1})
    give(here, SubscribeOrder(Target("ann"), "seen:x", sub))
    await until(lambda: subscribed(ann, "seen:x"))
    assert subscribed(ann, "seen:x") == [{"data": {"hello": 1}}]
    await until(lambda: bob.socket.told("seen:x", "join") == [bob.id, ann.id])
    members = await there.assembly.node.services.presence.members("seen:x")
    assert members[ann.id].chan_info == {"role": "guest"}
    await bob.connection.receive(b'{"id":99,"publish":{"channel":"seen:x","data":1}}')
    assert ann.connection._subscriptions["seen:x"].is_server_side


async def test_publications_follow_the_news(node: LocalNode) -> None:
    writer, ann = await connected(node, "bob"), await connected(node)
    for number in range(1, 4):
        assert await writer.publish("room", number) == {}
    epoch = (await writer.subscribe("room", positioned=True))["epoch"]
    order = SubscribeOrder(Target("ann"), "room", since=StreamPosition(epoch, 1))
    give(node, order)
    await until(lambda: ann.socket.offsets("room") == [2, 3])
    assert subscribed(ann, "room") == [{"positioned": True, "epoch": epoch, "offset": 1}]
    assert "subscribe" in ann.socket.pushes[0], "the news comes first"
    await writer.publish("room", 4)
    await until(lambda: ann.socket.offsets("room") == [2, 3, 4])


async def test_what_cannot_be_recovered_begins_at_the_top(node: LocalNode) -> None:
    writer, ann = await connected(node, "bob"), await connected(node)
    await writer.publish("room", 1)
    epoch = (await writer.subscribe("room", positioned=True))["epoch"]
    give(node, SubscribeOrder(Target("ann"), "room", since=StreamPosition("another", 0)))
    await until(lambda: subscribed(ann, "room"))
    assert subscribed(ann, "room") == [{"positioned": True, "epoch": epoch, "offset": 1}]
    assert ann.socket.offsets("room") == []


async def test_options_of_the_subscription_may_be_others(node: LocalNode) -> None:
    ann = await connected(node)
    sub = ServerSubscription(override=ChannelOverride(force_recovery=True, presence=True))
    give(node, SubscribeOrder(Target("ann"), "room", sub))
    await until(lambda: subscribed(ann, "room"))
    [told] = subscribed(ann, "room")
    assert told["recoverable"] is True
    assert "offset" not in told
    assert (await node.assembly.node.services.presence.members("room")).keys() == {ann.id}


async def test_whoever_is_subscribed_stays_as_they_are(node: LocalNode) -> None:
    ann = await connected(node)
    await ann.subscribe("room")
    give(node, SubscribeOrder(Target("ann"), "room", ServerSubscription(data=1)))
    give(node, SubscribeOrder(Target("ann"), "no:where"))
    await until(lambda: not ann.connection._work.changes)
    assert ann.socket.pushes == []
    assert not ann.connection._subscriptions["room"].is_server_side
    await ann.ask("unsubscribe", channel="room")
    assert ann.connection.session.channels == set()


async def test_a_client_cannot_end_what_the_server_made(node: LocalNode) -> None:
    ann = await connected(node, channels=["room"])
    assert await ann.ask("unsubscribe", channel="room") == {}
    assert await ann.subscribe("room") == 105
    assert await ann.ask("publish", channel="room", data=1) == {}
    assert ann.socket.offsets("room") == [1]


async def test_a_subscription_that_the_log_does_not_answer_for_leaves_nothing(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 0.01)
    ann = await connected(node)
    held = fleet.traffic.hold("newest")
    with capture_logs() as logs:
        give(node, SubscribeOrder(Target("ann"), "seen:x"))
        await held.arrived()
        await until(lambda: not ann.connection._work.changes)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "subscribe_failed"
    ]
    held.release()
    await node.assembly.background.finish()
    assert ann.connection.session.channels == set()
    assert ann.socket.pushes == []
    assert await node.assembly.node.services.presence.members("seen:x") == {}


async def test_a_hole_in_what_the_server_made_closes_the_connection(node: LocalNode) -> None:
    """Its client cannot subscribe again by itself."""
    ann = await connected(node, channels=["room", "seen:x"])
    node.assembly.hub.lost("room")
    assert closed_with(ann) is Disconnect.INSUFFICIENT_STATE
    assert not len(node.assembly.hub)


async def test_a_subscription_for_a_time_ends_with_the_connection(
    fleet: Fleet, node: LocalNode
) -> None:
    ann, bob = await connected(node), await connected(node, "bob")
    now_s = fleet.clock.now_ms() // 1000
    give(node, SubscribeOrder(Target("ann"), "room", expires_at=now_s + 60))
    give(node, SubscribeOrder(Target("bob"), "room", expires_at=now_s))
    await until(lambda: closed_with(bob))
    assert closed_with(bob) is Disconnect.SUBSCRIPTION_EXPIRED
    await until(lambda: not ann.connection._work.changes)
    ends_in = ann.connection._lifetime._deadlines._ends["room"] - asyncio.get_running_loop().time()
    assert 58 < ends_in <= 60
    await ann.say({"sub_refresh": {"channel": "room", "token": "t"}})
    assert closed_with(ann) is Disconnect.BAD_REQUEST


async def test_orders_that_wait_are_bounded(
    fleet: Fleet, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders_module, "ORDERS_UNDER_WAY_MAX", 2)
    ann = await connected(node)
    held = fleet.traffic.hold("newest")
    for channel in ("one", "two", "three"):
        give(node, SubscribeOrder(Target("ann"), channel))
    await held.arrived(2)
    held.release()
    await until(lambda: not ann.connection._work.changes)
    assert ann.connection.session.channels == {"one", "two"}
    give(node, SubscribeOrder(Target("ann"), "three"))
    await until(lambda: ann.connection.session.channels == {"one", "two", "three"})


async def test_an_order_ends_with_its_connection(fleet: Fleet, node: LocalNode) -> None:
    ann = await connected(node)
    held = fleet.traffic.hold("newest")
    give(node, SubscribeOrder(Target("ann"), "seen:x"))
    await held.arrived()
    give(node, UnsubscribeOrder(Target("ann"), "seen:x"))
    ann.connection.close(Disconnect.SHUTDOWN)
    held.release()
    await node.assembly.background.finish()
    await until(lambda: not ann.connection._work.tasks)
    assert not len(node.assembly.hub)
    assert await node.assembly.node.services.presence.members("seen:x") == {}
    assert node.assembly.node.services.roster.find(Target("ann")) == []


# ---- refresh


async def test_how_long_a_connection_lasts_may_be_set(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    here, there = nodes
    ann = await connected(there)
    now_s = fleet.clock.now_ms() // 1000
    give(here, RefreshOrder(Target("ann"), expires_at=now_s + 60, info={"name": "Ann"}))
    await until(lambda: ann.socket.pushes)
    assert ann.socket.pushes == [{"refresh": {"expires": True, "ttl": 60}}]
    assert None in ann.connection._lifetime._deadlines._ends
    assert ann.connection.session.info.conn_info == {"name": "Ann"}
    give(here, RefreshOrder(Target("ann")))
    await until(lambda: len(ann.socket.pushes) == 2)
    assert ann.socket.pushes[1] == {"refresh": {}}
    assert len(ann.connection._lifetime._deadlines) == 0
    assert ann.connection.session.info.conn_info == {"name": "Ann"}


async def test_a_connection_may_have_expired(fleet: Fleet, node: LocalNode) -> None:
    ann, bob = await connected(node), await connected(node, "bob")
    give(node, RefreshOrder(Target("ann"), expired=True))
    assert closed_with(ann) is Disconnect.EXPIRED
    give(node, RefreshOrder(Target("bob"), expires_at=fleet.clock.now_ms() // 1000 - 1))
    assert closed_with(bob) is Disconnect.EXPIRED


# ---- what the log says of it


async def test_an_order_is_logged_where_it_finds_somebody(node: LocalNode) -> None:
    ann = await connected(node)
    with capture_logs() as logs:
        give(node, SubscribeOrder(Target("ann"), "room", ServerSubscription("private", "private")))
        give(node, RefreshOrder(Target(None, ann.id)))
        give(node, RefreshOrder(Target("nobody")))
        await until(lambda: not ann.connection._work.changes)
    assert [entry for entry in logs if entry["event"] == "order"] == [
        {
            "event": "order",
            "log_level": "info",
            "kind": "subscribe",
            "connections": 1,
            "user": "ann",
        },
        {
            "event": "order",
            "log_level": "info",
            "kind": "refresh",
            "connections": 1,
            "client": ann.id,
        },
    ]
    assert "private" not in repr(logs)


async def test_the_table_may_fail(fleet: Fleet, node: LocalNode) -> None:
    ann = await connected(node)
    fleet.world.fail_next("add", Throttled("simulated"))
    give(node, SubscribeOrder(Target("ann"), "seen:x"))
    await until(lambda: not ann.connection._work.changes)
    assert ann.connection.session.channels == set()
