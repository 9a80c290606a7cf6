"""A Lambda function URL: HTTP in front of a handler, in the payload format 2.0 of AWS."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

__all__ = ["Handler", "function_url"]

Handler = Callable[[dict[str, Any], object], dict[str, Any]]


@asynccontextmanager
async def function_url(handler: Handler) -> AsyncIterator[str]:
    """The address at which `handler` answers."""

    async def invoke(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        answer = handler(
            {
                "version": "2.0",
                "rawPath": request.path,
                "rawQueryString": request.query_string,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "requestContext": {"http": {"method": request.method, "path": request.path}},
                # As AWS does for what is no text.
                "body": base64.b64encode(body).decode(),
                "isBase64Encoded": True,
            },
            None,
        )
        return web.Response(
            status=answer["statusCode"], headers=answer["headers"], text=answer["body"]
        )

    runner = web.ServerRunner(web.Server(invoke))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        yield f"http://{host}:{port}/"
    finally:
        await runner.cleanup()
