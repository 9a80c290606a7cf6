"""A peer: websockets, with its `broadcast`."""

from __future__ import annotations

import asyncio

from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.peers.control import listening, obey

__all__: list[str] = []

clients: set[ServerConnection] = set()


async def handle(websocket: ServerConnection) -> None:
    """One client, until it leaves."""
    clients.add(websocket)
    try:
        await websocket.wait_closed()
    finally:
        clients.discard(websocket)


async def send(text: str) -> None:
    """Sends to all at once."""
    broadcast(clients, text)


async def main() -> None:
    """Serves until the end of standard input. A run has no pings, for nobody."""
    door = listening()
    async with serve(handle, sock=door, ping_interval=None):
        await obey(door, lambda: len(clients), send)


if __name__ == "__main__":
    asyncio.run(main())
