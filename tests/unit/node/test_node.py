"""One node: its connections and their limit, its background, its drain,
and what comes round.
"""

from __future__ import annotations

import asyncio
from math import inf
from types import SimpleNamespace
from typing import Final

import pytest

from roomcast.backoff import Backoff
from roomcast.node import node as node_module
from roomcast.node.node import BACKGROUND_MAX, Background
from roomcast.presence import book as book_module
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Disconnect
from tests.unit.worlds import DEADLINE_S, Fleet, logged, no_jitter, running, settled, until


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


# ---- connections


async def test_connections_are_counted_until_they_are_closed(fleet: Fleet) -> None:
    node = fleet.node()
    clients = [node.open() for _ in range(3)]
    assert len(node.assembly.node) == 3
    for client in clients:
        node.assembly.node.closed(client.connection)
        node.assembly.node.closed(client.connection)
    assert len(node.assembly.node) == 0


async def test_a_full_node_takes_no_clients(fleet: Fleet) -> None:
    node = fleet.node(connection_limit=2)
    first = node.open()
    assert node.assembly.node.takes_clients()
    second = node.open()
    assert not node.assembly.node.takes_clients()
    for client in (first, second):
        node.assembly.node.closed(client.connection)
    assert node.assembly.node.takes_clients()


async def test_without_a_limit_there_is_always_room(fleet: Fleet) -> None:
    node = fleet.node(connection_limit=0)
    clients = [node.open() for _ in range(50)]
    assert node.assembly.node.takes_clients()
    for client in clients:
        node.assembly.node.closed(client.connection)


async def test_a_draining_node_takes_no_clients(fleet: Fleet) -> None:
    node = fleet.node()
    node.assembly.node.health.draining = True
    assert not node.assembly.node.takes_clients()


# ---- drain


async def test_a_drain_tells_every_client_to_go_elsewhere(fleet: Fleet) -> None:
    node = fleet.node()
    clients = [await node.client() for _ in range(5)]
    for client in clients:
        await client.subscribe("all:room")
    await node.assembly.node.drain(0, no_jitter)
    assert {client.socket.closed_with for client in clients} == {Disconnect.SHUTDOWN}
    await node.assembly.background.finish()
    assert fleet.world.presence == {}
    assert len(node.assembly.dispatcher) == 0


async def test_a_drain_of_nobody_takes_no_time(fleet: Fleet) -> None:
    await asyncio.wait_for(fleet.node().assembly.node.drain(3600, no_jitter), 1)


async def test_a_drain_closes_in_slices_over_its_time(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices: Final = 10
    monkeypatch.setattr(node_module, "_SLICES_MAX", slices)
    node = fleet.node()
    clients = [node.open() for _ in range(95)]
    slept: list[float] = []
    open_before: list[int] = []

    def still_open() -> int:
        return sum(client.socket.closed_with is None for client in clients)

    async def recorded(delay: float) -> None:
        slept.append(delay)
        open_before.append(still_open())

    monkeypatch.setattr("roomcast.node.node.asyncio.sleep", recorded)
    await node.assembly.node.drain(30, lambda: 0.5)
    assert slept == pytest.approx([3.0] * (slices - 1))
    closed = [
        before - after for before, after in zip([95, *open_before], [*open_before, 0], strict=True)
    ]
    assert all(9 <= count <= 10 for count in closed)
    assert still_open() == 0


async def test_a_client_that_goes_during_a_drain_is_no_trouble(fleet: Fleet) -> None:
    node = fleet.node()
    clients = [node.open() for _ in range(3)]
    draining = asyncio.create_task(node.assembly.node.drain(0.01, no_jitter))
    await asyncio.sleep(0)
    for client in clients:
        node.assembly.node.closed(client.connection)
    await draining
    assert len(node.assembly.node) == 0


async def test_a_drain_answers_what_is_under_way_first(fleet: Fleet) -> None:
    """A publication that is not answered may be published again elsewhere."""
    node = fleet.node()
    client, idle = await node.client(), await node.client()
    held = fleet.traffic.hold("put_item", "answer")
    [first] = await client.say({"publish": {"channel": "room", "data": 1}})
    await held.arrived()
    [second] = await client.say({"publish": {"channel": "room", "data": 2}})
    draining = asyncio.create_task(node.assembly.node.drain(0, no_jitter))
    await until(lambda: idle.socket.closed_with is Disconnect.SHUTDOWN)
    await settled()
    assert client.socket.closed_with is None
    held.release()
    await draining
    assert client.socket.closed_with is Disconnect.SHUTDOWN
    assert [client.socket.reply_to(each) for each in (first, second)] == [
        {"id": first, "publish": {}},
        {"id": second, "publish": {}},
    ]
    assert logged(fleet.world) == [1, 2]


async def test_a_drain_takes_no_further_commands(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not of the frame that is being taken, nor those that wait for their time:
    what is not answered was not done.
    """
    node = fleet.node()
    client = await node.client()
    held = fleet.traffic.hold("put_item", "answer")
    await client.say({"publish": {"channel": "room", "data": 1}})
    await held.arrived()
    paused = asyncio.Event()
    going_on = asyncio.Event()

    async def keep() -> float:
        paused.set()
        await going_on.wait()
        return 1.0

    monkeypatch.setattr(client.connection, "_pace", SimpleNamespace(keep=keep, take=bool))
    publishes = [{"publish": {"channel": "room", "data": each}} for each in (2, 3)]
    saying = asyncio.create_task(client.say(*publishes))
    await paused.wait()
    draining = asyncio.create_task(node.assembly.node.drain(0, no_jitter))
    await settled()
    going_on.set()
    await saying
    await client.say({"publish": {"channel": "room", "data": 4}})
    held.release()
    await draining
    await node.assembly.appender.drain()
    assert logged(fleet.world) == [1]
    assert [line["id"] for line in client.socket.lines if "publish" in line] == [2]


async def test_what_waits_for_a_place_when_the_connection_ends_is_not_published(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roomcast.client.work.COMMANDS_UNDER_WAY_MAX", 1)
    node = fleet.node()
    client = await node.client()
    held = fleet.traffic.hold("put_item", "answer")
    publishes = [{"publish": {"channel": "room", "data": each}} for each in (1, 2)]
    saying = asyncio.create_task(client.say(*publishes))
    await held.arrived()
    client.connection.close(Disconnect.SHUTDOWN)
    held.release()
    await saying
    await node.assembly.appender.drain()
    assert logged(fleet.world) == [1]


async def test_a_drain_waits_for_answers_within_a_bound(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "ANSWERS_S", 0.02)
    node = fleet.node()
    client = await node.client()
    held = fleet.traffic.hold("put_item")
    await client.say({"publish": {"channel": "room", "data": 1}})
    await held.arrived()
    await asyncio.wait_for(node.assembly.node.drain(0, no_jitter), DEADLINE_S)
    assert client.socket.closed_with is Disconnect.SHUTDOWN
    held.release()
    await node.assembly.appender.drain()


async def test_a_drain_does_not_wait_for_who_is_gone(fleet: Fleet) -> None:
    node = fleet.node()
    client = await node.client()
    held = fleet.traffic.hold("put_item")
    await client.say({"publish": {"channel": "room", "data": 1}})
    await held.arrived()
    draining = asyncio.create_task(node.assembly.node.drain(0, no_jitter))
    await settled()
    assert not draining.done()
    node.assembly.node.closed(client.connection)
    await until(draining.done)
    held.release()
    await node.assembly.appender.drain()


async def test_who_comes_through_the_handshake_during_a_drain_is_told_at_once(fleet: Fleet) -> None:
    node = fleet.node()
    node.assembly.node.health.draining = True
    assert node.open().socket.closed_with is Disconnect.SHUTDOWN


# ---- background


async def test_background_work_is_bounded_in_how_much_runs_at_once() -> None:
    background, release = Background(), asyncio.Event()
    running = most = done = 0

    async def work() -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        done += 1

    for _ in range(5 * BACKGROUND_MAX):
        background.start(work())
    await settled()
    assert running == BACKGROUND_MAX
    finishing = asyncio.create_task(background.finish())
    release.set()
    await finishing
    assert (done, most) == (5 * BACKGROUND_MAX, BACKGROUND_MAX)


async def test_background_work_is_bounded_in_how_much_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_module, "BACKGROUND_WAITING_MAX", 2)
    background, done = Background(), list[int]()

    async def work(number: int) -> None:
        done.append(number)

    tasks = [background.start(work(number)) for number in range(BACKGROUND_MAX + 3)]
    assert tasks[-1] is None
    assert None not in tasks[:-1]
    await background.finish()
    assert len(done) == BACKGROUND_MAX + 2
    assert background.start(work(0)) is not None
    await background.finish()


async def test_who_leaves_while_too_many_do_is_removed_later(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that come and go faster than the table takes it would fill the memory."""
    monkeypatch.setattr(node_module, "BACKGROUND_WAITING_MAX", -BACKGROUND_MAX)
    monkeypatch.setattr(book_module, "EXIT_RETRY_S", 0.0)
    options = ChannelOptions(presence=True, allow_subscribe_for_client=True)
    node = fleet.node(rules=ChannelRules(without_namespace=options))
    client = await node.client()
    await client.ask("subscribe", channel="seen")
    assert len(fleet.world.presence["seen"]) == 1
    await client.ask("unsubscribe", channel="seen")
    presence = node.assembly.node.services.presence
    assert await presence.members("seen") == {}
    assert len(fleet.world.presence["seen"]) == 1
    async with running(presence.run()):
        await until(lambda: presence.is_clean)
    assert not fleet.world.presence.get("seen")


async def test_waiting_for_the_background_includes_what_it_starts() -> None:
    background, order = Background(), list[str]()

    async def second() -> None:
        order.append("second")

    async def first() -> None:
        background.start(second())
        order.append("first")

    background.start(first())
    await background.finish()
    assert order == ["first", "second"]


async def test_cancelled_work_that_waited_for_a_place_never_begins() -> None:
    """And is closed: a coroutine that was never awaited is a warning, and so an error here."""
    background, release = Background(), asyncio.Event()
    begun: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        await release.wait()

    tasks = [background.start(work(number)) for number in range(BACKGROUND_MAX + 1)]
    await until(lambda: len(begun) == BACKGROUND_MAX)
    last = tasks[-1]
    assert last is not None
    last.cancel()
    await settled()
    release.set()
    await background.finish()
    assert begun == list(range(BACKGROUND_MAX))


async def test_what_a_node_wrote_comes_round(fleet: Fleet) -> None:
    node = fleet.node()
    async with node.running():
        client = await node.client()
        await client.publish("room", 1)
        rounds = node.assembly.ears.rounds
        assert rounds.due_s < inf
        fleet.stream_to_topic()
        await client.publish("room", 2)
        await until(lambda: rounds.due_s == inf)


async def test_a_queue_that_was_rebuilt_is_followed_by_a_look_at_open_channels(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5: what was published while the node could not hear."""
    monkeypatch.setattr("roomcast.delivery.poller._BACKOFF", Backoff(0.0, 0.0))
    node, other = fleet.node(), fleet.node("b")
    async with node.running():
        client = await node.client()
        await client.subscribe("all:room")
        fleet.world.delete_queue(node.queue_names[-1])
        writer = await other.client()
        await writer.publish("all:room", "missed")
        await until(lambda: client.socket.published("all:room") == ["missed"])
