"""Clients over wss, everything else over https at a port of its own: certificates that change while
clients are connected, sockets that say nothing, and a drain that can be watched.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from roomcast.gateway.door import REQUEST_S
from tests.certificates import Pair, trusting
from tests.integration.serving import START_S, Aws, Process, deployed
from tests.websocket import WebSocket

PREFIX: Final = "ports-"
ROOM: Final = "room"
KEY: Final = "a key of the tests"
# Enough to look at a node that drains.
DRAIN_S: Final = 3
DEADLINE_S: Final = 30.0
SHUTDOWN: Final = 3001
SILENT: Final = 20
OLD, NEW, INSIDE = Pair("old"), Pair("new"), Pair("inside")

CONFIG: Final = f"""
[client]
insecure = true
[channel.without_namespace]
history_size = 10
history_ttl = "300s"
[http_api]
key = "{KEY}"
[node]
drain_s = {DRAIN_S}
"""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("ports"), PREFIX) as aws:
        yield aws


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def table(name: str, pair: Pair, directory: Path) -> str:
    directory.mkdir()
    cert, key = pair.write(directory)
    return f'[{name}]\ncert_file = "{cert}"\nkey_file = "{key}"\n'


async def status(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as response:
        return response.status


async def shown(port: int) -> str:
    """Whose certificate a new connection is shown."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=trusting(OLD, NEW, INSIDE), server_hostname="127.0.0.1"
    )
    ((name,),) = writer.get_extra_info("peercert")["subject"]
    writer.close()
    return str(name[1])


async def silence(port: int) -> float:
    """How long a connection lives that says nothing, in seconds."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begun_s = loop.time()
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    return loop.time() - begun_s


async def test_wss_https_a_new_certificate_and_a_drain(aws: Aws) -> None:
    internal = free_port()
    files = aws.directory / "outside"
    config = aws.config(
        "tls",
        CONFIG
        + f"[server]\ninternal_port = {internal}\n"
        + table("server.tls", OLD, files)
        + table("server.internal_tls", INSIDE, aws.directory / "inside"),
    )
    process = Process(config, "--port", "0")
    connector = aiohttp.TCPConnector(ssl=trusting(OLD, NEW, INSIDE))
    try:
        await asyncio.to_thread(process.ready)
        assert process.said("ready")["internal_port"] == internal
        outside, inside = f"https://127.0.0.1:{process.port}", f"https://127.0.0.1:{internal}"
        silent = [asyncio.create_task(silence(process.port)) for _ in range(SILENT)]
        async with aiohttp.ClientSession(connector=connector) as session:
            members = [
                WebSocket(await session.ws_connect(f"{outside}/connection/websocket"))
                for _ in range(2)
            ]
            for each in members:
                await each.ask("connect")
                await each.ask("subscribe", channel=ROOM)

            # ---- which is where
            for path in ("/health/ready", "/metrics"):
                assert await status(session, inside + path) == 200
                assert await status(session, outside + path) == 404
            for url, found in ((outside, 404), (inside, 200)):
                async with session.post(
                    f"{url}/api/publish",
                    json={"channel": ROOM, "data": "from a back end"},
                    headers={"X-API-Key": KEY},
                ) as response:
                    assert response.status == found
            assert await status(session, f"{inside}/connection/websocket") == 404
            for each in members:
                assert await each.published(ROOM, 1) == ["from a back end"]
            assert (await shown(process.port), await shown(internal)) == ("old", "inside")

            # ---- other files
            NEW.write(files)
            await asyncio.to_thread(process.told, "certificate_loaded", 3)
            assert (await shown(process.port), await shown(internal)) == ("new", "inside")
            (files / "key.pem").write_bytes(OLD.key)
            refused = await asyncio.to_thread(process.said, "certificate_refused")
            assert "server.tls.key_file" in refused["reason"]
            assert await shown(process.port) == "new"
            assert await members[0].ask("publish", channel=ROOM, data="still here") == {}
            for each in members:
                assert await each.published(ROOM, 2) == ["from a back end", "still here"]

            # ---- who says nothing
            lives_s = await asyncio.wait_for(asyncio.gather(*silent), 2 * REQUEST_S)
            assert max(lives_s) < REQUEST_S + 5
            assert min(lives_s) > REQUEST_S - 1
            failed = process.told("tls_handshake_failed", 1)
            assert len(failed) < 5, "one line a second"

            # ---- the drain
            process.signal()
            async with asyncio.timeout(DEADLINE_S):
                while await status(session, f"{inside}/health/ready") == 200:  # noqa: ASYNC110  # nothing else tells
                    await asyncio.sleep(0.01)
            assert await status(session, f"{inside}/health/live") == 200
            with pytest.raises(OSError, match=r"refused|Connect"):
                await asyncio.open_connection("127.0.0.1", process.port)
            # Together: who answers its close late is cut off, and counts that as its end.
            codes = await asyncio.gather(*(each.closed() for each in members))
            assert codes == [SHUTDOWN, SHUTDOWN]
        assert await asyncio.to_thread(process.ended) == 0
    finally:
        await connector.close()
        await asyncio.to_thread(process.close)
    assert "Traceback" not in process.log, process.log
    assert aws.queues_of(process.node) == []


@pytest.mark.fleet
async def test_processes_share_both_ports(aws: Aws) -> None:
    internal = free_port()
    config = aws.config("shared", f"{CONFIG}processes = 2\n[server]\ninternal_port = {internal}\n")
    process = Process(config, "--port", "0")
    try:
        ready = await asyncio.to_thread(process.told, "ready", 2, START_S)
        process.port = ready[0]["port"]
        assert {each["internal_port"] for each in ready} == {internal}
        own = {each["node"]: each["own_internal_port"] for each in ready}
        async with aiohttp.ClientSession() as session:
            for node, port in own.items():
                url = f"http://127.0.0.1:{port}"
                async with session.get(f"{url}/health/ready") as response:
                    assert (await response.json())["node"] == node
                assert await status(session, f"{url}/metrics") == 200
            shared = f"http://127.0.0.1:{internal}"
            assert await status(session, f"{shared}/health/ready") == 200
            assert await status(session, f"{shared}/metrics") == 404
            for port in (process.port, *(each["own_port"] for each in ready)):
                assert await status(session, f"http://127.0.0.1:{port}/health/ready") == 404
            member = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
            assert (await member.ask("connect"))["client"]
        process.signal()
        assert await asyncio.to_thread(process.ended) == 0
    finally:
        await asyncio.to_thread(process.close)


def test_a_certificate_that_cannot_be_used_keeps_it_from_starting(aws: Aws) -> None:
    directory = aws.directory / "spoilt"
    config = aws.config("spoilt", CONFIG + table("server.tls", OLD, directory))
    (directory / "key.pem").write_bytes(NEW.key)
    process = Process(config, "--port", "0")
    try:
        assert process.ended() == 2
    finally:
        process.close()
    [line] = [line for line in process.lines if line.startswith("roomcast: ")]
    assert line.startswith(f"roomcast: server.tls.key_file: {directory}/key.pem is not the key of")
