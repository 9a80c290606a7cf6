"""Measures what batching and compression save, and cost: CPU and bytes of a delivery.

All ways have the same connections of one process and the same publications, in rounds that take
turns. Another process reads, and throws away what it reads. Beside the product's ways there is one
that it does not have: a compressor for each connection.

    python -m benchmarks.batching
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import select
import socket
import statistics
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.figures import Figure
from benchmarks.rig import widen
from benchmarks.suite import run_alone
from roomcast.delivery.forms import PLAIN, Form
from roomcast.delivery.hub import Hub
from roomcast.delivery.ports import Framer, Sink
from roomcast.gateway.deflate import Compression, Deflater
from roomcast.gateway.delayed import DelayedWriter, Delays
from roomcast.gateway.writer import TEXT, Writer, frame_header, text_frame
from roomcast.wire.channels import Batching
from roomcast.wire.encoding import Sent, sent_of
from roomcast.wire.publication import Publication

__all__ = ["measure"]

CLIENTS: Final = 400
ROUNDS: Final = 20
ROUNDS_SHORT: Final = 5
# Of one round: five batches of ten.
TOGETHER: Final = 10
BATCHES: Final = 5
PUBLICATIONS: Final = TOGETHER * BATCHES
# Nothing is cut off here.
_QUEUE_BYTES_MAX: Final = 256 * 1024 * 1024
_DELAY_S: Final = 0.002
_DRAINED_S: Final = 30.0
_LEVEL: Final = 1
_FLOOR: Final = "each at once"
_SHARED: Final = "compressed once for all"
_OWN: Final = "a compressor for each connection"
# The ratios to the floor that are aimed at, of CPU.
_AIMS: Final = {
    "batches of ten": 0.2,
    "delayed writes, ten channels": 0.4,
    _SHARED: 1.2,
    "compressed, batches of ten": 0.2,
}


@dataclass(eq=False, slots=True)
class _Subscriber:
    sink: Sink
    form: Form = PLAIN
    join_leave: bool = False

    def lost(self, channel: str) -> None:
        """No channel is."""


class _OwnCompressor:
    """A sink with a compressor of its own, which refers to earlier messages."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15)
        self.framer: Framer = _as_it_is
        self.bytes = 0

    def send(self, frame: bytes) -> None:
        packed = self._compressor.compress(frame) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        whole = frame_header(TEXT, len(packed) - 4, compressed=True) + packed[:-4]
        self.bytes += len(whole)
        self._writer.send(whole)


def _as_it_is(payload: bytes) -> bytes:
    return payload


@dataclass(slots=True)
class _Way:
    """One way of the publications to the clients. `publish` sends those of one batch."""

    hub: Hub
    publish: Callable[[Hub, Sequence[Sent]], Awaitable[None]]
    own: list[_OwnCompressor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.own) or self.hub.counters.bytes


async def _one_by_one(hub: Hub, batch: Sequence[Sent]) -> None:
    for sent in batch:
        hub.publish("room-0", [sent])
        await asyncio.sleep(0)


async def _in_channels(hub: Hub, batch: Sequence[Sent]) -> None:
    """Each in a channel of its own; until what was delayed has gone out."""
    for number, sent in enumerate(batch):
        hub.publish(f"room-{number}", [sent])
        await asyncio.sleep(0)
    await asyncio.sleep(2 * _DELAY_S)


def _way(
    sinks: Sequence[Sink],
    batching: Batching | None = None,
    publish: Callable[[Hub, Sequence[Sent]], Awaitable[None]] = _one_by_one,
) -> _Way:
    hub = Hub(lambda _channel: batching)
    for sink in sinks:
        subscriber = _Subscriber(sink)
        for number in range(TOGETHER):
            hub.add(f"room-{number}", subscriber)
    return _Way(hub, publish, [each for each in sinks if isinstance(each, _OwnCompressor)])


def _ways(transports: Sequence[asyncio.Transport]) -> dict[str, _Way]:
    shared = Deflater(Compression(0, _LEVEL), TEXT, bytes, is_narrow=False)

    def writers(framer: Framer) -> list[Writer]:
        return [Writer(each, _QUEUE_BYTES_MAX, framer) for each in transports]

    plain, packed, delays = writers(text_frame), writers(shared), Delays(_DELAY_S)
    ten = Batching(TOGETHER, 3600.0, latest=False)
    newest = Batching(TOGETHER, 3600.0, latest=True)
    delayed = [DelayedWriter(delays, each, _QUEUE_BYTES_MAX, text_frame) for each in transports]
    return {
        _FLOOR: _way(plain),
        "batches of ten": _way(plain, ten),
        "of ten the newest": _way(plain, newest),
        "delayed writes, ten channels": _way(delayed, publish=_in_channels),
        _SHARED: _way(packed),
        "compressed, batches of ten": _way(packed, ten),
        _OWN: _way([_OwnCompressor(each) for each in plain]),
    }


def _publications(round_number: int) -> list[Sent]:
    """Those of one round: JSON of some 200 bytes, as of a game."""
    first = round_number * PUBLICATIONS
    return [
        sent_of(
            Publication(
                {
                    "match": f"match-{number % 7}",
                    "minute": number % 90,
                    "score": [number * 7 % 5, number * 3 % 4],
                    "event": ("pass", "shot", "corner", "throw-in")[number * 13 % 4],
                    "player": {"id": number * 7919 % 1000, "name": f"player {number * 31 % 22}"},
                    "position": [number * 17 % 105, number * 29 % 68],
                },
                offset=number,
            ),
            0,
        )
        for number in range(first + 1, first + PUBLICATIONS + 1)
    ]


async def _measured(way: _Way, published: Sequence[Sent]) -> tuple[float, float]:
    """CPU µs and bytes of one publication to one client."""
    before, cpu_s = way.bytes, time.process_time()
    for start in range(0, len(published), TOGETHER):
        await way.publish(way.hub, published[start : start + TOGETHER])
    cpu_s = time.process_time() - cpu_s
    deliveries = len(published) * CLIENTS
    return cpu_s / deliveries * 1e6, (way.bytes - before) / deliveries


async def _drained(transports: Sequence[asyncio.Transport]) -> None:
    async with asyncio.timeout(_DRAINED_S):
        while any(each.get_write_buffer_size() for each in transports):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def _rounds(rounds: int) -> dict[str, list[tuple[float, float]]]:
    transports: list[asyncio.Transport] = []

    class Taken(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transports.append(transport)

    server = await asyncio.get_running_loop().create_server(Taken, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader = multiprocessing.get_context("spawn").Process(
        target=_read, args=(port, CLIENTS), daemon=True
    )
    reader.start()
    try:
        async with asyncio.timeout(_DRAINED_S):
            while len(transports) < CLIENTS:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ways = _ways(transports)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        names = list(ways)
        for number in range(-1, rounds):
            published = _publications(number + 1)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                figures = await _measured(ways[name], published)
                await _drained(transports)
                if number >= 0:
                    found[name].append(figures)
    finally:
        server.close()
        reader.kill()
        reader.join()
    return found


def _read(port: int, clients: int) -> None:
    """Reads from so many connections until all are closed."""
    widen(0)
    poll, sockets = select.epoll(), {}
    for _ in range(clients):
        connected = socket.create_connection(("127.0.0.1", port))
        sockets[connected.fileno()] = connected
        poll.register(connected, select.EPOLLIN)
    while sockets:
        for descriptor, _ in poll.poll():
            data = b""
            with contextlib.suppress(OSError):
                data = sockets[descriptor].recv(1024 * 1024)
            if not data:
                poll.unregister(descriptor)
                sockets.pop(descriptor).close()


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: fewer rounds."""
    rounds = ROUNDS_SHORT if short else ROUNDS
    found = asyncio.run(_rounds(rounds))
    cpu = {name: statistics.median(us for us, _ in each) for name, each in found.items()}
    sizes = {name: statistics.median(size for _, size in each) for name, each in found.items()}
    figures: list[Figure] = []
    for name in found:
        if name == _FLOOR:
            continue
        about = f"a publication to one of {CLIENTS}, {name}"
        figures += [
            Figure(
                f"{about}: CPU",
                cpu[name],
                cpu[_FLOOR],
                "us",
                _FLOOR,
                bound=_AIMS.get(name),
                rounds=rounds,
            ),
            Figure(f"{about}: bytes", sizes[name], sizes[_FLOOR], "B", _FLOOR, rounds=rounds),
        ]
    figures.append(
        Figure(f"{_SHARED}: CPU", cpu[_SHARED], cpu[_OWN], "us", _OWN, bound=1.0, rounds=rounds)
    )
    return figures


if __name__ == "__main__":
    run_alone(measure)
