"""A server that breaks promises: what a correct one never does, a load must notice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

__all__ = ["Pushes", "faulty", "one"]

# What one subscriber gets for the publication of that number (from 0 on).
Pushes = Callable[[int, Mapping[str, Any]], Sequence[Mapping[str, Any]]]


def one(offset: int, publication: Mapping[str, Any]) -> Mapping[str, Any]:
    """A push of a publication."""
    push = {"channel": publication["channel"], "pub": {"data": publication["data"]}}
    return {"push": push | {"pub": push["pub"] | {"offset": offset}}}


@asynccontextmanager
async def faulty(pushes: Pushes) -> AsyncIterator[str]:
    """The address of a server for one client, which hears what `pushes` says."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        count = 0
        async for message in socket:
            for command in map(json.loads, message.data.split("\n")):
                answer: dict[str, Any] = {"id": command["id"]}
                lines: list[Mapping[str, Any]] = [answer]
                if "connect" in command:
                    answer["connect"] = {"client": "c", "ping": 25, "pong": True}
                elif "subscribe" in command:
                    answer["subscribe"] = {"recoverable": True, "epoch": "e"}
                else:
                    answer["publish"] = {}
                    lines += pushes(count, command["publish"])
                    count += 1
                await socket.send_str("\n".join(map(json.dumps, lines)))
        return socket

    app = web.Application()
    app.router.add_get("/connection/websocket", serve)
    async with TestServer(app) as server:
        yield str(server.make_url("/connection/websocket")).replace("http", "ws", 1)
