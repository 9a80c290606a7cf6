"""A peer: python-socketio, an AsyncServer on aiohttp, with its `emit` to a room."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import socketio
from aiohttp import web

from benchmarks.peers.control import listening, obey
from benchmarks.rig import CHANNEL, NO_PING_S

__all__: list[str] = []

clients: set[str] = set()
server = socketio.AsyncServer(async_mode="aiohttp", ping_interval=NO_PING_S)


@server.event
async def connect(sid: str, _environ: dict[str, Any]) -> None:
    """One client has come."""
    await server.enter_room(sid, CHANNEL)
    clients.add(sid)


async def broadcast(text: str) -> None:
    """Sends to the room."""
    await server.emit("publication", json.loads(text), room=CHANNEL)


async def main() -> None:
    """Serves until the end of standard input."""
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    door = listening()
    await web.SockSite(runner, door).start()
    await obey(door, lambda: len(clients), broadcast)


if __name__ == "__main__":
    asyncio.run(main())
