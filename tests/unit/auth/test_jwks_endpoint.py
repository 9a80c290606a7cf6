"""service/roomcast/auth/jwks_endpoint.py: one answer, of bounded size,
from the address that is configured and no other.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from roomcast.auth.jwks import FetchFailed
from roomcast.auth.jwks_endpoint import JWKS_BYTES_MAX, fetch_jwks

pytest_plugins = ("pytest_aiohttp.plugin",)

Serve = Callable[[web.Application], Awaitable[TestServer]]
BODY = b'{"keys":[]}'


@pytest.fixture
async def server(aiohttp_server: Serve) -> TestServer:
    """Answers as its paths say. What came is in `asked`."""
    app = web.Application()
    asked = app[ASKED] = []

    async def keys(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(body=BODY, content_type="text/plain")

    async def status(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["code"]), body=BODY)

    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.query["to"])

    async def size(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(int(request.match_info["bytes"]) // 1024):
            await response.write(b" " * 1024)
        return response

    async def packed(_: web.Request) -> web.Response:
        return web.Response(
            body=gzip.compress(b" " * 10_000_000), headers={"Content-Encoding": "gzip"}
        )

    app.router.add_get("/keys", keys)
    app.router.add_get("/status/{code}", status)
    app.router.add_get("/elsewhere", elsewhere)
    app.router.add_get("/size/{bytes}", size)
    app.router.add_get("/packed", packed)
    return await aiohttp_server(app)


ASKED = web.AppKey("asked", list[web.Request])


async def test_the_body_is_fetched(server: TestServer) -> None:
    assert await fetch_jwks(str(server.make_url("/keys?tenant=1"))) == BODY
    [request] = server.app[ASKED]
    assert request.query_string == "tenant=1"
    assert request.headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in request.headers
    assert "Authorization" not in request.headers


@pytest.mark.parametrize("code", [201, 204, 304, 401, 404, 429, 500, 503])
async def test_only_200_is_an_answer(server: TestServer, code: int) -> None:
    with pytest.raises(FetchFailed, match=f"status {code}"):
        await fetch_jwks(str(server.make_url(f"/status/{code}")))


async def test_nobody_is_followed_elsewhere(server: TestServer) -> None:
    with pytest.raises(FetchFailed, match="status 302"):
        await fetch_jwks(
            str(server.make_url("/elsewhere").with_query(to=str(server.make_url("/keys"))))
        )
    assert server.app[ASKED] == []


async def test_a_body_has_its_bound(server: TestServer) -> None:
    assert len(await fetch_jwks(str(server.make_url(f"/size/{JWKS_BYTES_MAX}")))) == JWKS_BYTES_MAX
    for bytes_ in (JWKS_BYTES_MAX + 1024, 100 * JWKS_BYTES_MAX):
        with pytest.raises(FetchFailed, match=f"more than {JWKS_BYTES_MAX} bytes"):
            await fetch_jwks(str(server.make_url(f"/size/{bytes_}")))


async def test_nothing_is_unpacked(server: TestServer) -> None:
    """It would be ten megabytes. As it is, it is no JSON."""
    body = await fetch_jwks(str(server.make_url("/packed")))
    assert body.startswith(b"\x1f\x8b")
    assert len(body) < JWKS_BYTES_MAX


@asynccontextmanager
async def talking(answer: bytes) -> AsyncIterator[str]:
    """A server that says `answer` to whatever it hears; its address."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/keys"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 mail.example.com ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02",
    ],
)
async def test_whatever_speaks_there_is_a_failure_and_no_more(answer: bytes) -> None:
    async with talking(answer) as url:
        with pytest.raises(FetchFailed) as caught:
            await fetch_jwks(url)
    assert 0 < len(str(caught.value)) <= 200


async def test_nobody_is_there(unused_tcp_port: int) -> None:
    with pytest.raises(FetchFailed, match="Connect"):
        await fetch_jwks(f"http://127.0.0.1:{unused_tcp_port}/")


async def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, unused_tcp_port: int) -> None:
    """Whoever stands between us and the provider has no other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    both = tmp_path / "server.pem"
    both.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(both)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", unused_tcp_port, ssl=tls):
        with pytest.raises(FetchFailed, match="CertificateError"):
            await fetch_jwks(f"https://localhost:{unused_tcp_port}/keys")
