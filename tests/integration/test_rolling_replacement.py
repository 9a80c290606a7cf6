"""Every node of a fleet is replaced by a new one while people talk: nobody misses anything,
and nothing is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.acceptance.peers import SDKS, Event, Peer
from tests.chaos.checker import Bounds, Checker, Entry, Log
from tests.chaos.clients import Balancer, Publisher, open_peer
from tests.integration.serving import STOP_S, Aws, Process, deployed, pump
from tests.requirements import Missing, find_node, required

PREFIX: Final = "rolling-"
NODES: Final = 3
PUBLISHERS: Final = 2
SUBSCRIBERS: Final = 4
CHANNELS: Final = ("red", "green")
# From the last publication to its last delivery.
CONVERGENCE_S: Final = 30.0
SHUTDOWN: Final = 3001

# What one recovery may bring: more than anybody publishes here.
HISTORY_SIZE: Final = 300
HISTORY_TTL_S: Final = 300

CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = {HISTORY_SIZE}
history_ttl = "{HISTORY_TTL_S}s"
force_recovery = true
presence = true
[node]
drain_s = 1
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("rolling"), PREFIX) as aws, pump(aws):
        yield aws


def node_or_none() -> str | None:
    """Without Node.js the Python SDK stands in, unless ROOMCAST_REQUIRE demands it."""
    try:
        return find_node()
    except Missing:
        if "node" in required():
            raise
        return None


def _bounds(_channel: str) -> Bounds:
    """What CONFIG says, for each channel."""
    return Bounds(HISTORY_SIZE, HISTORY_TTL_S)


@dataclass(slots=True)
class Rollout:
    """The nodes behind one address, and what becomes of their clients."""

    aws: Aws
    config: Path
    stack: AsyncExitStack
    # What the load balancer leads to.
    targets: list[str] = field(default_factory=list)
    serving: list[Process] = field(default_factory=list)
    gone: list[Process] = field(default_factory=list)
    checker: Checker = field(default_factory=lambda: Checker(_bounds))
    subscribers: list[Peer] = field(default_factory=list)
    publishers: list[Publisher] = field(default_factory=list)
    delivered: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """One more node, which gets clients as soon as it is ready."""
        process = Process(self.config, "--port", "0")
        self.stack.push_async_callback(asyncio.to_thread, process.close)
        await asyncio.to_thread(process.ready)
        self.serving.append(process)
        self.targets.append(_ws(process))

    async def stop(self) -> None:
        """The oldest node: no new clients, then the signal; it sends away those that it has."""
        process = self.serving.pop(0)
        self.targets.remove(_ws(process))
        process.signal()
        assert await asyncio.to_thread(process.ended, STOP_S) == 0, process.log
        assert "Traceback" not in process.log, process.log
        self.gone.append(process)

    async def open(
        self, name: str, sdk: str, told: Callable[[Event], None], node: str | None
    ) -> Peer:
        link = await self.stack.enter_async_context(Balancer(self.targets, Random(name)))
        peer = open_peer(sdk, link.url, told, node)
        self.stack.push_async_callback(peer.close)
        await peer.connect()
        return peer

    async def open_all(self, node: str | None) -> None:
        for index in range(SUBSCRIBERS):
            name, sdk = f"subscriber {index}", SDKS[index % len(SDKS)]
            peer = await self.open(name, sdk, self._teller(name), node)
            for channel in CHANNELS:
                await peer.subscribe(channel)
            self.subscribers.append(peer)
        for index in range(PUBLISHERS):
            name = f"publisher {index}"
            peer = await self.open(name, SDKS[index % len(SDKS)], lambda event: None, node)
            self.publishers.append(
                Publisher(f"p{index}", peer, CHANNELS, self.checker, Random(name))
            )

    def _teller(self, subscriber: str) -> Callable[[Event], None]:
        def told(event: Event) -> None:
            self.checker.happened(subscriber, event)
            self.delivered.set()

        return told

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        work = [asyncio.create_task(publisher.run(stop)) for publisher in self.publishers]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*work)

    async def settled(self) -> Log:
        """Wait until every subscriber stands where the log ends; nobody publishes any more."""
        log = {
            channel: [
                Entry(epoch, offset, str(data)) for epoch, offset, data in self.aws.log(channel)
            ]
            for channel in CHANNELS
        }
        try:
            async with asyncio.timeout(CONVERGENCE_S):
                while self.checker.lagging(log):
                    self.delivered.clear()
                    await self.delivered.wait()
        except TimeoutError:
            raise AssertionError(self.checker.lagging(log)) from None
        return log


def _ws(process: Process) -> str:
    return f"{process.url.replace('http', 'ws', 1)}/connection/websocket"


async def test_a_fleet_is_replaced_while_people_talk(aws: Aws) -> None:
    async with AsyncExitStack() as stack:
        rollout = Rollout(aws, aws.config("rolling", CONFIG), stack)
        await asyncio.gather(*(rollout.start() for _ in range(NODES)))
        await rollout.open_all(node_or_none())
        async with rollout.publishing():
            for _ in range(NODES):
                await rollout.start()
                await rollout.stop()
        # All are well, so all must be heard: what was lost is found by the one that follows.
        for publisher in rollout.publishers:
            for channel in CHANNELS:
                await publisher.publish_last(channel)
        log = await rollout.settled()

        checker = rollout.checker
        assert checker.finish(log) == []
        assert checker.acknowledged > NODES * PUBLISHERS
        assert checker.told == 0, "everybody recovered"
        for peer in rollout.subscribers:
            moves = [each for each in peer.events if each["event"] == "connecting"]
            assert SHUTDOWN in {each["code"] for each in moves}, "its first node is gone"
        for process in rollout.gone:
            assert aws.left_of(process.node) == []
        assert aws.leases() == {process.node for process in rollout.serving}

        for peer in rollout.subscribers:
            await peer.close()
        while rollout.serving:
            await rollout.stop()
    for process in rollout.gone:
        assert aws.left_of(process.node) == []
    assert aws.leases() == set()
