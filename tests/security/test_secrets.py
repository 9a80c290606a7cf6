"""Secrets, tokens and payloads stay out of everything that a node or a command prints,
at every level and whatever happens.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
import pytest
import structlog

from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.cli import main as cli
from roomcast.observe import logs as telemetry
from tests.contract.backends import ROOT
from tests.integration.serving import Aws, Process, deployed, environment
from tests.loggers import logging_restored
from tests.websocket import PROTOBUF, WebSocket

SECRET: Final = "sesame-secret-that-nobody-is-told-of-0123456789"
KEY: Final = "sesame-key-of-the-back-end-0123456789"
# In everything that a client or back end sends and that is nobody else's business.
MARK: Final = "sesame"
CONFIG: Final = f"""
[client.token]
hmac_secret_key = "{SECRET}"
[http_api]
key = "{KEY}"
[channel.without_namespace]
history_size = 10
history_ttl = "60s"
presence = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_presence_for_client = true
allow_history_for_client = true
[node]
drain_s = 0
"""
# As `python -m roomcast`, with what goes to standard output where the log goes.
BOTH_STREAMS: Final = (
    "-c",
    (
        "import os, sys; os.dup2(2, 1); from roomcast.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    ),
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with logging_restored():
        yield


@dataclass(slots=True)
class Running:
    """A node at level debug, and whatever must not be seen of what was sent to it."""

    process: Process
    session: aiohttp.ClientSession
    secrets: list[str]
    seen: list[str]

    def hide(self, text: str) -> str:
        self.secrets.append(text)
        return text

    def token(self, user: str = "ann", key: str = SECRET, ttl_s: int = 60, **claims: Any) -> str:
        return self.hide(sign_connection(user, key, ttl_s, {"name": MARK}, claims=claims))

    def subscription(self, channel: str, user: str = "ann") -> str:
        return self.hide(sign_subscription(user, channel, SECRET, 60, {"name": MARK}))

    async def say(self, *commands: dict[str, Any], protobuf: bool = False) -> None:
        """Wait for an answer to each, or for the close."""
        url = f"{self.process.url}/connection/websocket?token={self.hide(f'{MARK}-query')}"
        headers = {
            "Authorization": f"Bearer {self.hide(f'{MARK}-header')}",
            "Cookie": f"session={MARK}",
        }
        protocols = (PROTOBUF,) if protobuf else ()
        async with self.session.ws_connect(url, headers=headers, protocols=protocols) as response:
            socket = WebSocket(response)
            await socket.say(*commands)
            await socket.say({"ping": {}})
            try:
                await socket.until(
                    lambda: {line.get("id") for line in socket.lines} >= {len(commands) + 1}
                )
            except AssertionError:
                assert response.close_code is not None

    async def get(self, path: str) -> None:
        """What it answers must hold none of it either."""
        headers = {"X-API-Key": KEY}
        async with self.session.get(self.process.url + path, headers=headers) as response:
            self.seen.append(f"{response.headers} {await response.text()}")

    async def post(self, method: str, body: str, key: str = KEY, **headers: str) -> None:
        given = {"X-API-Key": key, "Content-Type": "application/json"} | headers
        url = f"{self.process.url}/api/{method}?api_key={KEY}"
        async with self.session.post(url, data=body.encode(), headers=given) as response:
            await response.read()

    async def raw(self, request: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.process.port)
        writer.write(request.encode("latin-1"))
        await reader.readline()
        writer.close()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("secrets"), "secrets-") as aws:
        yield aws


@pytest.fixture
async def running(aws: Aws) -> AsyncIterator[Running]:
    process = Process(
        aws.config("debug", CONFIG),
        *("--port", "0", "--log-level", "debug"),
        environ=environment() | {"PYTHONPATH": str(ROOT)},
        program=BOTH_STREAMS,
    )
    try:
        await asyncio.to_thread(process.ready)
        async with aiohttp.ClientSession() as session:
            yield Running(process, session, [SECRET, KEY], [])
    finally:
        process.close()


async def test_a_node_prints_no_secret(running: Running) -> None:
    """At level debug, through everything that tokens, keys and payloads pass, in order and not."""
    data = {"text": f"{MARK}-payload"}
    good = {"connect": {"token": running.token(), "data": data, "name": "sdk"}}
    for protobuf in (False, True):
        await running.say(
            good,
            {"subscribe": {"channel": "room", "data": data}},
            {"subscribe": {"channel": "$room", "token": running.subscription("$room")}},
            {"subscribe": {"channel": "$mine", "token": running.subscription("$mine", "bob")}},
            protobuf=protobuf,
        )
        await running.say(
            good,
            {"publish": {"channel": "room", "data": data}},
            {"publish": {"channel": "no:where", "data": data}},
            {"rpc": {"method": "roomcast.publish", "data": {"channel": "room", "data": data}}},
            {"rpc": {"method": "nothing", "data": data}},
            {"history": {"channel": "room", "limit": 5}},
            {"refresh": {"token": running.token()}},
            {"sub_refresh": {"channel": "room", "token": running.subscription("room")}},
            protobuf=protobuf,
        )
        for wrong in (
            running.token(key="another " + SECRET),
            running.hide(_expired()),
            running.hide(jwt.encode({"sub": "ann", "info": MARK}, "", algorithm="none")),
            running.token()[:-3] + "AAA",
            running.hide(f"{MARK}-nonsense"),
            running.hide(f"{MARK}.{MARK}.{MARK}"),
        ):
            await running.say({"connect": {"token": wrong}}, protobuf=protobuf)
            await running.say(good, {"refresh": {"token": wrong}}, protobuf=protobuf)
    await running.say({"connect": {"token": 5, "data": data}})
    await running.say(good, {"send": {"data": data}})
    async with running.session.ws_connect(
        f"{running.process.url}/connection/websocket"
    ) as response:
        await response.send_str(f'{{"id":1,"{MARK}":{{}}}}')
        await response.receive()
    for origin in (
        "https://evil.example.com",
        f"https://ann:{MARK}-password@evil.example.com/{MARK}-path",
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await running.session.ws_connect(
                f"{running.process.url}/connection/websocket", origin=origin
            )

    # Somebody whom the API's orders are for.
    ann = WebSocket(await running.session.ws_connect(f"{running.process.url}/connection/websocket"))
    assert (await ann.ask("connect", token=running.token()))["client"]
    closed = asyncio.create_task(ann.closed())
    text = json.dumps({"channel": "room", "data": data})
    for key in (KEY, running.hide(f"{MARK}-wrong-key"), KEY + "x", ""):
        await running.post("publish", text, key)
    for method, body in (
        ("publish", json.dumps({"channel": 5, "data": data})),
        (
            "publish",
            json.dumps({"channel": "no:where", "data": data, "idempotency_key": f"{MARK}-key"}),
        ),
        ("publish", f'{{"{MARK}'),
        ("broadcast", json.dumps({"channels": ["room", "a"], "data": data, "tags": {MARK: MARK}})),
        ("subscribe", json.dumps({"user": "ann", "channel": "room", "info": data, "data": data})),
        ("refresh", json.dumps({"user": "ann", "info": data})),
        ("disconnect", json.dumps({"user": "ann", "disconnect": {"code": 4500, "reason": "go"}})),
        ("batch", json.dumps({"commands": [{"publish": json.loads(text)}, {MARK: data}]})),
        (f"{MARK}-method", text),
    ):
        await running.post(method, body)
    # The last of what goes to all nodes has come back; it was asked for amidst the others.
    assert await closed == 4500
    await ann.response.close()
    await running.post("publish", text, **{"Content-Encoding": "gzip"})
    for broken in (
        f"POST /api/publish?api_key={KEY} HTTP/9.9\r\n\r\n",
        f"POST /api/publish HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\x00\r\n\r\n",
        (
            f"GET /connection/websocket HTTP/1.1\r\nHost: a\r\n"
            f" Authorization: Bearer {MARK}-token\r\n\r\n"
        ),
        f"GET /{MARK}\x7f\xff?token={MARK} HTTP/1.1\r\nAuthorization: {MARK}\r\n\r\n",
        f"{MARK} {MARK} {MARK}\r\n\r\n",
    ):
        await running.raw(broken)
    for path in (
        "/metrics",
        "/health/live",
        "/health/ready",
        "/api/openapi.json",
        f"/{MARK}?token={KEY}",
    ):
        await running.get(path)
    running.process.signal()
    assert await asyncio.to_thread(running.process.ended) == 0

    log = running.process.log
    events = {json.loads(line)["event"] for line in running.process.lines}
    assert {
        *("client_connected", "client_closed", "token_refused", "origin_refused", "frame_refused"),
        *("request_broken", "order", "stopped"),
    } <= events
    _has_none_of(running.secrets, log)
    for seen in running.seen:
        _has_none_of(running.secrets, seen)
    assert MARK not in log
    assert MARK not in "".join(running.seen)
    assert "Traceback" not in log


def _expired() -> str:
    return sign_connection("ann", SECRET, 1, {"name": MARK}, now_s=time.time() - 10)


def _has_none_of(secrets: list[str], text: str) -> None:
    for secret in secrets:
        # Each part of a token by itself too: a payload can be read without the signature,
        # and that one be put to use.
        for part in {secret, *secret.split(".")}:
            assert len(part) < 8 or part not in text, part


# ---- commands


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_configuration_is_shown_without_its_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text(CONFIG)
    assert cli.main(["checkconfig", "--config", str(path), *options]) == 0
    shown = "".join(capsys.readouterr())
    assert "***" in shown
    assert MARK not in shown


@pytest.mark.parametrize(
    "text",
    [
        f"[client.token]\nhmac_secret_key = {SECRET}",
        f'[client.token]\nhmac_secret_key = "{SECRET}',
        f'[client.token]\nhmac_secret_key = ["{SECRET}"]',
        f'[client.token]\nhmac_secret_key = {{ value = "{SECRET}" }}',
        f'[client.token]\nhmac_secret_key = "{SECRET}\\n"',
        f'[client.token]\nhmac_secret_key = "{SECRET}"\nhmac_secret_key = "{SECRET}"',
        f'[client.token]\nhmac_secret = "{SECRET}"',
        f'[client]\nhmac_secret_key = "{SECRET}"',
        f'[http_api]\nkey = ["{KEY}"]',
        f'[http_api]\nkey = "{KEY}\\u0000"',
        f'[http_api]\nkeys = "{KEY}"',
        f'[http_api]\nkey = "{KEY}"\n[http_api]\nkey = "{KEY}"',
        (
            f'[aws]\ntopic_arn = "x"\n[client.token]\n'
            f'rsa_public_key = "-----BEGIN PRIVATE KEY-----\\n{MARK}"'
        ),
    ],
    ids=range(13),
)
@pytest.mark.parametrize("command", ["checkconfig", "serve", "token --user ann"])
def test_what_is_wrong_with_a_configuration_is_told_without_its_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, command: str
) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text(text)
    assert cli.main([*command.split(), "--config", str(path)]) == 2
    told = "".join(capsys.readouterr())
    assert told.startswith("roomcast: ")
    assert MARK not in told


@pytest.mark.parametrize("name", ["ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", "ROOMCAST_HTTP_API_KEY"])
def test_an_environment_is_told_of_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, f"{SECRET}\x07")
    assert cli.main(["checkconfig"]) == 2
    told = "".join(capsys.readouterr())
    assert name in told
    assert MARK not in told


@pytest.mark.parametrize(
    "arguments, environ",
    [
        (["checkconfig"], {"ROOMCAST_AWS_ENDPOINT_URL": f"http://ann:{MARK}@127.0.0.1:5000"}),
        (
            ["checkconfig"],
            {"ROOMCAST_NODE_IMDS_ENDPOINT": f"http://ann:{MARK}-{'x' * 80}@127.0.0.1"},
        ),
        (
            ["checkconfig"],
            {"ROOMCAST_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT": f"https://{MARK}@a.example/x"},
        ),
        (["checkconfig"], {"ROOMCAST_CLIENT_ALLOWED_ORIGINS": f"https://ann:{MARK}@a.example"}),
        (["checkconfig"], {"ROOMCAST_AWS_ENDPOINT_URL": f"http://ann:a/{MARK}@127.0.0.1:5000"}),
        (["checkconfig"], {"ROOMCAST_AWS_ENDPOINT_URL": f"http://ann:a {MARK}#@127.0.0.1:5000"}),
        (
            ["checkconfig"],
            {"ROOMCAST_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT": f"https://u:a/\"'{MARK}#@a.example"},
        ),
        (["publish", "room", "1", "--url", f"http://ann:{MARK}@127.0.0.1:1"], {}),
        (["publish", "room", "1", "--url", f"http://ann:a/{MARK}@127.0.0.1:1"], {}),
        (["provision", "--aws-endpoint", f"http://ann:{MARK}@127.0.0.1:1"], {}),
    ],
    ids=range(10),
)
def test_of_an_address_that_is_wrong_the_password_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environ: dict[str, str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    code: object = None
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    told = "".join(capsys.readouterr())
    assert "***@" in told
    assert MARK not in told


# ---- forged lines


@pytest.mark.parametrize("console", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        "ann\n2026-01-01T00:00:00Z [error] forged",
        "\x1b[2J\x1b]0;x\x07",
        "a\rb",
        "a\u2028b\u202ec",
        "\x9b",
        "a\u2066b\u2069",
    ],
)
def test_a_name_is_no_line_of_the_log_and_no_order_to_a_terminal(console: bool, value: str) -> None:
    stream = io.BytesIO()
    telemetry.configure(stream=stream, console=console)
    structlog.get_logger().info("client_connected", user=value)
    text = stream.getvalue().decode()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text[:-1].isprintable()
