"""Entries of connections: written and removed in order, also where table or node are slow."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final

import pytest
from structlog.testing import capture_logs

from roomcast.ports import Throttled
from roomcast.presence.book import PresenceBook
from roomcast.presence.connections import ConnectionEntries
from roomcast.testing.memory import ManualClock, MemoryLeases, MemoryPresence, MemoryWorld
from roomcast.wire.event_kinds import connections_of
from tests.unit.worlds import info, settled

NODE: Final = "a"
CHANNEL: Final = connections_of(NODE)


class World:
    """The entries of a node. It takes no further work in the background while it is `full`."""

    def __init__(self) -> None:
        self.memory = MemoryWorld()
        presence = MemoryPresence(self.memory)
        self.book = PresenceBook(presence, MemoryLeases(self.memory), ManualClock(), node=NODE)
        self.entries = ConnectionEntries(self.book, self._start, node=NODE)
        self.full = False
        self._tasks: set[asyncio.Task[None]] = set()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None] | None:
        if self.full:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def done(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)
            await settled()

    @property
    def there(self) -> set[str]:
        """The clients with an entry."""
        return {client for _, client in self.memory.presence.get(CHANNEL, {})}


@pytest.fixture
def world() -> World:
    return World()


async def test_an_entry_is_there_as_long_as_its_connection(world: World) -> None:
    for client in ("c1", "c2"):
        world.entries.connected(info(client, "ann"))
    await world.done()
    assert world.there == {"c1", "c2"}
    assert set(world.memory.presence) == {CHANNEL}
    world.entries.disconnected("c1")
    await world.done()
    assert world.there == {"c2"}
    world.entries.disconnected("c2")
    await world.done()
    assert world.book.is_clean


async def test_who_never_was_connected_is_not_removed(world: World) -> None:
    calls: list[str] = []

    async def noted(call: str, _stage: str) -> None:
        calls.append(call)

    world.memory.pause = noted
    world.entries.disconnected("c1")
    await world.done()
    assert calls == []


async def test_a_removal_waits_for_the_write(world: World) -> None:
    calls: list[str] = []
    gate = asyncio.Event()

    async def noted(call: str, stage: str) -> None:
        if stage == "call":
            calls.append(call)
        if call == "add":
            await gate.wait()

    world.memory.pause = noted
    world.entries.connected(info("c1", "ann"))
    world.entries.disconnected("c1")
    await settled()
    assert calls == ["add"]
    gate.set()
    await world.done()
    assert calls == ["add", "remove"]
    assert world.there == set()
    assert world.book.is_clean


async def test_a_write_that_failed_is_left_to_the_book(world: World) -> None:
    world.memory.fail_next("add", Throttled("slow down"))
    world.entries.connected(info("c1", "ann"))
    await world.done()
    assert world.there == set()
    await world.book._write_again()
    assert world.there == {"c1"}


async def test_a_removal_that_failed_is_left_to_the_book(world: World) -> None:
    world.entries.connected(info("c1", "ann"))
    await world.done()
    world.memory.fail_next("remove", Throttled("slow down"))
    world.entries.disconnected("c1")
    with capture_logs() as logs:
        await world.done()
    assert [line["event"] for line in logs] == ["presence_exit_failed"]
    assert world.there == {"c1"}
    await world.book.finish()
    assert world.there == set()


async def test_a_full_node_says_so_once_and_still_removes(world: World) -> None:
    world.entries.connected(info("c1", "ann"))
    await world.done()
    world.full = True
    with capture_logs() as logs:
        for client in ("c2", "c3"):
            world.entries.connected(info(client, "bob"))
        world.entries.disconnected("c1")
    assert [line["event"] for line in logs] == ["connections_not_told"]
    assert world.there == {"c1"}
    await world.book.finish()
    assert world.there == set()
