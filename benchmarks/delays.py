"""A proxy before the embedded AWS that makes calls take as long as AWS says they typically do.

The embedded AWS answers at once. What a publication takes from instance to instance is mostly these
delays, each given as AWS's typical one:

- STREAM_S from the table to the Lambda. The event source mapping reads a shard POLLS_PER_S times a
  second; the rest is put before the answers of GetRecords that bring something.
- SNS_S from a publication to the queue: before Publish and PublishBatch.
- SQS_S from the queue to a consumer that waits: before answers of ReceiveMessage that bring
  something.

    python -m benchmarks.delays ENDPOINT        prints {"endpoint": "http://127.0.0.1:…"}
    python -m benchmarks.delays --pump …        the stream pump, as often as AWS reads a shard

It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

from roomcast.dev import stream_pump

__all__ = ["POLLS_PER_S", "SNS_S", "SQS_S", "STREAM_S"]

STREAM_S: Final = 0.213
POLLS_PER_S: Final = 4
SNS_S: Final = 0.073
SQS_S: Final = 0.016
# A record waits for half of the time between two reads, as a median.
_GET_RECORDS_S: Final = STREAM_S - 0.5 / POLLS_PER_S
assert _GET_RECORDS_S > 0

# Of one connection only.
_HOP_BY_HOP: Final = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})


class Delays:
    """Forwards to `upstream`."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        operation = _operation(request, body)
        if operation in ("Publish", "PublishBatch"):
            await asyncio.sleep(SNS_S)
        async with self._session.request(
            request.method,
            self._upstream + request.path_qs,
            headers=_kept(request.headers.items()),
            data=body,
        ) as answer:
            content = await answer.read()
            headers = _kept(answer.headers.items())
        if operation == "ReceiveMessage" and b'"Messages"' in content:
            await asyncio.sleep(SQS_S)
        elif operation == "GetRecords" and b'"eventID"' in content:
            await asyncio.sleep(_GET_RECORDS_S)
        return web.Response(status=answer.status, headers=headers, body=content)


def _operation(request: web.BaseRequest, body: bytes) -> str:
    target = request.headers.get("X-Amz-Target")
    if target is not None:
        return target.partition(".")[2]
    return parse_qs(body.decode()).get("Action", [""])[0]


def _kept(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in _HOP_BY_HOP}


async def serve(upstream: str) -> None:
    """Forwards until the end of standard input."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        server = web.Server(Delays(upstream, session).handle, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port = runner.addresses[0][1]
            sys.stdout.write(json.dumps({"endpoint": f"http://127.0.0.1:{port}"}) + "\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.read)
        finally:
            await runner.cleanup()


def main(arguments: list[str]) -> int:
    """The proxy, or the pump."""
    if arguments[:1] == ["--pump"]:
        stream_pump.POLL_INTERVAL_S = 1 / POLLS_PER_S  # type: ignore[misc]  # a developer's is shorter
        return stream_pump.main(arguments[1:])
    asyncio.run(serve(*arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
