"""service/roomcast/serve/supervised.py: one process, a real door, and the test as supervisor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from roomcast.concurrency import beside
from roomcast.gateway.door import Door
from roomcast.node.health import Health
from roomcast.ports import UnknownOutcome
from roomcast.serve import supervised as module
from roomcast.serve.entry import Address, Worker, bound
from roomcast.serve.supervised import Supervised, supervised
from tests.unit.worlds import DEADLINE_S, until


class Queue:
    is_gone = False
    failures = 0
    undeleted = ""


class World:
    def __init__(
        self,
        health: Health,
        port: int,
        internal_port: int,
        process: Supervised,
        stop: asyncio.Event,
    ) -> None:
        self.health = health
        self.queue = Queue()
        health.queue = self.queue
        self.port = port
        self.internal_port = internal_port
        self.process = process
        self.stop = stop
        self.opened = 0

    def open(self) -> None:
        self.opened += 1
        self.health.listening = True

    async def listens(self, port: int = 0) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        except ConnectionRefusedError:
            return False
        writer.transport.abort()
        return True


class Talk:
    """The supervisor's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def heard(self) -> str:
        """What is told next, but for signs of life."""
        while (line := await self.line()) == "alive":
            pass
        return line

    async def line(self) -> str:
        async with asyncio.timeout(DEADLINE_S):
            return (await self._reader.readline()).decode().strip()

    def tell(self, word: str) -> None:
        self.writer.write(word.encode() + b"\n")


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)


@asynccontextmanager
async def world() -> AsyncIterator[tuple[World, Talk, Door]]:
    ours, its = socket.socketpair()
    talk = Talk(*await asyncio.open_connection(sock=ours))
    stop, health = asyncio.Event(), Health()
    runner = web.AppRunner(web.Application(), handle_signals=False)
    await runner.setup()
    assert runner.server is not None
    own, own_internal = bound("127.0.0.1", 0), bound("127.0.0.1", 0)
    door = Door(runner.server, own, places_max=10)
    internal_door = Door(runner.server, own_internal, places_max=10)
    door.open()
    internal_door.open()
    with bound("127.0.0.1", 0, shared=True) as holder, bound("127.0.0.1", 0, shared=True) as other:
        port, internal_port = holder.getsockname()[1], other.getsockname()[1]
        worker = Worker(its.detach(), port, own.getsockname()[1])
        internal = Address("127.0.0.1", internal_port)
        async with supervised(worker, stop, "127.0.0.1", internal) as process:
            made = World(health, port, internal_port, process, stop)
            assert (process.port, process.internal_port) == (port, internal_port)
            work = process.follow(
                door,
                health,
                node="n-1",
                port=worker.own_port,
                opened=made.open,
                internal_door=internal_door,
            )
            async with beside(work):
                assert await talk.heard() == f"started n-1 {worker.own_port}"
                yield made, talk, door
        await door.end()
        await internal_door.end()
        await runner.cleanup()
        talk.writer.close()


async def test_it_listens_when_it_is_told() -> None:
    async with world() as (made, talk, _):
        assert not await made.listens()
        talk.tell("open")
        await until(lambda: made.opened)
        assert await made.listens()
        talk.tell("shut")
        async with asyncio.timeout(DEADLINE_S):
            while await made.listens():
                pass
        talk.tell("open")
        async with asyncio.timeout(DEADLINE_S):
            while not await made.listens():
                pass
        assert made.opened == 1, "it is ready once"


async def test_it_tells_when_its_health_changes_and_not_before_it_is_open() -> None:
    async with world() as (made, talk, _):
        made.queue.is_gone = True
        talk.tell("open")
        assert await talk.heard() == "unready"
        assert made.opened
        made.queue.is_gone = False
        assert await talk.heard() == "ready"


async def test_it_gives_signs_of_life_whatever_it_is_told() -> None:
    async with world() as (_, talk, _):
        assert [await talk.line() for _ in range(3)] == ["alive"] * 3


async def test_one_that_drains_stays_away_from_the_port_whatever_it_is_told() -> None:
    async with world() as (made, talk, door):
        talk.tell("open")
        await until(lambda: made.opened)
        talk.tell("shut")
        async with asyncio.timeout(DEADLINE_S):
            while await made.listens():
                pass
        made.health.draining = True
        await door.close()
        talk.tell("open")
        assert await talk.heard() == "unready"
        assert not await made.listens()
        assert await made.listens(made.internal_port), "that it drains is to be read there"


async def test_it_listens_at_the_internal_port_as_it_is_told() -> None:
    async with world() as (made, talk, _):
        assert not await made.listens(made.internal_port)
        talk.tell("open")
        await until(lambda: made.opened)
        assert await made.listens(made.internal_port)
        talk.tell("shut")
        async with asyncio.timeout(DEADLINE_S):
            while await made.listens(made.internal_port):
                pass


def test_what_is_internal_may_share_the_port_of_clients() -> None:
    process = Supervised(None, Address("127.0.0.1", 8000), None)  # type: ignore[arg-type]
    assert process.internal_port == process.port == 8000


@pytest.mark.parametrize("word, others", [("last", False), ("others", True)])
async def test_who_releases_the_machine_is_asked(word: str, others: bool) -> None:
    async with world() as (made, talk, _):
        answer = asyncio.create_task(made.process.others_here())
        assert await talk.heard() == "asks"
        assert not answer.done()
        talk.tell(word)
        assert await answer is others


async def test_a_supervisor_that_is_gone() -> None:
    async with world() as (made, talk, _):
        talk.writer.close()
        async with asyncio.timeout(DEADLINE_S):
            await made.stop.wait()
        with pytest.raises(UnknownOutcome):
            await made.process.others_here()
