"""What a node's lease says of it, and what the node does when the lease is lost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from roomcast.fleet.lease_record import Lease
from roomcast.node.own_lease import ItsLease, OwnNumbers
from roomcast.wire.publication import Record
from tests.unit.worlds import Fleet, LocalNode

HELD = Lease("a", "queue-a", "live", 1, 2, 3)


@pytest.fixture
def node() -> LocalNode:
    return Fleet().node()


def its_lease(node: LocalNode, url: str | None = None, arn: str | None = None) -> ItsLease:
    assembly = node.assembly
    services = assembly.node.services
    numbers = OwnNumbers(
        services.presence, assembly.node._connections, assembly.hub, services.roster
    )
    return ItsLease(
        numbers,
        SimpleNamespace(queue_url=url, subscription_arn=arn),
        assembly.queue_state,
        assembly.ears,
        services.presence,
    )


async def test_the_lease_says_how_the_node_does(node: LocalNode) -> None:
    client = await node.client()
    await client.subscribe("room")
    await node.client()
    now = node.clock.now_ms()
    node.assembly.ears.hear(Record("canary", "e", 7, 7, now, None), now)
    node.assembly.queue_state.clock.received(5000, 0.0, emptied=False)
    told = its_lease(node, "https://queue", "arn").report(HELD)
    assert (told.node, told.queue, told.state) == ("a", "queue-a", "live")
    assert (told.connections, told.channels, told.users, told.canary) == (2, 1, 1, 7)
    assert (told.queue_url, told.subscription_arn) == ("https://queue", "arn")
    assert told.lag_ms == node.assembly.queue_state.lag_ms
    assert told.skew_ms == node.assembly.queue_state.skew_ms
    await node.close()


def test_what_is_not_known_yet_is_empty(node: LocalNode) -> None:
    told = its_lease(node).report(HELD)
    assert (told.queue_url, told.subscription_arn) == ("", "")


@pytest.mark.parametrize("queue, rebuilt", [("", True), ("queue-b", False)])
def test_what_was_held_under_a_lost_lease_is_replaced(
    node: LocalNode, queue: str, rebuilt: bool
) -> None:
    """A lease that was lost while its queue was being replaced has a new one already."""
    its_lease(node).lost(Lease("a-2", queue, "live", 1, 2, 3))
    assert node.assembly.node.services.presence.node == "a-2"
    assert node.assembly.queue_state.is_gone is rebuilt
