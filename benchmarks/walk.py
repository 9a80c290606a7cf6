"""Traces one publication through the source files: from a frame on one node to the pushes of two.

`python -m benchmarks.walk` prints the files that run, in the order of their first call, and the
number of moves. A move is a call of a function in another file. Calls through other libraries count
as direct ones. The tables, the topic and the Lambda are those of tests/unit/worlds.py, so their
files do not count, and AWS's adapters are left out. What the Lambda calls of ours does count
(checked_pubs, record_text, pack), and so does the writing node's own copy, which comes through its
queue and is dropped as a repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from roomcast.gateway.keys import NODE
from roomcast.gateway.websocket import WebSocketGateway
from tests.unit.worlds import Fleet, LocalNode, settled
from tests.websocket import WebSocket

__all__ = ["Walk", "main"]

SOURCE: Final = str(Path(__file__).parents[1] / "service" / "roomcast") + "/"
# In-memory twins stand for AWS.
LEFT_OUT: Final = ("testing/",)
FRAME_BYTES_MAX: Final = 65536


@dataclass(slots=True)
class Walk:
    """The trace. `files`: in the order of their first call. `moves`: calls from one file to
    another.

    A callback that begins in another file than the last call is a move as well.
    """

    files: list[str] = field(default_factory=list)
    moves: list[tuple[str, str]] = field(default_factory=list)
    # Kept, because otherwise a new frame could have the id of one that is gone.
    _seen: dict[int, FrameType] = field(default_factory=dict)

    def event(self, frame: FrameType, event: str, _: Any) -> None:
        """The function for sys.setprofile. A resumed coroutine is no new call."""
        file = _file(frame)
        if event != "call" or file is None or id(frame) in self._seen:
            return
        self._seen[id(frame)] = frame
        before = _caller(frame)
        if before is None and self.files:
            before = self._last
        if file not in self.files:
            self.files.append(file)
        if before is not None and before != file:
            self.moves.append((before, file))
        self._last = file

    _last: str = ""


def _file(frame: FrameType) -> str | None:
    name = frame.f_code.co_filename
    if not name.startswith(SOURCE):
        return None
    file = name.removeprefix(SOURCE)
    return None if file.startswith(LEFT_OUT) else file


def _caller(frame: FrameType) -> str | None:
    """The roomcast file that called `frame`, possibly through a library.

    None: the event loop called it.
    """
    caller = frame.f_back
    while caller is not None:
        file = _file(caller)
        if file is not None:
            return file
        caller = caller.f_back
    return None


async def walk() -> Walk:
    """Publishes once, from a client of one node, with a subscriber on each of two."""
    fleet = Fleet()
    fleet.stream_to_topic()
    walked = Walk()
    async with (
        _served(fleet.node("a")) as publisher,
        _served(fleet.node("b")) as listener,
    ):
        for socket in (publisher, listener):
            await socket.say({"connect": {}}, {"subscribe": {"channel": "room"}})
            await _until(socket, lambda line: line.get("id") == 2)
        # The first publication must look for the end of the log. The second is the usual case.
        for data, profile in (("first", None), ("second", walked.event)):
            # What follows the pushes of the one is no part of the other's way.
            await settled()
            with _profiled(profile):
                await publisher.say({"publish": {"channel": "room", "data": data}})
                for socket in (publisher, listener):
                    await _until(socket, partial(_brings, data))
    return walked


async def _until(socket: WebSocket, wanted: Callable[[dict[str, Any]], bool]) -> None:
    await socket.until(lambda: any(wanted(line) for line in socket.lines))


def _brings(data: str, line: dict[str, Any]) -> bool:
    return data in json.dumps(line.get("push", ""))


@contextmanager
def _profiled(event: Callable[[FrameType, str, Any], None] | None) -> Iterator[None]:
    sys.setprofile(event)
    try:
        yield
    finally:
        sys.setprofile(None)


@asynccontextmanager
async def _served(node: LocalNode) -> AsyncIterator[WebSocket]:
    app = web.Application()
    app[NODE] = node.assembly.node
    gateway = WebSocketGateway(
        allowed_origins=(), message_size_limit=FRAME_BYTES_MAX, queue_bytes_max=1024 * 1024
    )
    app.router.add_get("/connection/websocket", gateway.handle)
    async with (
        node.running(),
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.ws_connect(server.make_url("/connection/websocket")) as response,
    ):
        yield WebSocket(response)


def main() -> int:
    """Returns the exit code."""
    argparse.ArgumentParser(prog="python -m benchmarks.walk", description=__doc__).parse_args()
    walked = asyncio.run(walk())
    sys.stdout.write("".join(f"{file}\n" for file in walked.files))
    sys.stdout.write(f"{len(walked.files)} files, {len(walked.moves)} moves\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
