"""A real node whose keys come from an identity provider:
one that is down at first, and then is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from roomcast.auth.verifier import sign_connection
from tests.integration.serving import deployed, serving
from tests.signers import ALGORITHMS, jwks, signer
from tests.websocket import WebSocket

pytest_plugins = ("pytest_aiohttp.plugin",)

SECRET: Final = "a secret of the tests, long enough to be no warning"
CONFIG: Final = """
[client.token]
hmac_secret_key = "{secret}"
jwks_public_endpoint = "{endpoint}"
audience = "chat"
[channel.without_namespace]
allow_subscribe_for_client = true
[node]
drain_s = 0
"""


class Provider:
    """Publishes the keys of every algorithm, when it is up."""

    def __init__(self) -> None:
        self.up = False
        self.url = ""

    async def keys(self, _: web.Request) -> web.Response:
        if not self.up:
            raise web.HTTPServiceUnavailable
        return web.Response(
            body=jwks(*(signer(algorithm).jwk(algorithm) for algorithm in ALGORITHMS))
        )


@pytest.fixture
async def provider(
    aiohttp_server: Callable[[web.Application], Awaitable[TestServer]],
) -> Provider:
    provider, app = Provider(), web.Application()
    app.router.add_get("/.well-known/jwks.json", provider.keys)
    provider.url = str((await aiohttp_server(app)).make_url("/.well-known/jwks.json"))
    return provider


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_tokens_of_a_provider_that_comes_up_late(
    tmp_path: Path, provider: Provider, session: aiohttp.ClientSession
) -> None:
    claims = {"sub": "ann", "aud": "chat", "exp": time.time() + 60}
    tokens = {algorithm: signer(algorithm).sign(claims, algorithm) for algorithm in ALGORITHMS}

    async def connect(token: str) -> Any:
        async with session.ws_connect(f"{node.url}/connection/websocket") as response:
            socket = WebSocket(response)
            result = await socket.ask("connect", token=token)
            if result == 100:
                assert socket.lines[-1]["error"]["temporary"] is True
            return result

    async def health() -> dict[str, Any]:
        async with session.get(f"{node.url}/health/ready") as response:
            assert response.status == 200
            return dict(await response.json())

    with deployed(tmp_path, "jwks-") as aws:
        config = aws.config("jwks", CONFIG.format(secret=SECRET, endpoint=provider.url))
        with serving(config) as node:
            await asyncio.to_thread(node.ready)
            assert (await asyncio.to_thread(node.said, "jwks_fetch_failed"))[
                "reason"
            ] == "status 503"
            assert {await connect(token) for token in tokens.values()} == {100}
            own = await connect(sign_connection("ann", SECRET, 60, audience="chat"))
            assert own["ttl"] in (59, 60)
            status = await health()
            assert any("jwks_public_endpoint" in reason for reason in status["reasons"])
            provider.up = True
            assert (await asyncio.to_thread(node.said, "jwks_changed"))["keys"] == len(ALGORITHMS)
            for token in tokens.values():
                assert (await connect(token))["expires"] is True
            status = await health()
            assert not any("jwks_public_endpoint" in reason for reason in status["reasons"])
            stranger = signer("RS256").sign({**claims, "aud": "elsewhere"}, "RS256")
            async with session.ws_connect(f"{node.url}/connection/websocket") as response:
                await WebSocket(response).say({"connect": {"token": stranger}})
                assert await WebSocket(response).closed() == 3500
            node.signal()
            assert await asyncio.to_thread(node.ended) == 0
        for token in (*tokens.values(), stranger):
            assert all(part not in node.log for part in token.split(".")[1:])
        assert "Traceback" not in node.log
