"""The measured process of benchmarks about connections: a node over memory, or a bare aiohttp.

Started by benchmarks/connections.py, arrivals.py and inbound.py. It reads JSON lines from standard
input, answers each on standard output, and ends with its input. The bare server is what one would
write without roomcast: a WebSocket handler that answers each message with a small object.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import structlog
from aiohttp import WSMsgType, web

from benchmarks.node import Bench
from benchmarks.rig import CHANNEL, NO_PING_S, PATH, Process, quiet, widen
from roomcast.gateway.admission import Admission
from roomcast.gateway.door import Door, GiveWay, end_proxied, name_no_version
from roomcast.gateway.keys import HEALTH, NODE
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.serve.collector import look_seldom
from roomcast.serve.descriptors import places, widened
from roomcast.wire.publication import Publication

__all__ = ["BARE", "NODE_KIND", "bare", "node", "usage"]

# The two kinds, as the command line names them.
NODE_KIND: Final = "node"
BARE: Final = "bare"

_QUEUE_BYTES_MAX: Final = 1024 * 1024
_MESSAGE_BYTES_MAX: Final = 65_536
_BACKLOG: Final = 1024


class _Server(Protocol):
    """One of the two. `open`: connections that are open now."""

    @property
    def open(self) -> int: ...

    async def start(self, listening: socket.socket) -> None: ...

    async def publish(self, count: int) -> Mapping[str, Any]:
        """Appends `count` publications to the channel. Returns the position before them."""


class _Node:
    def __init__(self, ping_interval_s: float) -> None:
        self._bench = Bench(_QUEUE_BYTES_MAX, ping_interval_s)

    @property
    def open(self) -> int:
        return len(self._bench.assembly.node)

    async def start(self, listening: socket.socket) -> None:
        node = self._bench.assembly.node
        app = web.Application()
        app[NODE], app[HEALTH] = node, node.health
        gateway = WebSocketGateway(
            Admission(allowed_origins=()),
            message_size_limit=_MESSAGE_BYTES_MAX,
            queue_bytes_max=_QUEUE_BYTES_MAX,
        )
        app.router.add_get(PATH, gateway.handle)
        # As `roomcast serve` has it.
        app.on_response_prepare.extend([GiveWay(), name_no_version, end_proxied])
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        assert runner.server is not None
        Door(runner.server, listening, places_max=places(widened(), 0).sockets).open()

    async def publish(self, count: int) -> Mapping[str, Any]:
        appender = self._bench.assembly.appender
        first = await appender.submit(CHANNEL, Publication(0), 300_000)
        for number in range(count):
            await appender.submit(CHANNEL, Publication(number), 300_000)
        return {"epoch": first.epoch, "offset": first.offset}


class _Bare:
    def __init__(self, _ping_interval_s: float) -> None:
        self.open = 0

    async def start(self, listening: socket.socket) -> None:
        app = web.Application()
        app.router.add_get(PATH, self._echo)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        listening.setblocking(False)
        await web.SockSite(runner, listening, backlog=_BACKLOG).start()

    async def publish(self, count: int) -> Mapping[str, Any]:
        raise NotImplementedError(f"nobody could read these {count}")

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(compress=False)
        await response.prepare(request)
        self.open += 1
        try:
            async for message in response:
                if message.type is WSMsgType.TEXT:
                    said = orjson.loads(message.data)
                    answer = orjson.dumps({"id": said.get("id", 0), "unsubscribe": {}})
                    await response.send_str(answer.decode())
        finally:
            self.open -= 1
        return response


# ---- what is asked


class _Asked:
    """Answers the lines of standard input."""

    def __init__(self, server: _Server) -> None:
        self._server = server

    async def usage(self) -> Mapping[str, Any]:
        """CPU seconds (user and system) and resident bytes of this process, and its clients."""
        return {
            "cpu_s": time.process_time(),
            "resident": _resident(),
            "open": self._server.open,
        }

    async def settle(self, clients: int) -> Mapping[str, Any]:
        """Waits until `clients` are here, and collects garbage. Then as `usage`."""
        while self._server.open != clients:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # What ends with a connection ends in a later turn.
        await asyncio.sleep(0.2)
        gc.collect()
        return await self.usage()

    async def publish(self, count: int) -> Mapping[str, Any]:
        return await self._server.publish(count)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def main(kind: str, ping_interval_s: float, core: int) -> None:
    """Serves until the end of standard input."""
    widen(core)
    widened()
    quiet(structlog)
    if kind == NODE_KIND:
        # As `roomcast serve` has it.
        look_seldom()
    server: _Server = (_Node if kind == NODE_KIND else _Bare)(ping_interval_s)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    await server.start(listening)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    _answer({"port": listening.getsockname()[1], "pid": os.getpid()})
    asked = _Asked(server)
    while line := await commands.readline():
        told = json.loads(line)
        do: Callable[..., Awaitable[Mapping[str, Any]]] = getattr(asked, told.pop("do"))
        _answer(await do(**told))
    # The clients are other processes and may be gone already: no clean-up is needed.
    os._exit(0)


def _answer(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


# ---- for those that start it


def node(core: int = 0, ping_interval_s: float = NO_PING_S) -> tuple[Process, int]:
    """A node, and its port."""
    process = Process("benchmarks.host", NODE_KIND, ping_interval_s, core)
    return process, int(process.answer()["port"])


def bare(core: int = 0) -> tuple[Process, int]:
    """A bare server, and its port."""
    process = Process("benchmarks.host", BARE, NO_PING_S, core)
    return process, int(process.answer()["port"])


def usage(server: Process) -> tuple[float, int]:
    """CPU seconds and resident bytes."""
    told = server.ask("usage")
    return float(told["cpu_s"]), int(told["resident"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
