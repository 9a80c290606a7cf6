"""What one client may do: connections of a user, publications and commands a second,
and what happens beyond.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest

from roomcast.auth.verifier import sign_connection
from roomcast.client import read as read_module
from roomcast.client import services as services_module
from roomcast.client import subscribe as subscribe_module
from roomcast.client import work as work_module
from roomcast.client.connection import (
    COMMAND_BYTES_MIN,
    CROWD_BYTES,
    CROWD_PUSH_BYTES,
    FIRSTS_BYTES,
    PUSH_BYTES,
    TURN_BYTES,
)
from roomcast.client.publish import PUBLISH_WAIT_S
from roomcast.client.services import (
    HISTORIES_AT_ONCE,
    REPLIES_A_TURN,
    TOKENS_A_TURN,
    TURNS_AT_ONCE,
)
from roomcast.client.session import CONNECT_BYTES_A_CHANNEL, CONNECT_BYTES_MIN
from roomcast.client.work import (
    COMMANDS_UNDER_WAY_MAX,
    PLACE_BYTES,
    READ_SIZE,
    SUBSCRIBE_SIZE,
)
from roomcast.delivery.open_channel import JOIN_READS_AT_ONCE
from roomcast.log.appender import APPENDS_AT_ONCE
from roomcast.node.assembly import BURST_S, rate
from roomcast.testing.memory import ManualClock
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import Disconnect
from roomcast.wire.commands import JSON_FRAMES, Bounds, Command, Reader
from tests.unit.worlds import (
    SECRET,
    Client,
    Fleet,
    LocalNode,
    logged,
    running,
    settled,
    standing_still,
    until,
)

TOO_MANY = 111


def node_of(**client: Any) -> tuple[Fleet, LocalNode]:
    fleet = Fleet()
    return fleet, fleet.node(**client)


def limits(node: LocalNode) -> dict[str, int]:
    return {
        name: hits for name, hits in node.assembly.node.services.counters.limits.items() if hits
    }


def token(user: str) -> str:
    return sign_connection(user, SECRET, 60)


async def refused(client: Client, **connect: Any) -> None:
    await client.say({"connect": connect})
    assert client.socket.closed_with is Disconnect.CONNECTION_LIMIT


# ---- connections of a user


async def test_a_user_has_so_many_connections_and_no_more() -> None:
    _, node = node_of(secret=SECRET, insecure=False, user_connection_limit=2)
    ann = [await node.client(token=token("ann")) for _ in range(2)]
    await refused(node.open(), token=token("ann"))
    assert limits(node) == {"user_connections": 1}
    # Others are not concerned.
    await node.client(token=token("bob"))
    # One that ends makes room for another.
    node.assembly.node.closed(ann[0].connection)
    await node.client(token=token("ann"))
    await refused(node.open(), token=token("ann"))


async def test_of_those_who_come_together_no_more_are_let_in() -> None:
    _, node = node_of(secret=SECRET, insecure=False, user_connection_limit=3)
    clients = [node.open() for _ in range(10)]
    await asyncio.gather(*(client.say({"connect": {"token": token("ann")}}) for client in clients))
    assert sum(client.socket.closed_with is None for client in clients) == 3


async def test_who_has_no_name_is_not_counted() -> None:
    _, node = node_of(user_connection_limit=1)
    for _ in range(3):
        await node.client()
    assert limits(node) == {}


def test_3504_is_final_to_sdks() -> None:
    assert Disconnect.CONNECTION_LIMIT.value.code == 3504
    assert Disconnect.CONNECTION_LIMIT.value.terminal


# ---- publications


class Waits:
    """Who waits for its rate: the clock goes on for as long as that takes,
    without anybody waiting in truth.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.seconds: list[float] = []
        # Cleared: who waits goes on waiting.
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self.go_on.wait()
        self.clock.advance(seconds)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(work_module, "sleep", waits.sleep)
    return waits


def publishing_node(waits: Waits, rate_limit: float, **client: Any) -> tuple[Fleet, LocalNode]:
    fleet, node = node_of(publish_rate_limit=rate_limit, **client)
    waits.clock = fleet.clock
    return fleet, node


def throttled_s(node: LocalNode) -> float:
    return node.assembly.node.services.counters.throttled_s


async def test_a_loop_of_publications_is_held_to_the_rate_and_never_refused(waits: Waits) -> None:
    fleet, node = publishing_node(waits, 10.0)
    client = await node.client()
    answers = [await client.publish("room", number) for number in range(50)]
    assert answers == [{}] * 50
    assert logged(fleet.world) == list(range(50))
    # Twice the rate at once, then a tenth of a second each.
    assert waits.seconds == pytest.approx([0.1] * 30)
    assert limits(node) == {"publish_rate": 30}
    assert throttled_s(node) == pytest.approx(3.0)


async def test_publications_of_one_frame_wait_as_long_as_they_can(waits: Waits) -> None:
    fleet, node = publishing_node(waits, 10.0)
    client = await node.client()
    ids = await client.say(
        *({"publish": {"channel": "room", "data": number}} for number in range(60))
    )
    codes = [(await client.answer(each)).get("error", {}).get("code") for each in ids]
    # Twice the rate at once, and what there is room for in the time in which they
    # can still be answered.
    in_time = 20 + round(10 * PUBLISH_WAIT_S)
    assert codes == [None] * in_time + [TOO_MANY] * (60 - in_time)
    assert logged(fleet.world) == list(range(in_time)), "refused is not published"
    assert sum(waits.seconds) == pytest.approx(PUBLISH_WAIT_S)
    assert throttled_s(node) == pytest.approx(PUBLISH_WAIT_S)
    assert limits(node) == {"publish_rate": 40}
    # What was refused does not count.
    assert await client.publish("room", "next") == {}
    assert waits.seconds[-1] == pytest.approx(0.1)


async def test_a_publication_that_cannot_wait_is_refused_at_once_and_did_not_happen(
    waits: Waits,
) -> None:
    fleet, node = publishing_node(waits, 0.4)
    client = await node.client()
    assert [await client.publish("room", number) for number in range(3)] == [{}, TOO_MANY, TOO_MANY]
    assert logged(fleet.world) == [0]
    assert waits.seconds == []
    assert throttled_s(node) == 0
    fleet.clock.advance(2.5)
    assert await client.publish("room", "later") == {}


async def test_signals_and_calls_count_and_other_commands_do_not(waits: Waits) -> None:
    _, node = publishing_node(waits, 1.0)
    client = await node.client()
    call = {"method": "roomcast.publish", "data": {"channel": "room", "data": 2}}
    assert await client.publish("plain:x", 1) == {}
    assert (await client.ask("rpc", **call))["data"]["offset"] == 1
    assert waits.seconds == []
    assert await client.publish("plain:x", 3) == {}
    assert waits.seconds == [1.0]
    assert (await client.ask("rpc", **call))["data"]["offset"] == 2
    assert waits.seconds == [1.0, 1.0]
    assert isinstance(await client.ask("history", channel="room", limit=0), dict)
    assert waits.seconds == [1.0, 1.0]


async def test_connections_have_rates_of_their_own(waits: Waits) -> None:
    _, node = publishing_node(waits, 0.4)
    one, other = await node.client(), await node.client()
    assert [await one.publish("room", 1), await one.publish("room", 2)] == [{}, TOO_MANY]
    assert await other.publish("room", 3) == {}


async def test_nothing_is_read_while_a_publication_waits_and_the_end_of_its_connection_is_its_own(
    waits: Waits,
) -> None:
    fleet, node = publishing_node(waits, 1.0)
    client = await node.client()
    assert [await client.publish("room", number) for number in range(2)] == [{}, {}]
    waits.go_on.clear()
    saying = asyncio.create_task(
        client.say(
            {"publish": {"channel": "room", "data": 2}}, {"presence_stats": {"channel": "room"}}
        )
    )
    await until(lambda: waits.seconds)
    await settled()
    assert not saying.done()
    client.connection.close(Disconnect.SHUTDOWN)
    waits.go_on.set()
    ids = await saying
    await settled()
    assert logged(fleet.world) == [0, 1]
    assert [client.socket.reply_to(each) for each in ids] == [None, None]


# ---- commands


async def test_commands_beyond_the_rate_wait_and_keep_their_order() -> None:
    _, node = node_of(command_rate_limit=50.0, channel_limit=1)
    client = node.open()
    reads: list[dict[str, Any]] = [{"presence_stats": {"channel": "room"}}] * 100
    ids = await client.say({"connect": {}}, *reads, {"history": {"channel": "room", "limit": 0}})
    # 101 at once; the clock of the node stands still, so the last one has to wait for a
    # fiftieth of a second.
    counters = node.assembly.node.services.counters
    assert limits(node) == {"command_rate": 1}
    assert counters.throttled_s == pytest.approx(1 / 50)
    await until(lambda: all(client.socket.reply_to(each) for each in ids))
    assert client.socket.closed_with is None


async def test_who_waits_is_not_read_from_and_may_be_closed() -> None:
    _, node = node_of(command_rate_limit=0.01, channel_limit=1)
    client = node.open()
    await client.say({"connect": {}})
    saying = asyncio.create_task(client.say({"publish": {"channel": "room", "data": 1}}))
    await until(lambda: limits(node))
    assert not saying.done()
    client.connection.close(Disconnect.SHUTDOWN)
    saying.cancel()
    await asyncio.gather(saying, return_exceptions=True)
    assert client.socket.closed_with is Disconnect.SHUTDOWN


async def test_a_client_that_comes_back_subscribes_to_all_its_channels_at_once() -> None:
    _, node = node_of(command_rate_limit=1.0, channel_limit=50)
    client = node.open()
    subscribes = [{"subscribe": {"channel": f"plain:{number}"}} for number in range(50)]
    ids = await client.say({"connect": {}}, *subscribes)
    await until(lambda: all(client.socket.reply_to(each) for each in ids))
    assert limits(node) == {}


async def test_limits_that_are_off_hold_nobody_up() -> None:
    _, node = node_of(command_rate_limit=0, publish_rate_limit=0, user_connection_limit=0)
    client = await node.client()
    for number in range(1500):
        assert await client.publish("plain:x", number) == {}
    assert limits(node) == {}


def test_a_rate_is_what_is_configured() -> None:
    assert rate(0, BURST_S) is None
    hundred = rate(100.0, BURST_S, 28)
    assert hundred is not None
    assert (hundred.per_s, hundred.burst) == (100.0, 228.0)
    slow = rate(0.1, BURST_S)
    assert slow is not None
    assert slow.burst == 1.0


# ---- those that answer with error 106


async def test_channels_and_sizes_are_told_apart() -> None:
    _, node = node_of(channel_limit=1, message_size_limit=1024)
    client = await node.client()
    await client.subscribe("room")
    assert await client.subscribe("other") == 106
    assert await client.publish("room", "x" * 2000) == 106
    assert limits(node) == {"channels": 1, "message_size": 1}


# ---- what is decoded, and how much in one turn


class Read:
    """What was decoded of a frame: sizes, and in which turn of the event loop.
    Everything else is as in JSON.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.turns: list[int] = []
        self.turn = 0
        self.reader = Reader(JSON_FRAMES.split, self._decode)

    def _decode(self, line: bytes, bounds: Bounds) -> Command:
        self.sizes.append(len(line) if len(line) <= bounds.command_bytes else 0)
        self.turns.append(self.turn)
        return JSON_FRAMES.decode(line, bounds)

    async def while_others_run(self, taking: Coroutine[None, None, None]) -> None:
        """Count the turns that the event loop takes meanwhile."""
        task = asyncio.ensure_future(taking)
        while not task.done():
            self.turn += 1
            await asyncio.sleep(0)
        await task


def lines(*commands: dict[str, Any]) -> str:
    return "\n".join(json.dumps(command) for command in commands)


@pytest.mark.parametrize("frames", [1, 100], ids=["in one frame", "in frames that came at once"])
async def test_many_commands_let_the_event_loop_go_by(frames: int) -> None:
    _, node = node_of(command_rate_limit=0.0)
    client, read, count = await node.client(), Read(), 100
    said = [{"id": 100 + index, "ping": {}} for index in range(count)]

    async def taken() -> None:
        for chunk in range(frames):
            await client.connection.receive(lines(*said[chunk::frames]), read.reader)

    await read.while_others_run(taken())
    assert len(read.turns) == count
    most = TURN_BYTES // COMMAND_BYTES_MIN
    assert max(Counter(read.turns).values()) <= most
    # No more turns than that takes, either.
    assert read.turn <= count // most + 3


async def test_many_connections_together_let_the_event_loop_go_by() -> None:
    """Each of them has its turn, but not all of them the same one."""
    _, node = node_of(command_rate_limit=0.0)
    count, most = 3 * TURNS_AT_ONCE, TURN_BYTES // COMMAND_BYTES_MIN
    clients, read = [await node.client() for _ in range(count)], Read()

    async def all_say(commands: int) -> None:
        frame = lines(*({"id": 100 + index, "ping": {}} for index in range(commands)))
        await asyncio.gather(*(each.connection.receive(frame, read.reader) for each in clients))

    # Also what each of them may say at once.
    for commands in (most - 1, 4 * most):
        read.turns.clear()
        await read.while_others_run(all_say(commands))
        assert len(read.turns) == count * commands
        assert max(Counter(read.turns).values()) <= CROWD_BYTES // COMMAND_BYTES_MIN + count


async def test_hundreds_that_choose_the_same_moment_let_the_event_loop_go_by() -> None:
    """Each says no more than it may at once; and who says little waits for none of them."""
    _, node = node_of(command_rate_limit=0.0)
    most = TURN_BYTES // COMMAND_BYTES_MIN
    clients = [await node.client() for _ in range(100)]
    read, quiet = Read(), Read()

    async def all_say() -> None:
        frame = lines(*({"id": 100 + index, "ping": {}} for index in range(most - 1)))
        saying = [each.connection.receive(frame, read.reader) for each in clients]
        one = lines({"id": 100, "ping": {}})
        await asyncio.gather(*saying, (await node.client()).connection.receive(one, quiet.reader))

    await read.while_others_run(all_say())
    assert len(read.turns) == len(clients) * (most - 1)
    assert max(Counter(read.turns).values()) <= CROWD_BYTES // COMMAND_BYTES_MIN + len(clients)
    assert quiet.turns == [0], "its own reader counts no turns, so it was the first"


async def test_who_says_one_small_thing_at_a_time_never_waits_behind_those_who_say_much() -> None:
    """Every sixteenth command did: for 0.4 s, behind 300 connections."""
    _, node = node_of(command_rate_limit=0.0)
    turns = node.assembly.node.services.turns
    for _ in range(TURNS_AT_ONCE):
        # The line does not move.
        await turns._places.acquire()
    client, read = await node.client(), Read()
    for index in range(4 * TURN_BYTES // COMMAND_BYTES_MIN):
        said = lines({"id": 100 + index, "ping": {}})
        assert client.connection.take(said, read.reader) is None
        await asyncio.sleep(0)
    # Who does not let others have their turn waits all the same.
    for index in range(TURN_BYTES // COMMAND_BYTES_MIN):
        rest = client.connection.take(lines({"id": 500 + index, "ping": {}}), read.reader)
        assert rest is None
    rest = client.connection.take(lines({"id": 600, "ping": {}}), read.reader)
    assert rest is not None
    turns._places.release()
    await rest


async def test_large_frames_that_wait_keep_nobody_waiting_who_says_little() -> None:
    """They counted in the turn in which they came, and again nobody else had room in it."""
    _, node = node_of(command_rate_limit=0.0)
    large = lines({"id": 100, "rpc": {"method": "x", "data": "x" * 8 * TURN_BYTES}})
    clients = [await node.client() for _ in range(2 * FIRSTS_BYTES // len(large))]
    quiet, read = await node.client(), Read()
    await settled()
    rests = [each.connection.take(large, read.reader) for each in clients]
    assert None not in rests
    assert quiet.connection.take(lines({"id": 100, "ping": {}}), read.reader) is None
    await asyncio.gather(*(rest for rest in rests if rest is not None))


async def test_what_was_pushed_is_owed_for_some_turns() -> None:
    """One publication to many subscribers is more than a turn, and so are the next ones."""
    unordered = ChannelRules(ChannelOptions())
    _, node = node_of(command_rate_limit=0.0, publish_rate_limit=0.0, rules=unordered)
    for each in [await node.client() for _ in range(4 * TURN_BYTES // PUSH_BYTES)]:
        await each.connection.receive(lines({"id": 2, "subscribe": {"channel": "c"}}))
    client, turns = await node.client(), node.assembly.node.services.turns
    await settled()
    for _ in range(TURNS_AT_ONCE):
        # The line does not move.
        await turns._places.acquire()
    for number in (1, 2):
        said = lines({"id": 100 + number, "publish": {"channel": "c", "data": 1}})
        saying = asyncio.create_task(client.connection.receive(said))
        await settled()
        assert saying.done() == (number == 1)
    turns._places.release()
    await saying


async def test_hundreds_of_large_commands_let_the_event_loop_go_by() -> None:
    _, node = node_of(command_rate_limit=0.0, publish_rate_limit=0.0)
    clients, read = [await node.client() for _ in range(50)], Read()
    said = lines({"id": 100, "publish": {"channel": "c", "data": "x" * (TURN_BYTES // 2)}})

    async def all_say() -> None:
        await asyncio.gather(*(each.connection.receive(said, read.reader) for each in clients))

    await read.while_others_run(all_say())
    assert len(read.turns) == len(clients)
    assert max(Counter(read.turns).values()) <= 2 * TURNS_AT_ONCE


async def test_hundreds_that_publish_to_many_subscribers_let_the_event_loop_go_by() -> None:
    """Each publishes once, which goes to all subscribers as it is taken."""
    unordered = ChannelRules(ChannelOptions())
    _, node = node_of(command_rate_limit=0.0, publish_rate_limit=0.0, rules=unordered)
    count = FIRSTS_BYTES // CROWD_PUSH_BYTES // 16
    members = [await node.client() for _ in range(count)]
    for each in members:
        await each.connection.receive(lines({"id": 2, "subscribe": {"channel": "c"}}))
    clients, read = [await node.client() for _ in range(50)], Read()
    said = lines({"id": 100, "publish": {"channel": "c", "data": 1}})

    async def all_say() -> None:
        await asyncio.gather(*(each.connection.receive(said, read.reader) for each in clients))

    await read.while_others_run(all_say())
    assert len(read.turns) == len(clients)
    assert max(Counter(read.turns).values()) <= 16
    assert node.assembly.hub.counters.pushes == len(clients) * count


async def test_what_goes_to_many_subscribers_lets_the_event_loop_go_by() -> None:
    """A publication without history is pushed to all of them as it is taken."""
    unordered = ChannelRules(ChannelOptions())
    _, node = node_of(command_rate_limit=0.0, publish_rate_limit=0.0, rules=unordered)
    count = 2 * TURN_BYTES // PUSH_BYTES
    members = [await node.client() for _ in range(count)]
    for each in members:
        await each.connection.receive(lines({"id": 2, "subscribe": {"channel": "c"}}))
    client, read = await node.client(), Read()
    said = [{"id": 100 + index, "publish": {"channel": "c", "data": 1}} for index in range(8)]
    await read.while_others_run(client.connection.receive(lines(*said), read.reader))
    assert len(read.turns) == 8
    assert max(Counter(read.turns).values()) == 1
    assert node.assembly.hub.counters.pushes == 8 * count


async def test_large_commands_let_the_event_loop_go_by() -> None:
    _, node = node_of(command_rate_limit=0.0, publish_rate_limit=0.0)
    client, read = await node.client(), Read()
    data = "x" * (TURN_BYTES // 2)
    said = [{"id": 100 + index, "publish": {"channel": "c", "data": data}} for index in range(8)]
    await read.while_others_run(client.connection.receive(lines(*said), read.reader))
    assert max(Counter(read.turns).values()) == 1


async def test_before_connect_nothing_large_is_decoded() -> None:
    _, node = node_of(channel_limit=1)
    client, read = node.open(), Read()
    room = CONNECT_BYTES_MIN + CONNECT_BYTES_A_CHANNEL
    connect = lines({"id": 1, "connect": {"data": ""}}).replace('""', f'"{"x" * room}"')
    await client.connection.receive(connect, read.reader)
    assert client.socket.closed_with is Disconnect.BAD_REQUEST
    assert read.sizes == [0]


async def test_what_is_sent_with_connect_is_decoded_after_it() -> None:
    """And not at all, if there is no connection."""
    _, node = node_of(secret=SECRET, insecure=False)
    client, read = node.open(), Read()
    frame = lines({"id": 1, "connect": {"token": "none"}}, {"id": 2, "subscribe": {"channel": "c"}})
    await client.connection.receive(frame, read.reader)
    assert client.socket.closed_with is Disconnect.INVALID_TOKEN
    assert len(read.sizes) == 1


async def test_a_connect_has_no_more_subs_than_a_client_channels() -> None:
    _, node = node_of(channel_limit=2)
    subs = {name: {"recover": True, "epoch": "e"} for name in "abc"}
    many = node.open()
    await many.say({"connect": {"subs": subs}})
    assert many.socket.closed_with is Disconnect.BAD_REQUEST
    few = node.open()
    del subs["a"]
    assert await few.ask("connect", subs=subs)


async def test_a_command_that_is_too_large_is_answered_and_not_decoded() -> None:
    _, node = node_of(message_size_limit=1024)
    client, read = await node.client(), Read()
    said = lines({"publish": {"channel": "c", "data": "x" * 1024}, "id": 7}, {"ping": {}, "id": 8})
    await client.connection.receive(said, read.reader)
    assert read.sizes[0] == 0
    answers = [client.socket.reply_to(command_id) for command_id in (7, 8)]
    assert [answer and answer["error"]["code"] for answer in answers] == [106, 108]
    assert limits(node) == {"message_size": 1}


async def test_histories_that_many_clients_read_are_bounded() -> None:
    fleet, node = node_of()
    clients = [await node.client() for _ in range(HISTORIES_AT_ONCE // 2)]
    held = fleet.traffic.hold("newest")
    ids = [
        await client.say(*({"history": {"channel": "room", "limit": 1}} for _ in range(4)))
        for client in clients
    ]
    await held.arrived(HISTORIES_AT_ONCE)
    await settled()
    assert held.count == HISTORIES_AT_ONCE
    neighbour = await node.client()
    [mine] = await neighbour.say({"history": {"channel": "room", "limit": 1}})
    await settled()
    held.release()
    assert "history" in await neighbour.answer(mine)
    # It waits for few of those that waited before: they are in lines of their own.
    answered = sum(
        client.socket.reply_to(each) is not None
        for client, asked in zip(clients, ids, strict=True)
        for each in asked
    )
    assert answered <= HISTORIES_AT_ONCE + 16
    for client, asked in zip(clients, ids, strict=True):
        for command_id in asked:
            assert "history" in await client.answer(command_id)


async def test_channels_that_others_subscribe_to_keep_nobody_waiting_for_long() -> None:
    """Each subscribe is the first of its channel, and a read."""
    fleet, node = node_of(channel_limit=100)
    held = fleet.traffic.hold("newest")
    flooding = [await node.client() for _ in range(16)]
    said = [
        asyncio.create_task(
            client.say(*({"subscribe": {"channel": f"{name}-{each}"}} for each in range(40)))
        )
        for name, client in enumerate(flooding)
    ]
    await held.arrived(JOIN_READS_AT_ONCE)
    await settled()
    assert held.count == JOIN_READS_AT_ONCE
    neighbour = await node.client()
    mine = asyncio.create_task(neighbour.subscribe("mine"))
    [history] = await neighbour.say({"history": {"channel": "mine"}})
    await until(lambda: held.count > JOIN_READS_AT_ONCE)
    assert held.count == JOIN_READS_AT_ONCE + 1, "the history waits behind no subscribe"
    await settled()
    held.release()
    await mine
    assert fleet.traffic.calls["newest"] <= 2 * JOIN_READS_AT_ONCE
    assert "history" in await neighbour.answer(history)
    for client, saying in zip(flooding, said, strict=True):
        for command_id in await saying:
            assert "subscribe" in await client.answer(command_id)


@pytest.mark.parametrize("named", [False, True], ids=["connections", "connections of one user"])
async def test_channels_that_others_publish_to_keep_nobody_waiting_for_long(named: bool) -> None:
    fleet, node = node_of(secret=SECRET, publish_rate_limit=0)
    held = fleet.traffic.hold("newest")
    flooding = [
        await node.client(**({"token": token("ann")} if named else {}))
        for _ in range(5 if named else 2)
    ]
    for name, client in enumerate(flooding):
        await client.say(
            *({"publish": {"channel": f"{name}-{each}", "data": 1}} for each in range(200))
        )
    await held.arrived(APPENDS_AT_ONCE)
    await settled()
    neighbour = await node.client()
    [mine] = await neighbour.say({"publish": {"channel": "mine", "data": 1}})
    held.release()
    assert "publish" in await neighbour.answer(mine)
    assert len(fleet.world.stream) <= APPENDS_AT_ONCE + 16
    await node.assembly.appender.drain()
    assert len(fleet.world.stream) == 200 * len(flooding) + 1


async def test_all_connections_of_a_user_wait_in_one_line() -> None:
    _, node = node_of(secret=SECRET)
    callers = [
        (await node.client(**connect)).connection._peer.caller
        for connect in ({"token": token("ann")}, {"token": token("ann")}, {}, {})
    ]
    assert callers[0] == callers[1]
    assert len(set(callers)) == 3


async def test_replies_with_a_history_are_made_a_few_in_a_turn() -> None:
    fleet, node = node_of()
    services = node.assembly.node.services
    clients = [await node.client() for _ in range(10)]
    await clients[0].publish("room", 1)
    most, sent = 0, services.counters.sent_frames

    async def pass_turns() -> None:
        nonlocal most, sent
        while True:
            now = services.counters.sent_frames
            most, sent = max(most, now - sent), now
            await asyncio.sleep(0)

    held = fleet.traffic.hold("newest")
    ids = [await client.say({"history": {"channel": "room", "limit": 1}}) for client in clients]
    await held.arrived(len(clients))
    async with running(pass_turns()):
        held.release()
        for client, [command_id] in zip(clients, ids, strict=True):
            assert "history" in await client.answer(command_id)
    assert most == REPLIES_A_TURN


async def test_few_tokens_are_verified_in_a_turn_whoever_sends_them() -> None:
    """With some keys one takes more than a millisecond, also if it is none."""
    _, node = node_of(insecure=False, secret=SECRET)
    failures = node.assembly.node.services.counters.token_failures
    in_turns: list[int] = []

    async def pass_turns() -> None:
        before = 0
        while True:
            in_turns.append(failures["invalid"] - before)
            before = failures["invalid"]
            await asyncio.sleep(0)

    async with running(pass_turns()):
        strangers = [node.open() for _ in range(10)]
        connects = [each.say({"connect": {"token": token("ann")[:-1]}}) for each in strangers]
        await asyncio.gather(*connects)
        await until(lambda: all(each.socket.closed_with is not None for each in strangers))
        ann = await node.client(token=token("ann"))
        said = [{"subscribe": {"channel": f"c{number}", "token": "none"}} for number in range(10)]
        await ann.say(*said)
        await until(lambda: failures["invalid"] == 20)
    # Between two looks there may be the end of one turn and the beginning of the next.
    assert max(in_turns) <= 2 * TOKENS_A_TURN


async def test_one_client_subscribes_to_a_few_channels_at_a_time() -> None:
    fleet, node = node_of(channel_limit=100)
    client = await node.client()
    held = fleet.traffic.hold("newest")
    said = [{"subscribe": {"channel": f"room-{number}"}} for number in range(40)]
    saying = asyncio.create_task(client.say(*said))
    at_once = COMMANDS_UNDER_WAY_MAX * PLACE_BYTES // SUBSCRIBE_SIZE
    await held.arrived(at_once)
    await settled()
    assert held.count == at_once == 16
    held.release()
    for command_id in await saying:
        assert "subscribe" in await client.answer(command_id)


@pytest.mark.parametrize(
    "method, waits_for",
    [("history", "newest"), ("presence", "members"), ("presence_stats", "members")],
)
async def test_few_reads_of_one_client_wait_as_tasks(method: str, waits_for: str) -> None:
    """Python goes through all tasks that wait when it looks for garbage: with hundreds of each
    connection, nobody was served for half a second.
    """
    rules = ChannelRules(ChannelOptions(history_size=10, history_ttl_s=60, presence=True))
    fleet = Fleet()
    node = fleet.node(command_rate_limit=0.0, rules=rules)
    client = await node.client()
    held = fleet.traffic.hold(waits_for, "call")
    said = [{method: {"channel": f"room-{number}"}} for number in range(100)]
    saying = asyncio.create_task(client.say(*said))
    await held.arrived(1)
    await settled()
    under_way = COMMANDS_UNDER_WAY_MAX * PLACE_BYTES // READ_SIZE
    assert client.connection._work.tasks == under_way == 16
    held.release()
    for command_id in await saying:
        assert method in await client.answer(command_id)


@pytest.mark.parametrize("method", ["subscribe", "presence"])
async def test_of_commands_whose_time_is_over_at_once_few_are_refused_in_a_turn(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the table does not answer, those that came together are refused together."""
    monkeypatch.setattr(subscribe_module, "SUBSCRIBE_LIMIT_S", 0.05)
    monkeypatch.setattr(read_module, "PRESENCE_LIMIT_S", 0.05)
    monkeypatch.setattr(services_module, "FAILURES_A_TURN", 3)
    rules = ChannelRules(ChannelOptions(history_size=10, history_ttl_s=60, presence=True))
    fleet = Fleet()
    node = fleet.node(command_rate_limit=0.0, rules=rules)
    fleet.traffic.hold("newest", "call")
    fleet.traffic.hold("members", "call")
    clients = [await node.client() for _ in range(20)]
    loop = asyncio.get_running_loop()
    with standing_still():
        for client in clients:
            await client.say({method: {"channel": f"{client.connection.client}"}})
        await settled()
        now = loop.time() + 1
        loop.time = lambda: now  # type: ignore[method-assign]  # all of them are over now
        refused = [0]
        while refused[-1] < len(clients):
            await asyncio.sleep(0)
            codes = node.assembly.node.services.counters.commands
            refused.append(codes.get((method, 100), 0))
            assert len(refused) < 200
    assert max(after - before for before, after in pairwise(refused)) <= 3
