"""Clients in Protobuf, over nodes in memory."""

from __future__ import annotations

import itertools
from typing import Any

from roomcast.client.connection import Connection
from roomcast.wire.protobuf import PROTOBUF_FRAMES, encode_messages
from tests.protobuf import command, parsed
from tests.unit.worlds import LocalNode, Socket, until

__all__ = ["BinaryClient", "BinarySocket", "binary"]


class BinarySocket(Socket):
    is_binary = True

    def __init__(self) -> None:
        super().__init__(encode_messages)

    @property
    def messages(self) -> list[Any]:
        """`Reply` messages."""
        return [message for frame in self.frames for message in parsed(frame)]


class BinaryClient:
    """Says what a client in Protobuf says."""

    def __init__(self, node: LocalNode) -> None:
        self.socket = BinarySocket()
        self.connection: Connection = node.assembly.node.open(self.socket)
        self._ids = itertools.count(1)

    async def ask(self, method: str, /, **params: Any) -> Any:
        """The result."""
        reply = await self._reply(method, params)
        assert not reply.error.code, reply
        return getattr(reply, method)

    async def refused(self, method: str, /, **params: Any) -> int:
        """The code of the error; 0 = there is none."""
        return int((await self._reply(method, params)).error.code)

    async def _reply(self, method: str, params: Any) -> Any:
        number = next(self._ids)
        await self.connection.receive(command({"id": number, method: params}), PROTOBUF_FRAMES)
        await until(lambda: any(each.id == number for each in self.socket.messages))
        [reply] = [each for each in self.socket.messages if each.id == number]
        return reply

    async def publish(self, channel: str, *raws: bytes) -> None:
        for raw in raws:
            await self.ask("publish", channel=channel, data=raw)

    async def pushed(self, channel: str, count: int) -> list[bytes]:
        def found() -> list[bytes]:
            return [
                each.push.pub.data
                for each in self.socket.messages
                if each.push.channel == channel and each.push.HasField("pub")
            ]

        await until(lambda: len(found()) >= count)
        return found()


async def binary(node: LocalNode, **connect: Any) -> BinaryClient:
    client = BinaryClient(node)
    await client.ask("connect", **connect)
    return client
