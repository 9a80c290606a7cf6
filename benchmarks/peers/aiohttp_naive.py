"""A peer: aiohttp, with a loop of `await ws.send_str`, as many servers begin."""

from __future__ import annotations

import asyncio

from aiohttp import web

from benchmarks.peers.control import listening, obey

__all__: list[str] = []

clients: set[web.WebSocketResponse] = set()


async def handle(request: web.Request) -> web.WebSocketResponse:
    """One client, until it leaves."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    clients.add(ws)
    try:
        async for _ in ws:
            pass
    finally:
        clients.discard(ws)
    return ws


async def broadcast(text: str) -> None:
    """Sends to one after the other."""
    for ws in list(clients):
        await ws.send_str(text)


async def main() -> None:
    """Serves until the end of standard input."""
    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    door = listening()
    await web.SockSite(runner, door).start()
    await obey(door, lambda: len(clients), broadcast)


if __name__ == "__main__":
    asyncio.run(main())
