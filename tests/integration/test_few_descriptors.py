"""A node with few descriptors, and more connections than it has: who is inside works on,
and who waits gets in.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any, Final

import aiohttp
import pytest

from benchmarks.floods import SILENT_MAX_MS
from roomcast.gateway.door import REQUEST_S
from roomcast.serve.descriptors import places
from tests.integration.serving import Aws, Process, deployed, environment
from tests.websocket import WebSocket

DESCRIPTORS: Final = 200
CONNECTIONS: Final = 300
PUBLICATIONS: Final = 40
DEADLINE_S: Final = 45.0
# As `python -m roomcast`, under a limit that it cannot raise.
LIMITED: Final = (
    "-c",
    (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, "
        f"{DESCRIPTORS})); "
        "from roomcast.cli.main import main; sys.exit(main(sys.argv[1:]))"
    ),
)
CONFIG: Final = """
[client]
insecure = true
[channel.without_namespace]
history_size = 10
history_ttl = "60s"
[node]
drain_s = 0
heartbeat_s = 1
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("few"), "few-") as aws:
        yield aws


@pytest.fixture
async def node(aws: Aws) -> AsyncIterator[Process]:
    process = Process(
        aws.config("few", CONFIG), "--port", "0", environ=environment(), program=LIMITED
    )
    try:
        await asyncio.to_thread(process.ready)
        yield process
        process.signal()
        assert await asyncio.to_thread(process.ended) == 0
    finally:
        process.close()


class Client:
    """Of a node that may take its time."""

    def __init__(self, session: aiohttp.ClientSession, node: Process) -> None:
        self._session = session
        self._node = node
        self.socket: WebSocket | None = None

    async def come(self) -> WebSocket:
        async with asyncio.timeout(DEADLINE_S):
            response = await self._session.ws_connect(f"{self._node.url}/connection/websocket")
            self.socket = WebSocket(response)
            assert (await self.socket.ask("connect"))["client"]
            return self.socket


async def published(client: WebSocket, numbers: range) -> list[float]:
    """Each one is acknowledged, so it is in the table. How long each took, in s."""
    took_s: list[float] = []
    for number in numbers:
        begun_s = time.perf_counter()
        async with asyncio.timeout(DEADLINE_S):
            assert await client.ask("publish", channel="room", data=number) == {}
        took_s.append(time.perf_counter() - begun_s)
    return took_s


def told(node: Process, event: str) -> list[str]:
    return [line for line in node.lines if f'"event":"{event}"' in line]


async def test_silent_sockets_keep_nobody_inside_from_publishing(aws: Aws, node: Process) -> None:
    async with aiohttp.ClientSession() as session:
        inside = await Client(session, node).come()
        await published(inside, range(PUBLICATIONS))
        with ExitStack() as silent:
            for _ in range(CONNECTIONS):
                silent.enter_context(socket.create_connection(("127.0.0.1", node.port), DEADLINE_S))
            await asyncio.to_thread(node.said, "places_taken", DEADLINE_S)
            outside = asyncio.create_task(Client(session, node).come())
            took_s = await published(inside, range(PUBLICATIONS, 2 * PUBLICATIONS))
        # They left, or were ended for their silence: there is a place.
        newcomer = await outside
        await published(newcomer, range(2 * PUBLICATIONS, 2 * PUBLICATIONS + 5))
        for each in (newcomer, inside):
            await each.response.close()
    # Half of them, so that a machine which does something else meanwhile changes nothing. The
    # benchmark looks at 99 of 100.
    assert statistics.median(took_s) * 1000 < SILENT_MAX_MS
    offsets = {data: offset for _, offset, data in aws.log("room")}
    assert list(offsets) == list(range(2 * PUBLICATIONS + 5))
    assert "Traceback" not in node.log
    assert len(told(node, "places_taken")) <= 20
    assert len(told(node, "accept_failed") + told(node, "library_log")) == 0


async def test_a_node_that_is_full_of_clients_refuses_and_is_still_healthy(node: Process) -> None:
    most = places(DESCRIPTORS, 0).clients
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        come = [Client(session, node).come() for _ in range(most)]
        clients: list[Any] = await asyncio.gather(*come)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await Client(session, node).come()
        async with session.get(f"{node.url}/health/ready") as answer:
            assert (await answer.json())["connections"] == most
        await published(clients[0], range(5))
        await clients[1].response.close()
        clients[1] = await Client(session, node).come()
        await published(clients[1], range(5))
        await asyncio.gather(*(each.response.close() for each in clients))


async def test_silent_sockets_keep_nobody_from_the_internal_port(aws: Aws) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        internal = found.getsockname()[1]
    config = aws.config("inside", f"{CONFIG}[server]\ninternal_port = {internal}\n")
    process = Process(config, "--port", "0", environ=environment(), program=LIMITED)
    try:
        await asyncio.to_thread(process.ready)
        with ExitStack() as silent:
            for _ in range(CONNECTIONS):
                silent.enter_context(
                    socket.create_connection(("127.0.0.1", process.port), DEADLINE_S)
                )
            await asyncio.to_thread(process.said, "places_taken", DEADLINE_S)
            # Before the first of them are ended for their silence.
            timeout = aiohttp.ClientTimeout(total=REQUEST_S / 2)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                url = f"http://127.0.0.1:{internal}"
                async with session.get(f"{url}/health/ready") as answer:
                    assert answer.status == 200
                async with session.post(
                    f"{url}/api/publish", json={"channel": "room", "data": "inside"}
                ) as answer:
                    assert "result" in await answer.json()
        process.signal()
        assert await asyncio.to_thread(process.ended) == 0
    finally:
        process.close()
