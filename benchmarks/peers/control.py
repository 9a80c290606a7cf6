"""How benchmarks/contest.py talks to a peer: lines of JSON in and out, as benchmarks/node.py does.

A peer prints its port, obeys until the end of its input, and then ends at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

__all__ = ["listening", "obey"]

_POLL_S: Final = 0.01
_BACKLOG: Final = 1024


def listening() -> socket.socket:
    """A socket that listens on a free port of loopback."""
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen(_BACKLOG)
    return door


async def obey(
    door: socket.socket, clients: Callable[[], int], broadcast: Callable[[str], Awaitable[None]]
) -> None:
    """`clients` counts those that are in. `broadcast` sends one publication to all of them."""
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _answer({"port": door.getsockname()[1]})
    while line := await commands.readline():
        match json.loads(line):
            case {"do": "subscribed", "count": count}:
                while clients() < count:  # noqa: ASYNC110  # their libraries tell nobody
                    await asyncio.sleep(_POLL_S)
            case {"do": "broadcast", "count": count, "text": text}:
                for _ in range(count):
                    await broadcast(text)
                    # Publications come one by one, as from a publisher who waits.
                    await asyncio.sleep(0)
        _answer({})
    # The clients are gone already: no clean-up is needed.
    os._exit(0)


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
