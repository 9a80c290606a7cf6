"""Measures the CPU of an acknowledged publication in many small rooms, in units of one PutItem.

The node is `roomcast serve` as it is run, and its CPU is that of its whole process: sockets,
decisions, append, acknowledgement, delivery to the one member of each room, and its share of
receiving and deleting what comes round. The unit is one PutItem through aioboto3 of an item such as
the node writes, in another process. All of them take turns, against two kinds of AWS in processes
of their own:

- *kept*: benchmarks/aws_stub.py, which keeps connections, as AWS does.
- *closed*: the embedded AWS, which closes each connection after its answer.

    python -m benchmarks.publish_cpu --rounds 7
    python -m benchmarks.publish_cpu --kind kept --way lean --profile node.prof

Exits with 1 and a reason if the bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from benchmarks.aws_stub import REGION
from benchmarks.figures import Figure
from benchmarks.rig import PATH, Process, end_in_time, options_of, say
from benchmarks.serving import KINDS, WAYS, Measured, node

__all__ = ["KINDS", "WAYS", "measure"]

ROUNDS: Final = 7
ROUNDS_SHORT: Final = 3
ROUNDS_MAX: Final = 50
ROOMS: Final = 20
# Of one room in a round.
PUBLICATIONS: Final = {"kept": 150, "closed": 20}
PAD: Final = "x" * 200
# A publication over a kept connection on the way of a node, in PutItems.
PUT_ITEMS_MAX: Final = 0.7
# What was published last comes round within this time, and its CPU belongs to the round.
_SETTLE_S: Final = 1.0
_ANSWER_S: Final = 30.0
_START_S: Final = 60
_ROUND_S: Final = 60


# ---- a round


async def publications_cpu_s(node: Measured, count: int) -> float:
    """CPU seconds of the node for `count` publications in each of ROOMS rooms, one at a time."""
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{node.port}{PATH}"
        sockets = [await session.ws_connect(url) for _ in range(ROOMS)]
        members = [Member(socket, f"room-{number}") for number, socket in enumerate(sockets)]
        # The first publication looks for the end of the log.
        await asyncio.gather(*(member.come() for member in members))
        await asyncio.gather(*(member.publish(2) for member in members))
        await asyncio.sleep(_SETTLE_S)
        before_s = node.cpu_s()
        await asyncio.gather(*(member.publish(count) for member in members))
        await asyncio.sleep(_SETTLE_S)
        used_s = node.cpu_s() - before_s
        for member in members:
            await member.leave()
    return used_s


class Member:
    """The one member of a room, who publishes in it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, room: str) -> None:
        self._socket = socket
        self._room = room
        self._id = 0

    async def come(self) -> None:
        await self._ask({"connect": {}})
        await self._ask({"subscribe": {"channel": self._room}})

    async def publish(self, count: int) -> None:
        """Publishes one publication after the other, and gets each of them."""
        for _ in range(count):
            pushed = await self._ask(
                {"publish": {"channel": self._room, "data": {"text": PAD}}}, pushes=1
            )
            assert pushed == 1, "a member gets what it publishes once"

    async def leave(self) -> None:
        await self._socket.close()

    async def _ask(self, command: dict[str, Any], pushes: int = 0) -> int:
        """Waits for the reply and for `pushes`. Returns how many of them there were."""
        self._id += 1
        await self._socket.send_str(json.dumps({"id": self._id, **command}))
        answered, pushed = False, 0
        while not answered or pushed < pushes:
            message = await self._socket.receive(_ANSWER_S)
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise SystemExit(f"the node closed a connection: {self._socket.close_code}")
            for line in message.data.split("\n"):
                reply = json.loads(line)
                if not reply:
                    await self._socket.send_str("{}")
                elif "error" in reply:
                    raise SystemExit(f"the node answered {line}")
                elif "push" in reply:
                    pushed += 1
                else:
                    answered = True
        return pushed


# ---- results


@dataclass(slots=True)
class Costs:
    """CPU µs a publication by way, and a PutItem, round by round."""

    floor: list[float] = field(default_factory=list)
    ways: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, way: str) -> list[float]:
        return [cost / put for cost, put in zip(self.ways[way], self.floor, strict=True)]


def measured(
    kind: str, ways: Sequence[str], rounds: int, publications: int, profile: str | None = None
) -> Costs:
    """All rounds over one kind of AWS, with `publications` in each room."""
    costs = Costs()
    with ExitStack() as stack:
        nodes = {}
        for way in ways:
            cloud = stack.enter_context(KINDS[kind]())
            nodes[way] = stack.enter_context(node(cloud, WAYS[way], profile))
        floor = Process("benchmarks.put_item", cloud.endpoint, REGION, cloud.table)
        stack.callback(floor.end)
        floor.answer()
        floor.ask("put", count=100, writers=ROOMS, pad=PAD)
        for number in range(rounds):
            for way in ways[:: -1 if number % 2 else 1]:
                cpu_s = asyncio.run(publications_cpu_s(nodes[way], publications))
                costs.ways.setdefault(way, []).append(cpu_s / publications / ROOMS * 1e6)
            count = publications * ROOMS
            put_s = floor.ask("put", count=count, writers=ROOMS, pad=PAD)["cpu_s"]
            costs.floor.append(put_s / count * 1e6)
            sys.stderr.write(f"{kind}: round {number + 1} of {rounds}\n")
    return costs


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: over kept connections only, the way of a node."""
    found = []
    for kind in ("kept",) if short else tuple(KINDS):
        ways, rounds = (["lean"], ROUNDS_SHORT) if short else (list(WAYS), ROUNDS)
        costs = measured(kind, ways, rounds, PUBLICATIONS[kind])
        found += [
            Figure(
                f"publication, {kind} connections, {way}: CPU",
                statistics.median(costs.ways[way]),
                statistics.median(costs.floor),
                "us",
                "PutItem through aioboto3",
                PUT_ITEMS_MAX if (kind, way) == ("kept", "lean") else None,
                rounds=rounds,
            )
            for way in ways
        ]
    return found


def missed(kind: str, costs: Costs) -> list[str]:
    """The missed bounds, one a line."""
    if kind != "kept" or "lean" not in costs.ways:
        return []
    median = statistics.median(costs.ratios("lean"))
    if median <= PUT_ITEMS_MAX:
        return []
    return [f"a publication costs {median:.2f} of a PutItem, more than {PUT_ITEMS_MAX}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints µs, which depend on this machine, and ratios, which depend on it less.

    Returns 1 if the bound is missed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish_cpu", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: both")
    parser.add_argument("--way", choices=WAYS, action="append", help="default: all")
    parser.add_argument("--profile", help="a file for cProfile's data of a node; checks nothing")
    parser.add_argument("--no-check", action="store_true", help="print only: no bound fails")
    options = options_of(parser, arguments, ROUNDS, ROUNDS_MAX)
    kinds, ways = options.kind or list(KINDS), options.way or list(WAYS)
    if options.profile and len(kinds) * len(ways) > 1:
        parser.error("--profile needs one --kind and one --way")
    end_in_time(_START_S * 2 * len(kinds) + options.rounds * _ROUND_S * len(kinds))
    reasons = []
    for kind in kinds:
        costs = measured(kind, ways, options.rounds, PUBLICATIONS[kind], options.profile)
        say(f"{kind}: PutItem through aioboto3", costs.floor, " us")
        for way, cost in costs.ways.items():
            say(f"{kind}: publication, {way}", cost, " us")
            say(f"{kind}: publication, {way} / PutItem", costs.ratios(way))
        reasons += missed(kind, costs)
    if options.no_check or options.profile:
        return 0
    for reason in reasons:
        sys.stderr.write(f"missed: {reason}\n")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
