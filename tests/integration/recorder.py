"""Stands between a process and its AWS and writes down what IAM is asked for each of its
calls. Loopback only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from tests.chaos.proxy import forward
from tests.deploy.calls import asked, calls
from tests.deploy.iam import Call

__all__ = ["Recorder", "recorder"]


class Recorder:
    """Forwards everything to `upstream`. `lost`: of how many calls of an operation the next
    answers are not passed on.
    """

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session
        self.lost: Counter[str] = Counter()
        self.calls: list[Call] = []
        # Of queues, as they were made.
        self._tags: dict[str, Mapping[str, str]] = {}
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        operation, parameters = asked(request.headers.get("X-Amz-Target", ""), body)
        region, service = _signed_for(request)
        self.calls.extend(
            calls(service, region, operation, parameters, lambda queue: self._tags.get(queue, {}))
        )
        if operation == "CreateQueue":
            self.knows(parameters["QueueName"], parameters["tags"])
        answer = await forward(self._session, self._upstream, request, body)
        if self.lost[operation] and request.transport is not None:
            self.lost[operation] -= 1
            request.transport.close()
        return answer

    def knows(self, queue: str, tags: Mapping[str, str]) -> None:
        """A queue, whoever made it."""
        self._tags[queue] = tags


@asynccontextmanager
async def recorder(upstream: str) -> AsyncIterator[Recorder]:
    """One that listens."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        recording = Recorder(upstream, session)
        runner = web.ServerRunner(
            web.Server(recording.handle, access_log=None), shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            recording.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield recording
        finally:
            await runner.cleanup()


def _signed_for(request: web.BaseRequest) -> tuple[str, str]:
    """Region and service, as the signature has them:
    Credential=KEY/DATE/REGION/SERVICE/aws4_request.
    """
    scope = request.headers["Authorization"].partition("Credential=")[2].partition(",")[0]
    _, _, region, service, _ = scope.split("/")
    return region, service
