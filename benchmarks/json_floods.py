"""Measures how long a client waits for answers while others send frames that are slow to decode.

There is one node, one client that asks and waits, and one process with the attackers. They send one
kind of frame as fast as the node allows. Rounds take turns: each kind, and none. No attacker
has a token that an outsider could not have. It exits with 1 when the client waited longer than it
may.

    python -m benchmarks.json_floods
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from benchmarks.figures import Figure
from benchmarks.floods import MAX_MS, NONE, figures, missed
from benchmarks.rig import PATH, Process, end_in_time, percentile, say, widen

__all__ = ["ATTACKERS", "FLOODS", "measure", "measured", "none_and"]

ROUNDS: Final = 3
ASKS: Final = 60
# A round ends after this time, however slow the answers are.
_ROUND_S: Final = 1.5
# The neighbour's pause between two requests.
_PAUSE_S: Final = 0.004
ATTACKERS: Final = 4
_COMMAND_BYTES: Final = 64 * 1024
_FRAME_BYTES: Final = 4 * _COMMAND_BYTES
_ANSWER_S: Final = 20.0


def _filled(head: str, unit: str, tail: str, size: int) -> str:
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + unit[:-1] + tail


def _publish(unit: str, size: int) -> str:
    return _filled('{"id":2,"publish":{"channel":"flood","data":[', unit, "]}}", size)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _subs() -> bytes:
    """A `connect` in Protobuf with as many positions as a frame holds (fields: id 1, connect 4, its
    subs 3).
    """
    entries: list[bytes] = []
    size = 0
    while size < _FRAME_BYTES - 64:
        key = b"%d" % len(entries)
        # A map's entry: its key, and a message with `recover` (field 3).
        entry = b"\x0a" + _varint(len(key)) + key + b"\x12\x02\x18\x01"
        entries.append(b"\x1a" + _varint(len(entry)) + entry)
        size += len(entries[-1])
    connect = b"".join(entries)
    message = b"\x08\x01\x22" + _varint(len(connect)) + connect
    return _varint(len(message)) + message


@dataclass(frozen=True, slots=True)
class Flood:
    """One kind of frame. `connected`: it is sent after `connect`. `path`: of the endpoint."""

    frame: Callable[[], str | bytes]
    connected: bool = True
    path: str = PATH


FLOODS: Final[Mapping[str, Flood]] = {
    "a number that no double holds, nested": Flood(lambda: _publish("[1e999,[]],", _FRAME_BYTES)),
    "the same before connect": Flood(
        lambda: _publish("[1e999,[]],", _FRAME_BYTES), connected=False
    ),
    "halves of characters": Flood(lambda: _publish('"\\ud800",', _COMMAND_BYTES)),
    "empty arrays": Flood(lambda: _publish("[],", _COMMAND_BYTES)),
    "subs before connect, Protobuf": Flood(_subs, connected=False, path=f"{PATH}?format=protobuf"),
    "1,024 commands in a frame": Flood(
        lambda: "\n".join(
            json.dumps({"id": 2 + index, "rpc": {"method": "x"}}) for index in range(1024)
        )
    ),
}


# ---- the attackers, in a process of their own


class Attack:
    """Sends frames of one kind until it is stopped."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._sent = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, kind: str) -> dict[str, Any]:
        flood, self._sent = FLOODS[kind], 0
        frame = flood.frame()
        self._tasks = [asyncio.create_task(self._flood(flood, frame)) for _ in range(ATTACKERS)]
        while self._sent < ATTACKERS:  # noqa: ASYNC110  # a moment
            await asyncio.sleep(0.01)
        return {}

    async def stop(self) -> dict[str, Any]:
        """Stops. Returns the number of frames sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return {"sent": self._sent}

    async def _flood(self, flood: Flood, frame: str | bytes) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    await self._connection(session, flood, frame)

    async def _connection(
        self, session: aiohttp.ClientSession, flood: Flood, frame: str | bytes
    ) -> None:
        async with session.ws_connect(self._url + flood.path, max_msg_size=0) as response:
            if flood.connected:
                await response.send_str('{"id":1,"connect":{}}')
                await response.receive()
            reading = asyncio.create_task(_drain(response))
            try:
                while not response.closed and not reading.done():
                    await (
                        response.send_str(frame)
                        if isinstance(frame, str)
                        else response.send_bytes(frame)
                    )
                    self._sent += 1
                    await asyncio.sleep(0)
            finally:
                reading.cancel()


async def _drain(response: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in response:
        pass


async def _attack(port: int) -> None:
    widen(1)
    # The neighbour's process must not wait for this one.
    os.nice(10)
    attack = Attack(port)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := await lines.readline():
        asked = json.loads(line)
        answer = await getattr(attack, asked.pop("do"))(**asked)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


# ---- the neighbour


async def measured(port: int, asks: int) -> list[float]:
    """The neighbour's waits for its answers, in ms."""
    found: list[float] = []
    url = f"http://127.0.0.1:{port}{PATH}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, timeout=aiohttp.ClientWSTimeout(ws_receive=_ANSWER_S)) as response,
    ):
        await response.send_str('{"id":1,"connect":{}}')
        await response.receive()
        until_s = time.perf_counter() + _ROUND_S
        for number in range(asks):
            began_s = time.perf_counter()
            if began_s > until_s:
                break
            await response.send_str(f'{{"id":{2 + number},"ping":{{}}}}')
            await response.receive()
            found.append((time.perf_counter() - began_s) * 1000)
            await asyncio.sleep(_PAUSE_S)
    return found


def none_and(
    kind: str, port: int, attack: Process, asks: int = ASKS
) -> tuple[list[float], list[float], int]:
    """The waits without and with a flood, and the number of frames in the flood."""
    without = asyncio.run(measured(port, asks))
    attack.ask("begin", kind=kind)
    flooded = asyncio.run(measured(port, asks))
    return without, flooded, attack.ask("stop")["sent"]


def _rounds(count: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, int]]:
    """The 95th percentile of what the neighbour waits without and with the flood, in ms, by kind,
    then by round; and the frames of each kind.
    """
    node = Process("benchmarks.node", 1024 * 1024, 0)
    port = node.answer()["port"]
    attack = Process("benchmarks.json_floods", port)
    p95: dict[str, list[tuple[float, float]]] = {kind: [] for kind in FLOODS}
    frames = dict.fromkeys(FLOODS, 0)
    try:
        for _ in range(count):
            for kind, rounds in p95.items():
                without, flooded, sent = none_and(kind, port, attack)
                rounds.append((percentile(without, 0.95), percentile(flooded, 0.95)))
                frames[kind] += sent
    finally:
        attack.end()
        node.end()
    return p95, frames


def _figures(p95: Mapping[str, Sequence[tuple[float, float]]]) -> list[Figure]:
    floor = [without for rounds in p95.values() for without, _ in rounds]
    return figures(
        {NONE: floor} | {kind: [flooded for _, flooded in rounds] for kind, rounds in p95.items()}
    )


def measure(short: bool) -> list[Figure]:
    """The neighbour's 95th percentile under each kind of frame."""
    return _figures(_rounds(1 if short else ROUNDS)[0])


def main() -> None:
    """Prints ms, which depend on this machine, and ratios, which depend on it less."""
    end_in_time()
    p95, frames = _rounds(ROUNDS)
    sys.stdout.write(
        f"{ATTACKERS} attackers, up to {ASKS} answers a round; 95th percentile of what a "
        "neighbour waits\n"
    )
    say("none", [without for rounds in p95.values() for without, _ in rounds], " ms")
    for kind, rounds in p95.items():
        waits = [flooded for _, flooded in rounds]
        say(kind, waits, " ms")
        say("  ÷ none", [flooded / without for without, flooded in rounds])
        verdict = "below" if statistics.median(waits) <= MAX_MS else "NOT BELOW"
        sys.stdout.write(f"  {verdict} {MAX_MS:.0f} ms; {frames[kind]} frames\n")
    if lines := missed(_figures(p95)):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(_attack(int(sys.argv[1])))
    else:
        main()
