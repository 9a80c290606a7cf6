"""I6: real nodes that are killed or suspended, and the reaper: what is removed,
what stays, and who comes back.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.reaper.reaper import Reaper, Report
from roomcast.reaper.rules import REAP_GRACE_MS
from tests.integration.serving import SILENT_S, Aws, Process, deployed, pump, reaping, serving
from tests.websocket import WebSocket

ROOM: Final = "room"
TTL_S: Final = 60
# For what has no event: that a node beat, or found out that it may not.
DEADLINE_S: Final = 45
LOOK_S: Final = 0.1
AHEAD_MS: Final = TTL_S * 1000 + REAP_GRACE_MS - SILENT_S * 1000

CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
presence = true
join_leave = true
force_push_join_leave = true
[node]
drain_s = 0
lease_ttl_s = {TTL_S}
heartbeat_s = 0.5
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(240)]


@dataclass(frozen=True, slots=True)
class Member:
    """A client of one node, subscribed to the room."""

    process: Process
    socket: WebSocket
    client: str


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Aws]:
    with deployed(tmp_path, "dead-") as aws, pump(aws):
        yield aws


@asynccontextmanager
async def fleet(aws: Aws, size: int) -> AsyncIterator[list[Member]]:
    config = aws.config("dead", CONFIG)
    async with aiohttp.ClientSession() as session:
        with ExitStack() as stack:
            # All at once: most of a start is waiting.
            processes = [stack.enter_context(serving(config)) for _ in range(size)]
            members = []
            for process in processes:
                await asyncio.to_thread(process.ready)
                response = await session.ws_connect(f"{process.url}/connection/websocket")
                socket = WebSocket(response)
                client = (await socket.ask("connect"))["client"]
                await socket.ask("subscribe", channel=ROOM)
                members.append(Member(process, socket, client))
            yield members


async def until_found(reaper: Reaper, nodes: set[str]) -> Report:
    """A dry run that finds `nodes` dead, and none that is not of them ever."""
    give_up_s = time.monotonic() + DEADLINE_S
    while True:
        report = await reaper.run(dry_run=True)
        found = {each.node for each in report.nodes}
        assert found <= nodes
        if found == nodes:
            return report
        assert time.monotonic() < give_up_s
        await asyncio.sleep(LOOK_S)


async def presence(member: Member) -> set[str]:
    return set((await member.socket.ask("presence", channel=ROOM))["presence"])


def leavers(member: Member) -> list[str]:
    return [leave["info"]["client"] for leave in member.socket.pushes(ROOM, "leave")]


async def test_of_five_nodes_three_are_killed(aws: Aws) -> None:
    async with fleet(aws, 5) as members, reaping(aws, AHEAD_MS) as reaper:
        dead, living = members[:3], members[3:]
        holdings = {each.process.node: aws.left_of(each.process.node) for each in members}
        assert all(len(held) >= 4 for held in holdings.values()), (
            "queue, subscription, lease, presence"
        )
        for each in dead:
            each.process.signal(signal.SIGKILL)
            each.process.ended()
        names = {each.process.node for each in dead}

        told = await until_found(reaper, names)
        assert {each.outcome for each in told.nodes} == {"found"}
        assert not told.queues
        assert not told.subscriptions
        assert all(len(aws.left_of(name)) == len(holdings[name]) for name in names), (
            "nothing was changed"
        )

        done = await reaper.run()
        assert done.failed == 0
        assert {(each.node, each.outcome, each.members) for each in done.nodes} == {
            (name, "removed", 1) for name in names
        }
        for each in dead:
            assert not aws.left_of(each.process.node)
        for each in living:
            assert len(aws.left_of(each.process.node)) == len(holdings[each.process.node])
            clients = {one.client for one in dead}

            def all_left(each: Any = each, clients: set[str] = clients) -> bool:
                return clients <= set(leavers(each))

            await each.socket.until(all_left)
            assert sorted(leavers(each)) == sorted(clients), "once each"
            assert await presence(each) == {one.client for one in living}
        assert (await reaper.run()).is_empty
        assert all("lease_lost" not in each.process.log for each in living)


async def test_a_node_that_wakes_up_after_it_was_reaped_goes_on(aws: Aws) -> None:
    """Its clients stay connected, miss nothing, and are there again for everybody."""
    async with fleet(aws, 2) as (sleeper, other), reaping(aws, AHEAD_MS) as reaper:
        node = sleeper.process.node
        await sleeper.socket.ask("publish", channel=ROOM, data="before")
        sleeper.process.signal(signal.SIGSTOP)
        try:
            await until_found(reaper, {node})
            done = await reaper.run()
            assert [(each.node, each.outcome) for each in done.nodes] == [(node, "removed")]
            assert not aws.queues_of(node)
            await other.socket.ask("publish", channel=ROOM, data="while it slept")
            await other.socket.until(lambda: leavers(other) == [sleeper.client])
            assert await presence(other) == {other.client}
        finally:
            sleeper.process.signal(signal.SIGCONT)

        def data(member: Member) -> list[Any]:
            return member.socket.data(ROOM)

        await sleeper.socket.until(lambda: data(sleeper) == ["before", "while it slept"])
        await other.socket.until(
            lambda: (
                [join["info"]["client"] for join in other.socket.pushes(ROOM, "join")].count(
                    sleeper.client
                )
                == 1
            )
        )
        assert await presence(other) == {sleeper.client, other.client}
        [lease] = aws.leases() - {other.process.node}
        assert lease != node
        assert "lease_lost" in sleeper.process.log
        give_up_s = time.monotonic() + DEADLINE_S
        while len(aws.queues_of(node)) != 1 or "queue_rebuilt" not in sleeper.process.log:
            assert time.monotonic() < give_up_s, sleeper.process.log
            await asyncio.sleep(LOOK_S)
        await other.socket.ask("publish", channel=ROOM, data="after")
        await sleeper.socket.until(lambda: data(sleeper) == ["before", "while it slept", "after"])
        sleeper.process.signal()
        assert sleeper.process.ended() == 0
        assert not aws.left_of(lease)
        assert not aws.left_of(node)


# Stands for a table that throttles while a node ends.
CANNOT_REMOVE: Final = """
import sys
from roomcast.aws.presence import DynamoPresence
from roomcast.ports import Throttled

async def remove(self, channel, member):
    raise Throttled("too many requests")

DynamoPresence.remove = remove
from roomcast.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


async def test_what_an_orderly_end_could_not_remove_is_left_to_the_reaper(aws: Aws) -> None:
    process = Process(aws.config("dead", CONFIG), "--port", "0", program=("-c", CANNOT_REMOVE))
    try:
        await asyncio.to_thread(process.ready)
        async with aiohttp.ClientSession() as session:
            socket = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
            await socket.ask("connect")
            await socket.ask("subscribe", channel=ROOM)
            process.signal()
            assert await socket.closed() == 3001
            assert await asyncio.to_thread(process.ended) == 0, process.log
    finally:
        await asyncio.to_thread(process.close)
    assert "presence_left_behind" in process.log
    assert not aws.queues_of(process.node)
    assert aws.presence_of(process.node)
    assert aws.leases() == {process.node}, "or nobody would know where to look"
    async with reaping(aws, AHEAD_MS) as reaper:
        done = await reaper.run()
        assert [(each.node, each.outcome, each.members) for each in done.nodes] == [
            (process.node, "removed", 1)
        ]
    assert not aws.left_of(process.node)
