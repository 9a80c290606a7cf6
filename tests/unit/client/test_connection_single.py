"""service/roomcast/client/connect.py: of a user's connections, only the newest one remains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import jwt
import pytest

from roomcast.delivery import broadcaster as broadcaster_module
from roomcast.fleet import order_post as order_post_module
from roomcast.fleet.badges import badge_of_node
from roomcast.fleet.lease_record import Lease
from roomcast.fleet.order_signals import ReplaceOrder, Target, order_signal
from roomcast.ports import Rejected
from roomcast.wire.codes import Disconnect
from tests.unit.worlds import SECRET, Client, Fleet, LocalNode, envelope, settled, until

GONE = Disconnect.CONNECTION_LIMIT


def alone(fleet: Fleet, name: str, **changes: Any) -> LocalNode:
    return fleet.node(
        name,
        insecure=False,
        secret=SECRET,
        subscribe_to_user_personal_channel=True,
        user_personal_single_connection=True,
        allow_anonymous_connect_without_token=True,
        **changes,
    )


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def nodes(fleet: Fleet) -> AsyncIterator[tuple[LocalNode, LocalNode]]:
    """Two nodes that hear and find each other."""
    made = (alone(fleet, "a"), alone(fleet, "b"))
    async with AsyncExitStack() as running:
        for node in made:
            await running.enter_async_context(node.running())
        now = fleet.clock.now_ms()
        for node in made:
            name = node.assembly.node.id
            fleet.world.leases[name] = Lease(
                name,
                node.queue_names[-1],
                "live",
                now,
                now,
                now + 60_000,
                badge=badge_of_node(name),
            )
        yield made
        for node in made:
            await node.close()


async def connected(node: LocalNode, user: str = "ann") -> Client:
    return await node.client(token=jwt.encode({"sub": user}, SECRET))


def ended(client: Client) -> Any:
    return client.socket.closed_with


async def test_a_new_connection_closes_the_others_on_all_nodes(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    here, there = nodes
    bob, nobody = await connected(here, "bob"), [await here.client() for _ in range(2)]
    first = await connected(here)
    fleet.clock.advance(1)
    second = await connected(here)
    assert ended(first) is GONE, "here it is closed at once"
    fleet.clock.advance(1)
    third = await connected(there)
    await until(lambda: ended(second))
    assert ended(second) is GONE
    await settled()
    assert [ended(each) for each in (third, bob, *nobody)] == [None] * 4
    assert GONE.value.terminal, "its SDK does not come back, or the two would take turns"


async def test_of_two_at_one_moment_exactly_one_remains(
    nodes: tuple[LocalNode, LocalNode],
) -> None:
    """Neither has heard of the other when it connects; and their clocks say the same."""
    for attempt in range(8):
        both = await asyncio.gather(*(connected(node, f"u{attempt}") for node in nodes))
        loser, winner = sorted(both, key=lambda client: client.id)
        await until(lambda loser=loser: ended(loser))  # type: ignore[misc]
        await settled()
        assert (ended(loser), ended(winner)) == (GONE, None)


async def test_of_many_at_one_moment_exactly_one_remains(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    random = Random(89)

    async def come() -> Client:
        """It may be closed before it is answered."""
        fleet.clock.advance(random.choice([0, 0, 0.001]))
        client = random.choice(nodes).open()
        await client.say({"connect": {"token": jwt.encode({"sub": "ann"}, SECRET)}})
        return client

    clients = await asyncio.gather(*(come() for _ in range(20)))
    await until(lambda: sum(ended(each) is None for each in clients) == 1)
    await settled()
    (left,) = [each for each in clients if ended(each) is None]
    await until(lambda: left.socket.reply_to(1))
    newest = max(clients, key=lambda each: (each.connection.since_ms, each.id))
    assert left is newest


async def test_a_newcomer_by_a_clock_that_is_behind_is_told_to_go(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    """One node only knows its own clock. So which of two is older does not depend on who looks."""
    here, there = nodes
    fleet.clock.advance(5)
    first = await connected(here)
    fleet.clock.advance(-2)
    second = await connected(there)
    await until(lambda: ended(second))
    assert (ended(first), ended(second)) == (None, GONE)


async def test_an_order_that_comes_late_closes_nobody(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode]
) -> None:
    here = nodes[0]
    old = ReplaceOrder(Target("ann"), "one that is gone", fleet.clock.now_ms() - 1)
    ann = await connected(here)
    here.assembly.intake.take([envelope(signals=[order_signal(old, "b", "late")])])
    await settled()
    assert ended(ann) is None
    # Nor does its own one, which comes back from the topic.
    own = ReplaceOrder(Target("ann"), ann.id, ann.connection.since_ms)
    here.assembly.intake.take([envelope(signals=[order_signal(own, "b", "own")])])
    assert ended(ann) is None


async def test_what_the_topic_refuses_has_to_come_again(
    fleet: Fleet, nodes: tuple[LocalNode, LocalNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there might be two: other nodes do not hear of it."""
    fleet.world.fail_next("publish", Rejected("simulated"), times=100)
    ann = await connected(nodes[0])
    await until(lambda: ended(ann))
    assert ended(ann) is Disconnect.SERVER_ERROR
    assert not Disconnect.SERVER_ERROR.value.terminal


@pytest.mark.parametrize(
    "module, name",
    [(order_post_module, "SENDING_BYTES_MAX"), (broadcaster_module, "WAITING_BYTES_MAX")],
)
async def test_who_cannot_be_told_of_is_not_let_in(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.setattr(module, name, 0)
    node = alone(fleet, "a")
    client = node.open()
    assert await client.connect(token=jwt.encode({"sub": "ann"}, SECRET)) == 100
    assert node.assembly.node.services.roster.of_user("ann") == 0
    await node.close()


async def test_the_limit_of_a_users_connections_does_not_keep_the_newest_out(fleet: Fleet) -> None:
    node = alone(fleet, "a", user_connection_limit=1)
    first = await connected(node)
    fleet.clock.advance(1)
    second = await connected(node)
    assert (ended(first), ended(second)) == (GONE, None)
    await node.close()


async def test_without_the_option_nobody_is_told(fleet: Fleet) -> None:
    node = fleet.node("a", insecure=False, secret=SECRET)
    first, second = await connected(node), await connected(node)
    assert (ended(first), ended(second)) == (None, None)
    assert (first.connection.since_ms, fleet.traffic.calls["publish"]) == (0, 0)
    await node.close()
