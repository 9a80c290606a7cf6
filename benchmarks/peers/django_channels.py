"""A peer: Django Channels on uvicorn, with `group_send` through Redis.

python -m benchmarks.peers.django_channels unix:///path/of/redis.sock
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

import django
import uvicorn
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.conf import settings

from benchmarks.peers.control import listening, obey
from benchmarks.rig import CHANNEL

__all__: list[str] = []

SOCKET_S: Final = 60
clients: set[str] = set()


class Subscriber(AsyncWebsocketConsumer):
    """One client of the group."""

    async def connect(self) -> None:
        await self.channel_layer.group_add(CHANNEL, self.channel_name)
        await self.accept()
        clients.add(self.channel_name)

    async def publication(self, event: dict[str, Any]) -> None:
        """What the group was sent."""
        await self.send(text_data=json.dumps(event["data"]))


async def broadcast(text: str) -> None:
    """Sends to the group."""
    layer = get_channel_layer()
    await layer.group_send(CHANNEL, {"type": "publication", "data": json.loads(text)})


async def main() -> None:
    """Serves until the end of standard input."""
    door = listening()
    app = Subscriber.as_asgi()
    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", ws_ping_interval=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[door]))
    await obey(door, lambda: len(clients), broadcast)
    await serving


if __name__ == "__main__":
    # redis-py 8 gives up a read after 5 s, which is as long as channels-redis waits in one.
    host = {"address": sys.argv[1], "socket_timeout": SOCKET_S}
    layer = {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {"hosts": [host]},
    }
    settings.configure(CHANNEL_LAYERS={"default": layer})
    django.setup()
    asyncio.run(main())
