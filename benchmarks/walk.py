"""Follows one publication through the source files: from a frame on one node to a push on another.

`python -m benchmarks.walk` prints two legs of its way, each with the files in the order of their
first call. The first leg ends with the write into the log. The second begins with the poller that
receives it, on the other node.

- The message *passes* a file if one of its functions gets it as an argument, returns it, or hands
  it on, in any form: as a frame, decoded, stored, or as a push.
- A *move* is a call of a function in another file, with the message or without.

Left out are the implementations of ports (the watched table, AWS's table and queue) and the Lambda,
for which in-memory twins stand, and what the first node does after the write: its answer, its own
subscribers, and its own copy of the message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from types import FrameType
from typing import Any, Final

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

import roomcast
from roomcast.gateway.admission import Admission
from roomcast.gateway.keys import NODE
from roomcast.gateway.websocket import WebSocketGateway
from tests.unit.worlds import Fleet, settled
from tests.websocket import WebSocket

__all__ = ["Leg", "Walk", "main", "walk"]

SOURCE: Final = str(Path(roomcast.__file__).parent) + "/"
# In-memory twins stand for AWS.
TWINS: Final = "testing/"
# A table in front of another one.
WATCHED: Final = "log/watched_table.py"
# The call of a twin that ends the first leg.
WRITE: Final = "put_item"
MESSAGE: Final = "the-message"
# How deep objects are searched for the message: an envelope has it in a publication in a record.
DEPTH_MAX: Final = 6
FRAME_BYTES_MAX: Final = 65536

# The node on which the code runs: tasks inherit it.
_NODE: ContextVar[str] = ContextVar("node", default="")


@dataclass(slots=True)
class Leg:
    """A part of the way.

    `files`: in the order of their first call. `passed`: those that the message passes. `moves`:
    calls from one file to another; a callback that begins in another file than the last call is one
    as well. `handovers`: those moves that hand over the message.
    """

    files: list[str] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    moves: int = 0
    handovers: int = 0
    last: str = ""


@dataclass(slots=True)
class _Call:
    frame: FrameType
    leg: Leg
    files: tuple[str, ...]
    is_move: bool
    carries: bool


class Walk:
    """The trace of one publication. `legs`: to the log, and from the queue."""

    def __init__(self) -> None:
        self.legs = {"a": Leg(), "b": Leg()}
        self._is_written = False
        # By id of the frame. They are kept, because otherwise a new frame could have the id of one
        # that is gone.
        self._calls: dict[int, _Call] = {}

    def event(self, frame: FrameType, event: str, result: object) -> None:
        """The function for sys.setprofile. A resumed coroutine is no new call."""
        # A generator expression is a part of its function.
        if frame.f_code.co_name.startswith("<"):
            return
        if event == "call" and id(frame) not in self._calls:
            self._called(frame)
        elif event == "return" and (call := self._calls.get(id(frame))) and not call.carries:
            call.carries = _holds(result)
            self._carried(call)

    def _called(self, frame: FrameType) -> None:
        file = _file(frame)
        if file is None or file == WATCHED or any(map(_is_twin, _callers(frame))):
            return
        if _is_twin(file):
            self._is_written |= frame.f_code.co_name == WRITE
            return
        node = _NODE.get()
        if node not in self.legs or (node == "a" and self._is_written):
            return
        leg = self.legs[node]
        before = next(_callers(frame), leg.last)
        if file not in leg.files:
            leg.files.append(file)
        files = (file, next(_callers(frame), file))
        call = _Call(frame, leg, files, before not in ("", file), _holds(_arguments(frame)))
        leg.moves += call.is_move
        leg.last = file
        self._calls[id(frame)] = call
        self._carried(call)

    def _carried(self, call: _Call) -> None:
        if call.carries:
            call.leg.passed.update(call.files)
            call.leg.handovers += call.is_move


def _file(frame: FrameType) -> str | None:
    name = frame.f_code.co_filename
    return name.removeprefix(SOURCE) if name.startswith(SOURCE) else None


def _is_twin(file: str) -> bool:
    return file.startswith(TWINS)


def _callers(frame: FrameType) -> Iterator[str]:
    """The files that called `frame`, possibly through a library; the nearest first."""
    caller = frame.f_back
    while caller is not None:
        file = _file(caller)
        if file is not None:
            yield file
        caller = caller.f_back


def _arguments(frame: FrameType) -> list[object]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
    names = code.co_varnames[:count]
    return [frame.f_locals.get(name) for name in names if name not in ("self", "cls")]


def _holds(value: object, depth: int = DEPTH_MAX) -> bool:
    """Whether `value` is the message, or a container or a value (a dataclass that is frozen, at
    least for the type checker) with it inside.
    """
    if isinstance(value, str):
        return MESSAGE in value
    if isinstance(value, bytes | bytearray):
        return MESSAGE.encode() in value
    if depth == 0:
        return False
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple | deque):
        inner = value
    elif is_dataclass(value) and _is_value(value):
        inner = [getattr(value, each.name) for each in fields(value)]
    return any(_holds(each, depth - 1) for each in inner)


def _is_value(instance: Any) -> bool:
    made = instance.__dataclass_params__
    return bool(made.frozen or made.unsafe_hash)


async def walk() -> Walk:
    """Publishes once, from a client of one node, with a subscriber on each of two."""
    fleet = Fleet()
    fleet.stream_to_topic()
    walked = Walk()
    async with _served(fleet, "a") as publisher, _served(fleet, "b") as listener:
        for socket in (publisher, listener):
            await socket.say({"connect": {}}, {"subscribe": {"channel": "room"}})
            await _until(socket, lambda line: line.get("id") == 2)
        # The first publication must look for the end of the log. The second is the usual case.
        for data, profile in (("first", None), (MESSAGE, walked.event)):
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
async def _served(fleet: Fleet, name: str) -> AsyncIterator[WebSocket]:
    """A client of a node. All tasks of the node are begun in its context."""
    node = fleet.node(name)
    app = web.Application()
    app[NODE] = node.assembly.node
    gateway = WebSocketGateway(
        Admission(allowed_origins=()),
        message_size_limit=FRAME_BYTES_MAX,
        queue_bytes_max=1024 * 1024,
    )
    app.router.add_get("/connection/websocket", gateway.handle)
    token = _NODE.set(name)
    async with node.running(), TestServer(app) as server:
        _NODE.reset(token)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(server.make_url("/connection/websocket")) as response,
        ):
            yield WebSocket(response)


def main() -> int:
    """Returns the exit code."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.walk",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    walked = asyncio.run(walk())
    for name, leg in zip(("to the log", "from the queue"), walked.legs.values(), strict=True):
        sys.stdout.write(f"{name}\n")
        for each in leg.files:
            sys.stdout.write(f"  {'*' if each in leg.passed else ' '} {each}\n")
    legs = walked.legs.values()
    passed = {each for leg in legs for each in leg.passed}
    handovers, moves = sum(leg.handovers for leg in legs), sum(leg.moves for leg in legs)
    files = {each for leg in legs for each in leg.files}
    sys.stdout.write(f"the message passes {len(passed)} files (*), in {handovers} moves\n")
    sys.stdout.write(f"all that is called: {len(files)} files, {moves} moves\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
