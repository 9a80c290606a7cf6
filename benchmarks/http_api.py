"""Measures the CPU of a publication over the HTTP API, beside the same over a socket.

The node is `roomcast serve` as it is run, against benchmarks/aws_stub.py, and its CPU is that of
its whole process. Nobody is subscribed. All ways take turns, over connections that are kept:

- *one*: `POST /api/publish`, one after the other on each of 20 connections, each in a channel of
  its own; and `publish` over as many sockets.
- *hundred*: `batch` of 100 publications in one channel, in turn and at once, and `broadcast` to 100
  channels.

Each of them in channels with history, which is an append for each publication that stands alone,
and in channels without, which is a part of a signal.

    python -m benchmarks.http_api --rounds 7
    python -m benchmarks.http_api --way "publish" --profile node.prof
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict
from typing import Any, Final

import aiohttp

from benchmarks.figures import Figure
from benchmarks.rig import PATH, end_in_time, options_of, say
from benchmarks.serving import WAYS as AWS_WAYS
from benchmarks.serving import Measured, kept, node

__all__ = ["Costs", "figures", "measure", "measured"]

ROUNDS: Final = 7
ROUNDS_MAX: Final = 50
ROOMS: Final = 20
# Of one room in a round.
PUBLICATIONS: Final = 100
HUNDRED: Final = 100
# Requests of a hundred in a round.
HUNDREDS: Final = 20
PAD: Final = "x" * 200
# What was published last comes round within this time, and its CPU belongs to the round.
_SETTLE_S: Final = 0.5
_ANSWER_S: Final = 30.0
_START_S: Final = 60
_ROUND_S: Final = 60
# The namespace without history.
_BRIEF: Final = "brief"
_NAMESPACE: Final = f"""[[channel.namespaces]]
name = "{_BRIEF}"
"""
# Ratios that are aimed at.
SOCKETS_MAX: Final = 1.3
HUNDRED_MAX: Final = 10.0


# ---- clients


class Caller:
    """One kept HTTP connection, by the least that HTTP takes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, method: str, params: object) -> Any:
        """The result of `method`."""
        body = json.dumps(params).encode()
        head = (
            f"POST /api/{method} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: bench\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        async with asyncio.timeout(_ANSWER_S):
            answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200 "):
                raise SystemExit(f"the node answered {answer!r}")
            length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
            said = json.loads(await self._reader.readexactly(length))
        if '"error"' in json.dumps(said):
            raise SystemExit(f"the node answered {said}")
        return said


class Speaker:
    """One WebSocket client."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._id = 0

    async def ask(self, method: str, params: object) -> None:
        self._id += 1
        await self._socket.send_str(json.dumps({"id": self._id, method: params}))
        while True:
            message = await self._socket.receive(_ANSWER_S)
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise SystemExit(f"the node closed a connection: {self._socket.close_code}")
            for line in message.data.split("\n"):
                if line == "{}":
                    await self._socket.send_str("{}")
                    continue
                if "error" in json.loads(line):
                    raise SystemExit(f"the node answered {line}")
                return


class Clients:
    """The connections of a round, and what they may be told to do with them."""

    def __init__(self, callers: list[Caller], speakers: list[Speaker]) -> None:
        self._callers = callers
        self._speakers = speakers

    async def publish(self, namespace: str, count: int) -> None:
        await self._each(self._callers, namespace, count)

    async def socket(self, namespace: str, count: int) -> None:
        await self._each(self._speakers, namespace, count)

    async def _each(
        self, clients: Sequence[Caller] | Sequence[Speaker], namespace: str, count: int
    ) -> None:
        async def by(number: int) -> None:
            params = {"channel": f"{namespace}room-{number}", "data": {"text": PAD}}
            for _ in range(count):
                await clients[number].ask("publish", params)

        await asyncio.gather(*(by(number) for number in range(len(clients))))

    async def batch(self, namespace: str, count: int, *, parallel: bool = False) -> None:
        params = {"channel": f"{namespace}room-0", "data": {"text": PAD}}
        commands = [{"publish": params}] * HUNDRED
        for _ in range(count):
            await self._callers[0].ask("batch", {"commands": commands, "parallel": parallel})

    async def parallel(self, namespace: str, count: int) -> None:
        await self.batch(namespace, count, parallel=True)

    async def broadcast(self, namespace: str, count: int) -> None:
        channels = [f"{namespace}room-{number}" for number in range(HUNDRED)]
        for _ in range(count):
            await self._callers[0].ask("broadcast", {"channels": channels, "data": {"text": PAD}})


# What is measured, by name: what clients do, the namespace, and how many times in a round.
Way = tuple[Callable[[Clients, str, int], Awaitable[None]], str]
_OF_ONE: Final = {"publish": Clients.publish, "socket": Clients.socket}
_OF_HUNDRED: Final = {
    "batch": Clients.batch,
    "batch, parallel": Clients.parallel,
    "broadcast": Clients.broadcast,
}
WAYS: Final[dict[str, Way]] = {
    f"{name}{suffix}": (doing, namespace)
    for suffix, namespace in (("", ""), (", no history", f"{_BRIEF}:"))
    for name, doing in (_OF_ONE | _OF_HUNDRED).items()
}


# ---- a round


async def cpu_us(measured: Measured, way: str, share: float) -> float:
    """CPU µs of the node for one request or command of `way`. `share`: of a whole round."""
    doing, namespace = WAYS[way]
    is_one = way.partition(",")[0] in _OF_ONE
    count = max(1, round((PUBLICATIONS if is_one else HUNDREDS) * share))
    async with AsyncExitStack() as stack:
        clients = await _come(measured.port, stack)
        # The first publication looks for the end of the log.
        await doing(clients, namespace, 2)
        await asyncio.sleep(_SETTLE_S)
        before_s = measured.cpu_s()
        await doing(clients, namespace, count)
        await asyncio.sleep(_SETTLE_S)
        return (measured.cpu_s() - before_s) / count / (ROOMS if is_one else 1) * 1e6


async def _come(port: int, stack: AsyncExitStack) -> Clients:
    callers, speakers = [], []
    session = await stack.enter_async_context(aiohttp.ClientSession())
    for _ in range(ROOMS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(writer.close)
        callers.append(Caller(reader, writer))
        url = f"http://127.0.0.1:{port}{PATH}"
        socket = await stack.enter_async_context(session.ws_connect(url))
        speaker = Speaker(socket)
        await speaker.ask("connect", {})
        speakers.append(speaker)
    return Clients(callers, speakers)


# ---- results

Costs = dict[str, list[float]]


def measured(
    ways: Sequence[str], rounds: int, share: float = 1.0, profile: str | None = None
) -> Costs:
    """CPU µs of a request by way, round by round."""
    costs: Costs = {way: [] for way in ways}
    with ExitStack() as stack:
        cloud = stack.enter_context(kept())
        aws = f"{AWS_WAYS['lean']}\n{_NAMESPACE}"
        its = stack.enter_context(node(cloud, aws, profile))
        for number in range(rounds):
            for way in ways[:: -1 if number % 2 else 1]:
                costs[way].append(asyncio.run(cpu_us(its, way, share)))
            sys.stderr.write(f"http_api: round {number + 1} of {rounds}\n")
    return costs


def figures(costs: Costs) -> list[Figure]:
    """What is told of `costs`, which has all ways."""
    found = []

    def beside(way: str, floor: str, bound: float) -> None:
        value, beneath = statistics.median(costs[way]), statistics.median(costs[floor])
        found.append(
            Figure(
                f"HTTP API, {way}: CPU",
                value,
                beneath,
                "us",
                floor,
                bound,
                rounds=len(costs[way]),
            )
        )

    for suffix in ("", ", no history"):
        beside(f"publish{suffix}", f"socket{suffix}", SOCKETS_MAX)
        for name in _OF_HUNDRED:
            beside(f"{name}{suffix}", f"publish{suffix}", HUNDRED_MAX)
    return found


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: a few rounds of a part of the requests."""
    return figures(measured(list(WAYS), 2, 0.1) if short else measured(list(WAYS), ROUNDS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints µs, which depend on this machine, and ratios, which depend on it less."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_api", description=__doc__)
    parser.add_argument("--way", choices=WAYS, action="append", help="default: all")
    parser.add_argument("--profile", help="a file for cProfile's data of the node")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = options_of(parser, arguments, ROUNDS, ROUNDS_MAX)
    ways = options.way or list(WAYS)
    end_in_time(_START_S * 2 + options.rounds * _ROUND_S)
    costs = measured(ways, options.rounds, profile=options.profile)
    found = figures(costs) if ways == list(WAYS) else []
    if options.json:
        rows = [asdict(figure) | {"ratio": figure.ratio} for figure in found]
        sys.stdout.write(json.dumps({"costs": costs, "figures": rows}, indent=2) + "\n")
        return 0
    for way, cost in costs.items():
        say(way, cost, " us")
    for figure in found:
        bound = "" if figure.bound is None else f"   at most {figure.bound:g}"
        sys.stdout.write(f"{figure.name} / {figure.floor_name}: {figure.ratio:.2f}{bound}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
