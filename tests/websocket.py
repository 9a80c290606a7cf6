"""A WebSocket client that says exactly what a test wants said,
in the Centrifuge protocol's JSON or Protobuf.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType

from tests.protobuf import command, read_messages

__all__ = ["DEADLINE_S", "PROTOBUF", "WebSocket"]

# The subprotocol that asks for it.
PROTOBUF: Final = "centrifuge-protobuf"

# For one frame from the server; a loaded machine may be slow.
DEADLINE_S: Final = 15.0


class WebSocket:
    """One connection. `lines` keeps everything that came, replies and pushes,
    in order, as JSON has them.
    """

    def __init__(self, response: aiohttp.ClientWebSocketResponse) -> None:
        self.response = response
        self.lines: list[dict[str, Any]] = []
        self._ids = itertools.count(1)

    async def say(self, *commands: Mapping[str, Any]) -> list[int]:
        """One frame with these commands, each with an id of its own. Returns their ids."""
        numbered = [{"id": next(self._ids), **each} for each in commands]
        if self.is_protobuf:
            await self.response.send_bytes(b"".join(command(each) for each in numbered))
        else:
            await self.response.send_str("\n".join(json.dumps(each) for each in numbered))
        return [each["id"] for each in numbered]

    @property
    def is_protobuf(self) -> bool:
        return self.response.protocol == PROTOBUF

    @property
    def _frames(self) -> WSMsgType:
        return WSMsgType.BINARY if self.is_protobuf else WSMsgType.TEXT

    async def read(self) -> None:
        """The next frame, which must be of the connection's encoding."""
        message = await self.response.receive(DEADLINE_S)
        assert message.type is self._frames, (message, self.response.close_code)
        if self.is_protobuf:
            self.lines += read_messages(message.data)
        else:
            self.lines += [json.loads(line) for line in message.data.split("\n")]

    async def until(self, found: Callable[[], Any]) -> Any:
        """Read on until `found` finds something."""
        while not (result := found()):
            await self.read()
        return result

    async def answer(self, command_id: int) -> dict[str, Any]:
        """The reply to a command."""
        reply: dict[str, Any] = await self.until(
            lambda: next((line for line in self.lines if line.get("id") == command_id), None)
        )
        return reply

    async def ask(self, method: str, /, **params: Any) -> Any:
        """The result of a command, or its error's code."""
        [command_id] = await self.say({method: params})
        reply = await self.answer(command_id)
        return reply["error"]["code"] if "error" in reply else reply[method]

    def pushes(self, channel: str, kind: str) -> list[Any]:
        """What came so far of one kind: pub, join, leave or unsubscribe."""
        pushes = [line["push"] for line in self.lines if "push" in line]
        return [push[kind] for push in pushes if push["channel"] == channel and kind in push]

    def data(self, channel: str) -> list[Any]:
        """Of the publications that came so far."""
        return [publication["data"] for publication in self.pushes(channel, "pub")]

    async def published(self, channel: str, count: int) -> list[Any]:
        """The data of all publications of `channel`, as soon as there are `count`."""
        await self.until(lambda: len(self.data(channel)) >= count)
        return self.data(channel)

    async def closed(self) -> int | None:
        """Read on until the server closes; its code."""
        while True:
            message = await self.response.receive(DEADLINE_S)
            if message.type is not self._frames:
                return self.response.close_code
