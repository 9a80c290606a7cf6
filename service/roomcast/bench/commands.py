"""What a client sends and reads: commands and replies of the Centrifuge protocol in JSON.

`wire/` has the server's side of the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

__all__ = ["connect", "lines", "publish", "replies", "subscribe"]


def connect(identity: int, token: str, version: str) -> str:
    """The command with that id that connects. `token`: "" = none. `version`: of roomcast."""
    request = {"name": "roomcast bench", "version": version}
    return _command(identity, "connect", request | ({"token": token} if token else {}))


def subscribe(identity: int, channel: str, position: tuple[str, int] | None) -> str:
    """Asks for a position, and for recovery. `position`: (epoch, offset) to recover from."""
    request: dict[str, Any] = {"channel": channel, "positioned": True, "recoverable": True}
    if position is not None:
        epoch, offset = position
        request |= {"recover": True, "epoch": epoch, "offset": offset}
    return _command(identity, "subscribe", request)


def publish(identity: int, channel: str, data: str) -> str:
    """`data`: JSON text, which is sent as it is."""
    named = orjson.dumps(channel).decode()
    return f'{{"id":{identity},"publish":{{"channel":{named},"data":{data}}}}}'


def lines(commands: Iterable[str]) -> str:
    """A frame."""
    return "\n".join(commands)


def replies(frame: str) -> Iterator[Mapping[str, Any]]:
    """The replies and pushes in a frame; an empty one is a ping. Raises ValueError."""
    for line in frame.rstrip("\n").split("\n"):
        reply = orjson.loads(line)
        if not isinstance(reply, dict):
            raise ValueError("a line is no object")
        yield reply


def _command(identity: int, method: str, request: Mapping[str, Any]) -> str:
    return orjson.dumps({"id": identity, method: request}).decode()
