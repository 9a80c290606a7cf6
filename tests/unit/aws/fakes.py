"""A server that answers as it is told, and SDK clients that record their calls."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final

import aioboto3
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from roomcast.aws.clients import AwsClients, connect

REGION: Final = "eu-west-1"
SESSION: Final = aioboto3.Session(
    aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
)

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def client_error(
    code: str, status: int = 400, operation: str = "PutItem", **extra: Any
) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": "told so"},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **extra,
    }
    return ClientError(response, operation)


class FakeServer:
    """Counts the requests that reach it, and answers each with `answer`.

    `seen`: the first line, the headers by their small names, and the body of each.
    """

    def __init__(self, answer: Answer) -> None:
        self.requests = 0
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            self.seen.append((first, headers, body))
            self.requests += 1
            await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close in good order, without an answer."""


async def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def say(status: int, body: str = "{}", length: int | None = None, request_id: str = "1") -> Answer:
    """One answer of HTTP; `length` beyond the body's breaks off in its middle.

    `request_id` "": none, as of whoever is not AWS.
    """
    identified = f"x-amzn-RequestId: {request_id}\r\n" if request_id else ""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 {status} Told\r\nContent-Type: application/x-amz-json-1.0\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n"
            f"{identified}Connection: close\r\n\r\n{body}".encode(errors="surrogateescape")
        )
        await writer.drain()

    return answer


@asynccontextmanager
async def faked(
    answer: Answer, *, lean: bool = True, session: aioboto3.Session = SESSION
) -> AsyncIterator[tuple[AwsClients, FakeServer]]:
    """Real clients of a fake server."""
    fake = FakeServer(answer)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        connect(
            region=REGION, endpoint_url=f"http://127.0.0.1:{port}", session=session, lean=lean
        ) as clients,
    ):
        yield clients, fake


def answer_all(client: Any, body: str, status: int = 200) -> None:
    """Have a client of boto3 get this answer to whatever it asks, and send nothing."""

    def answer(request: Any, **_: Any) -> AWSResponse:
        raw = SimpleNamespace(stream=lambda: [body.encode()])
        return AWSResponse(request.url, status, {}, raw)

    client.meta.events.register("before-send", answer)


class FakeClient:
    """An SDK client whose operations are given as functions;
    `calls` keeps (operation, arguments).
    """

    def __init__(self, **operations: Callable[..., Any]) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.meta = self
        self.events = self
        self._operations = operations

    def register(self, *_: Any, **__: Any) -> None:
        """Stands for `client.meta.events.register`."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        operation = self._operations[name]

        async def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            answer = operation(**arguments)
            if isinstance(answer, asyncio.Future):
                return await answer
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]
