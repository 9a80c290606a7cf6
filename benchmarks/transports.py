"""Measures what streams over HTTP cost beside WebSockets.

- *A delivery*: the CPU of one node over memory, for subscribers of each transport and encoding. All
  are connected to it at once, each kind in a channel of its own, and the kinds take turns.
- *A command*: the time from a command to its answer, to two instances of `roomcast serve` against
  the embedded AWS: over a WebSocket, over a stream to its own instance, and over a stream to the
  other one. The floor of the last is what it takes at least: to send a message into a queue, and to
  receive it.

    python -m benchmarks.transports
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import aiohttp

from benchmarks.aws_stub import TABLE_PREFIX
from benchmarks.crowd import STREAMS
from benchmarks.end_to_end import aws
from benchmarks.figures import Figure
from benchmarks.http_api import Speaker
from benchmarks.rig import NO_PING_S, PATH, Process, percentile
from benchmarks.serving import WAYS, Cloud, closed, node
from benchmarks.suite import run_alone
from roomcast.aws.queue import SqsInstanceQueue

__all__ = ["FLOORS", "commands", "deliveries", "measure"]

CLIENTS: Final = 600
CLIENTS_SHORT: Final = 200
ROUNDS: Final = 15
ROUNDS_SHORT: Final = 5
# Of one kind in a round.
PUBLICATIONS: Final = 40
PAD: Final = "x" * 150
COMMANDS: Final = 40
COMMAND_ROUNDS: Final = 5
COMMAND_ROUNDS_SHORT: Final = 2
# What each kind is compared with: the WebSocket of its encoding.
FLOORS: Final[Mapping[str, str]] = {
    "http-stream-json": "websocket-json",
    "sse-json": "websocket-json",
    "http-stream-protobuf": "websocket-protobuf",
    "uni-websocket": "websocket-json",
    "uni-http-stream": "websocket-json",
    "uni-sse": "websocket-json",
}
_TITLES: Final = {
    "http-stream-json": "HTTP streams, JSON",
    "sse-json": "SSE, JSON",
    "http-stream-protobuf": "HTTP streams, Protobuf",
    "uni-websocket": "unidirectional WebSockets",
    "uni-http-stream": "unidirectional HTTP streams",
    "uni-sse": "unidirectional SSE",
    "websocket-json": "WebSockets, JSON",
    "websocket-protobuf": "WebSockets, Protobuf",
}
# A stream must not cost more than a WebSocket, but for its line breaks and what events add.
DELIVERY_MAX: Final = 1.15
_QUEUE_BYTES_MAX: Final = 1024 * 1024
_ANSWER_S: Final = 30.0


# ---- a delivery


@contextmanager
def _crowds(clients: int) -> Iterator[tuple[Process, Mapping[str, Process]]]:
    """A node, and a crowd of each kind. A crowd's channel has the name of its kind."""
    started: list[Process] = []
    try:
        started.append(measured := Process("benchmarks.node", _QUEUE_BYTES_MAX, 0))
        port = measured.answer()["port"]
        crowds: dict[str, Process] = {}
        for kind in STREAMS:
            started.append(crowd := Process("benchmarks.crowd", port, 1, kind, kind))
            crowd.ask("come", clients=clients)
            crowds[kind] = crowd
            measured.ask("subscribed", count=clients * len(crowds))
        yield measured, crowds
    finally:
        for process in started:
            process.end()


def deliveries(rounds: int, clients: int) -> dict[str, list[float]]:
    """CPU µs of a delivery by kind, round by round."""
    cost: dict[str, list[float]] = {kind: [] for kind in STREAMS}
    with _crowds(clients) as (measured, crowds):
        kinds = list(STREAMS)
        for number in range(-1, rounds):
            turn = number % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                measured.begin("publish", channel=kind, count=PUBLICATIONS, pad=PAD)
                read = crowds[kind].ask("read", publications=PUBLICATIONS)
                cpu_s = measured.answer()["cpu_s"]
                if read["missing"]:
                    raise SystemExit(f"{read['missing']} clients did not get everything")
                if number >= 0:
                    cost[kind].append(cpu_s / PUBLICATIONS / clients * 1e6)
    return cost


# ---- a command


class _Stream:
    """A client over http_stream. `host`: the instance that has it."""

    def __init__(self, session: aiohttp.ClientSession, host: str) -> None:
        self._session = session
        self._host = host
        self._numbers = itertools.count(2)
        self._answer: aiohttp.ClientResponse | None = None
        self._names: dict[str, str] = {}

    async def connect(self) -> None:
        self._answer = await self._session.post(
            f"{self._host}/connection/http_stream", json={"id": 1, "connect": {}}
        )
        connected = (await self._line())["connect"]
        self._names = {name: connected[name] for name in ("session", "node")}

    async def ask(self, host: str) -> float:
        """The ms from a command, which `host` gets, to its answer in the stream."""
        number = next(self._numbers)
        data = json.dumps({"id": number, "rpc": {"method": "none"}})
        began_s = time.perf_counter()
        async with asyncio.timeout(_ANSWER_S):
            posting = asyncio.create_task(self._post(host, data))
            while (await self._line()).get("id") != number:
                pass
            took_s = time.perf_counter() - began_s
            await posting
        return took_s * 1000

    async def _post(self, host: str, data: str) -> None:
        async with self._session.post(
            f"{host}/emulation", json={**self._names, "data": data}
        ) as taken:
            if taken.status != 204:
                raise SystemExit(f"an instance answered {taken.status}")

    async def _line(self) -> dict[str, Any]:
        assert self._answer is not None, "it is connected"
        line: dict[str, Any] = json.loads(await self._answer.content.readline())
        return line

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()


class _WebSocket:
    """A client over a WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(2)

    async def ask(self) -> float:
        """The ms from a command to its answer."""
        number = next(self._numbers)
        said = json.dumps({"id": number, "rpc": {"method": "none"}})
        began_s = time.perf_counter()
        await self._socket.send_str(said)
        while True:
            message = await self._socket.receive(_ANSWER_S)
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise SystemExit(f"the node closed a connection: {self._socket.close_code}")
            for line in map(json.loads, message.data.split("\n")):
                if line.get("id") == number:
                    return (time.perf_counter() - began_s) * 1000


@asynccontextmanager
async def _bare(cloud: Cloud) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """What sends a message into a queue of its own and receives it, in ms."""
    async with aws(cloud) as clients:
        queue = SqsInstanceQueue(
            control=clients.sqs,
            poll=clients.sqs_poll,
            sns=clients.sns,
            topic_arn=cloud.topic_arn,
            tags=dict,
        )
        name = f"{TABLE_PREFIX}bare-{secrets.token_hex(4)}"
        await queue.open(name)

        async def once() -> float:
            receiving = asyncio.create_task(queue.receive())
            began_s = time.perf_counter()
            await queue.post(name, "{}")
            while not (messages := await receiving):
                receiving = asyncio.create_task(queue.receive())
            took_s = time.perf_counter() - began_s
            await queue.delete([message.receipt for message in messages])
            return took_s * 1000

        try:
            yield once
        finally:
            await queue.close()


async def _asked(cloud: Cloud, hosts: list[str], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        socket = await stack.enter_async_context(session.ws_connect(hosts[0] + PATH))
        await Speaker(socket).ask("connect", {})
        websocket = _WebSocket(socket)
        stream = _Stream(session, hosts[0])
        stack.callback(stream.close)
        await stream.connect()
        ways: dict[str, Callable[[], Awaitable[float]]] = {
            "websocket": websocket.ask,
            "own": lambda: stream.ask(hosts[0]),
            "other": lambda: stream.ask(hosts[1]),
            "bare": await stack.enter_async_context(_bare(cloud)),
        }
        for ask in ways.values():
            # The first one looks for the other instance, and opens connections.
            await ask()
        times = {way: [] for way in ways}
        for number in range(rounds):
            for way in list(ways)[:: -1 if number % 2 else 1]:
                times[way] += [await ways[way]() for _ in range(COMMANDS)]
    return times


def commands(rounds: int) -> dict[str, list[float]]:
    """The ms of each command by way, and of a bare message under "bare"."""
    with ExitStack() as stack:
        cloud = stack.enter_context(closed())
        # The clients do not read while it is not their turn.
        client = f"ping_interval_s = {NO_PING_S}"
        ports = [
            stack.enter_context(node(cloud, WAYS["lean"], client=client)).port for _ in range(2)
        ]
        return asyncio.run(_asked(cloud, [f"http://127.0.0.1:{port}" for port in ports], rounds))


# ---- results


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: fewer clients and rounds."""
    rounds, clients = (ROUNDS_SHORT, CLIENTS_SHORT) if short else (ROUNDS, CLIENTS)
    cost = deliveries(rounds, clients)
    figures = [
        Figure(
            f"fan-out to {clients:,} over {_TITLES[kind]}: CPU of a delivery",
            statistics.median(cost[kind]),
            statistics.median(cost[floor]),
            "us",
            _TITLES[floor],
            DELIVERY_MAX,
            rounds=rounds,
        )
        for kind, floor in FLOORS.items()
    ]
    sys.stderr.write("transports: deliveries are measured\n")
    rounds = COMMAND_ROUNDS_SHORT if short else COMMAND_ROUNDS
    times = commands(rounds)
    median = {way: percentile(found, 0.5) for way, found in times.items()}
    figures += [
        Figure(
            "a command over an HTTP stream, to its own instance, p50",
            median["own"],
            median["websocket"],
            "ms",
            "over a WebSocket, p50",
            rounds=rounds,
        ),
        Figure(
            "a command over an HTTP stream, to another instance, p50",
            median["other"],
            median["bare"],
            "ms",
            "a bare message, sent and received, p50",
            rounds=rounds,
        ),
    ]
    return figures


if __name__ == "__main__":
    run_alone(measure)
