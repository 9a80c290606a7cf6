"""service/roomcast/cli/main.py: exit codes, one line for what is wrong,
and what each command passes on.
"""

from __future__ import annotations

import ast
import base64
import errno
import hashlib
import hmac
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog

import roomcast.serve
from roomcast.cli import main as cli
from roomcast.config.config import DEV_SECRET, Config, ConfigError, dev_config
from roomcast.dev import provision as provisioning
from roomcast.dev import supervisor
from roomcast.observe import logs as telemetry
from roomcast.ports import Refused
from tests.signers import signer

HEAVY = (
    "aiohttp",
    "aioboto3",
    "boto3",
    "botocore",
    "cryptography",
    "jwt",
    "moto",
    "orjson",
    "structlog",
    "roomcast.serve.serve",
    "roomcast.dev",
)

ROOT = Path(roomcast.__file__).parents[1]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of whoever runs the tests, and no logging set up for the other tests."""
    for name in list(os.environ):
        if name.startswith(("ROOMCAST_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(telemetry, "configure", lambda *_args, **_options: None)


class App:
    """roomcast.serve.serve, in so far as the command line knows it."""

    def __init__(self) -> None:
        self.result: int | Exception = 0
        self.config: Config | None = None
        self.options: dict[str, Any] = {}

    async def serve(self, config: Config, **options: Any) -> int:
        self.config, self.options = config, options
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    fake = App()
    module = types.ModuleType("roomcast.serve.serve")
    module.serve = fake.serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "roomcast.serve.serve", module)
    monkeypatch.setattr(roomcast.serve, "serve", module, raising=False)
    return fake


Told = Callable[[], str]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """The one line on stderr, when nothing was written to stdout."""

    def read() -> str:
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("roomcast: ")
        assert err.count("\n") == 1
        return err.removeprefix("roomcast: ").removesuffix("\n")

    return read


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"roomcast {roomcast.__version__}\n"
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in ("dev", "serve", "provision", "token", "nodes", "reap", "checkconfig"):
        assert f"    {command}" in overview
        assert cli.main([command, "--help"]) == 0
        text, err = capsys.readouterr()
        assert text.startswith(f"usage: roomcast {command} ")
        assert f"examples:\n  roomcast {command}" in text
        assert "--config FILE" in text
        assert err == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND (see roomcast --help)"),
        (["serv"], "invalid choice: 'serv'"),
        (["reap", "--dry"], "unrecognized arguments: --dry"),
        (["serve", "--prot", "1"], "unrecognized arguments: --prot 1"),
        (["serve", "--conf", "x"], "unrecognized arguments: --conf x"),
        (
            ["serve", "--port", "65536"],
            (
                "--port: must be a whole number from 0 to 65535; found '65536' (see roomcast "
                "serve --help)"
            ),
        ),
        (["serve", "--port", "-1"], "--port"),
        (["serve", "--port", "8_0"], "found '8_0'"),
        (["serve", "--port", "٨"], "must be a whole number"),
        (["serve", "--log-level", "loud"], "--log-level"),
        (["serve", "--peers", "http://127.0.0.1:8000"], "--peers needs --demo"),
        (
            ["serve", "--demo", "--peers", "127.0.0.1:8000"],
            "must be an address such as http://127.0.0.1:5000",
        ),
        (
            ["dev", "--instances", "0"],
            "--instances: must be a whole number from 1 to 32; found '0'",
        ),
        (["dev", "--port", "65535"], "need ports up to 65536"),
        (["dev", "--aws-endpoint", "ftp://host"], "must be an address"),
        (["dev", "--aws-endpoint", "http://me:pw@host"], "must be an address"),
        (["dev", "--aws-endpoint", "http://host:99999"], "must be an address"),
        (["dev", "--aws-endpoint", "http://host/path"], "must be an address"),
        (["dev", "--aws-endpoint", "http://[::1"], "must be an address"),
        (["token"], "--user"),
        (["token", "--user", "ann", "--info", "{"], "--info: must be JSON"),
        (["token", "--user", "ann", "--info", "NaN"], "--info: must be JSON"),
        (["token", "--user", "ann", "--claims", "[1]"], "--claims: must be a JSON object"),
        (["token", "--user", "ann", "--claims", "{"], "--claims: must be JSON"),
        (["token", "--user", "\udcff"], "must be valid Unicode"),
        (["token", "--user", "ann", "--ttl", "-5"], "--ttl"),
        (["provision"], "provision is for emulators"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, told: Told) -> None:
    assert cli.main(arguments) == 2
    assert message in told()


@pytest.mark.parametrize(
    "command", ["dev", "serve", "provision", "token --user ann", "nodes", "reap", "checkconfig"]
)
def test_a_wrong_configuration(
    command: str, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("[client]\nchanel_limit = 5\n")
    expected = (
        f"{path}, line 2: client.chanel_limit is not an option (did you mean client.channel_limit?)"
    )
    assert cli.main([*command.split(), "--config", str(path)]) == 2
    assert told() == expected
    monkeypatch.setenv("ROOMCAST_CONFIG", str(path))
    assert cli.main(command.split()) == 2
    assert told() == expected
    monkeypatch.delenv("ROOMCAST_CONFIG")
    monkeypatch.setenv("ROOMCAST_NODE_DRAIN_S", "long")
    assert cli.main(command.split()) == 2
    assert "ROOMCAST_NODE_DRAIN_S must be a number from 0 to 3600; found 'long'" in told()


@pytest.mark.parametrize(
    "arguments, insecure, host",
    [
        ([], False, "0.0.0.0"),
        ([], True, "127.0.0.1"),
        (["--demo"], False, "127.0.0.1"),
        (["--host", "0.0.0.0"], True, "0.0.0.0"),
        (["--host", "::1"], False, "::1"),
    ],
)
def test_insecure_servers_stay_on_this_machine(
    arguments: list[str], insecure: bool, host: str, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOMCAST_CLIENT_INSECURE", str(insecure))
    assert cli.main(["serve", *arguments]) == 0
    assert app.config is not None
    assert app.config.client.insecure == insecure
    assert app.options["host"] == host


def test_what_serve_passes_on(app: App) -> None:
    assert cli.main(["serve"]) == 0
    assert app.config == Config()
    assert app.options == {
        "host": "0.0.0.0", "port": 8000, "demo_urls": None, "exit_on_stdin_close": False
    }  # fmt: skip
    peers = ["http://127.0.0.1:8000", "http://127.0.0.1:8001"]
    arguments = [
        "serve",
        "--demo",
        "--peers",
        ",".join(peers),
        "--port",
        "8001",
        "--exit-on-stdin-close",
    ]
    assert cli.main(arguments) == 0
    assert app.config == dev_config()
    assert list(app.options.pop("demo_urls")) == peers
    assert app.options == {"host": "127.0.0.1", "port": 8001, "exit_on_stdin_close": True}
    assert cli.main(["serve", "--demo"]) == 0
    assert list(app.options["demo_urls"]) == []


def test_serve_with_a_file_of_its_own(app: App, tmp_path: Path) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("[client]\nchannel_limit = 5\n")
    assert cli.main(["serve", "--demo", "--config", str(path)]) == 0
    assert app.config is not None
    assert app.config.client.channel_limit == 5
    assert not app.config.client.insecure


@pytest.mark.parametrize(
    "environ, events",
    [
        ({}, ["nobody_can_connect"]),
        ({"ROOMCAST_CLIENT_INSECURE": "true"}, ["insecure_mode"]),
        ({"ROOMCAST_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true"}, []),
        ({"ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": "k" * 32}, []),
    ],
)
def test_serve_warns(
    environ: dict[str, str], events: list[str], app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with structlog.testing.capture_logs() as logs:
        assert cli.main(["serve"]) == 0
    assert [(log["event"], log["log_level"]) for log in logs] == [
        (event, "warning") for event in events
    ]


@pytest.mark.parametrize(
    "result, code, message, events",
    [
        (1, 1, None, []),
        (OSError(errno.EADDRINUSE, "address in use"), 1, "roomcast: address in use", []),
        (
            Refused("no permission to create the queue"),
            1,
            "roomcast: no permission to create the queue",
            [],
        ),
        (ConfigError("aws.topic_arn is not set"), 2, "roomcast: aws.topic_arn is not set", []),
        (RuntimeError("two\nlines"), 1, "roomcast: RuntimeError: two lines", ["serve_failed"]),
        (RuntimeError(), 1, "roomcast: RuntimeError", ["serve_failed"]),
    ],
)
def test_how_serve_fails(
    result: int | Exception,
    code: int,
    message: str | None,
    events: list[str],
    app: App,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app.result = result
    with structlog.testing.capture_logs() as logs:
        assert cli.main(["serve"]) == code
    assert capsys.readouterr().err.splitlines() == ([message] if message else [])
    assert [log["event"] for log in logs if log["log_level"] == "error"] == events


def test_ctrl_c_before_anything_is_there_to_stop(
    app: App, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: Any, **_options: Any) -> Config:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    assert cli.main(["serve"]) == 1
    assert told() == "interrupted"


def test_what_dev_passes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[supervisor.DevOptions] = []

    async def run_dev(options: supervisor.DevOptions) -> int:
        asked.append(options)
        return 0

    monkeypatch.setattr(supervisor, "run_dev", run_dev)
    assert cli.main(["dev"]) == 0
    path = tmp_path / "roomcast.toml"
    path.write_text("")
    monkeypatch.setenv("ROOMCAST_CONFIG", str(path))
    everything = (
        "dev --instances 3 --host ::1 --port 9000 --aws-endpoint http://127.0.0.1:4566 "
        "--emulator-port 5001 "
        "--restart --log-level debug"
    )
    assert cli.main(everything.split()) == 0
    first, second = asked
    assert (first.instances, first.host, first.port, first.emulator_port) == (
        2,
        "127.0.0.1",
        8000,
        0,
    )
    assert (first.aws_endpoint, first.config, first.restart, first.log_level) == (
        None,
        None,
        False,
        "info",
    )
    assert (second.instances, second.host, second.port, second.emulator_port) == (
        3,
        "::1",
        9000,
        5001,
    )
    assert (second.aws_endpoint, second.config) == ("http://127.0.0.1:4566", str(path))
    assert (second.restart, second.log_level) == (True, "debug")


def test_dev_without_the_emulator_installed(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    async def run_dev(_options: supervisor.DevOptions) -> int:
        return 0

    monkeypatch.setattr(supervisor, "run_dev", run_dev)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "moto" else object()
    )
    assert cli.main(["dev"]) == 1
    assert "pip install 'roomcast[dev]'" in told()
    assert cli.main(["dev", "--aws-endpoint", "http://127.0.0.1:4566"]) == 0


class Provisioner:
    """Stands in for roomcast.dev.provision.provision."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None

    def __call__(self, *arguments: Any, **options: Any) -> provisioning.Provisioned:
        self.asked.append((arguments, options))
        if self.error:
            raise self.error
        return provisioning.Provisioned(
            "arn:topic", "arn:stream", ("a-channels", "a-nodes"), ("a-nodes",)
        )


@pytest.fixture
def provisioner(monkeypatch: pytest.MonkeyPatch) -> Provisioner:
    fake = Provisioner()
    monkeypatch.setattr(provisioning, "provision", fake)
    return fake


def test_provision(
    provisioner: Provisioner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["provision", "--aws-endpoint", "http://127.0.0.1:4566"]) == 0
    assert capsys.readouterr().out.split() == [
        "table", "a-channels", "table", "a-nodes", "(new)",
        "topic", "arn:topic", "stream", "arn:stream"
    ]  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("ROOMCAST_AWS_TABLE_PREFIX", "a-")
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", "arn:aws:sns:eu-west-1:000000000000:mine")
    assert cli.main(["provision", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "topic_arn": "arn:topic",
        "stream_arn": "arn:stream",
        "tables": ["a-channels", "a-nodes"],
        "created": ["a-nodes"],
    }
    assert provisioner.asked == [
        (
            ("http://127.0.0.1:4566", "roomcast-"),
            {
                "region": "us-east-1",
                "credentials": provisioning.DUMMY_CREDENTIALS,
                "topic_name": "roomcast-topic",
            },
        ),
        (
            ("http://127.0.0.1:5000", "a-"),
            {"region": "eu-west-1", "credentials": None, "topic_name": "mine"},
        ),
    ]


def test_provision_that_fails(provisioner: Provisioner, told: Told) -> None:
    provisioner.error = provisioning.EmulatorUnreachable("no AWS emulator answers")
    assert cli.main(["provision", "--aws-endpoint", "http://127.0.0.1:4566"]) == 1
    assert told() == "no AWS emulator answers"


def test_a_token_for_dev(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "--user", "ann", "--info", '{"name":"Ann"}']) == 0
    out, err = capsys.readouterr()
    claims = decoded(out.strip(), DEV_SECRET)
    assert claims.pop("exp") - claims.pop("iat") == 3600
    assert claims == {"sub": "ann", "info": {"name": "Ann"}}
    assert err == "roomcast: no key is configured; signed with the one of `roomcast dev`\n"


def test_a_token_of_the_configured_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "k" * 32
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", key)
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_AUDIENCE", "chat")
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_ISSUER", "us")
    assert cli.main(["token", "--user", "", "--channel", "news", "--ttl", "60", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    claims = decoded(answer.pop("token"), key)
    assert answer == {"user": "", "channel": "news", "expires_at": claims["exp"]}
    assert claims.pop("exp") - claims.pop("iat") == 60
    assert claims == {"sub": "", "channel": "news", "aud": "chat", "iss": "us"}
    assert err == ""
    assert cli.main(["token", "--user", "ann", "--ttl", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"token", "user"}
    assert "exp" not in decoded(answer["token"], key)


def test_no_token_without_a_key(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("")
    assert cli.main(["token", "--user", "ann", "--config", str(path)]) == 2
    assert "client.token.hmac_secret_key is not set" in told()


def test_a_token_with_further_claims(capsys: pytest.CaptureFixture[str]) -> None:
    claims = {"caps": [{"channels": ["a"], "allow": ["pub"]}], "sub": "not this", "iat": 1}
    assert cli.main(["token", "--user", "ann", "--claims", json.dumps(claims), "--kid", "k1"]) == 0
    token = capsys.readouterr().out.strip()
    signed = decoded(token, DEV_SECRET)
    assert (signed["sub"], signed["caps"]) == ("ann", claims["caps"])
    assert signed["iat"] > 1
    header = token.partition(".")[0]
    assert json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"] == "k1"


def test_a_token_of_a_private_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No secret is needed then, nor missed."""
    config, key = tmp_path / "roomcast.toml", tmp_path / "key.pem"
    config.write_text('[client.token]\nissuer = "us"\n')
    key.write_bytes(signer("ES256").private_pem)
    arguments = ["token", "--config", str(config), "--user", "ann", "--private-key", str(key)]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    claims = jwt.decode(out.strip(), signer("ES256").public, algorithms=["ES256"], issuer="us")
    assert claims["sub"] == "ann"
    key.write_text(signer("ES256").pem)
    assert cli.main(arguments) == 2
    assert "--private-key: not a private key in PEM form" in capsys.readouterr().err
    key.unlink()
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"roomcast: {key}: No such file or directory\n"


def decoded(token: str, key: str) -> dict[str, Any]:
    """The claims of an HS256 token, without the library that signed it."""
    signed, _, signature = token.rpartition(".")
    expected = base64.urlsafe_b64encode(hmac.digest(key.encode(), signed.encode(), hashlib.sha256))
    assert signature == expected.rstrip(b"=").decode()
    payload = signed.partition(".")[2]
    claims: dict[str, Any] = json.loads(
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    )
    return claims


def test_checkconfig(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("[[channel.namespaces]]\nname = 'chat'\n")
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", "hush" * 8)
    assert cli.main(["checkconfig", "--config", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["channel"]["namespaces"][0]["name"] == "chat"
    assert document["client"]["token"]["hmac_secret_key"] == "***"
    assert err == ""
    assert cli.main(["checkconfig", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert 'hmac_secret_key = "***"\n' in out
    assert "hush" not in out


def test_checkconfig_tells_what_is_hardly_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkconfig"]) == 0
    assert "roomcast: warning: no token key" in capsys.readouterr().err


def test_checkconfig_looks_at_the_key(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", '{"kty":"oct","k":"c2VjcmV0"}')
    assert cli.main(["checkconfig"]) == 2
    assert told().startswith("client.token.hmac_secret_key must be a secret")


def test_checkconfig_looks_at_public_keys(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_RSA_PUBLIC_KEY", signer("ES256").pem)
    assert cli.main(["checkconfig"]) == 2
    assert told() == (
        "client.token.rsa_public_key must be a public key of its type; found a key of another type"
    )


@pytest.mark.parametrize(
    "option, value",
    [
        ("ECDSA_PUBLIC_KEY", signer("ES256").pem),
        ("ED25519_PUBLIC_KEY", signer("EdDSA").pem),
        ("JWKS_PUBLIC_ENDPOINT", "https://example.com/jwks"),
    ],
)
def test_any_key_lets_somebody_connect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    monkeypatch.setenv(f"ROOMCAST_CLIENT_TOKEN_{option}", value)
    assert cli.main(["checkconfig"]) == 0
    assert capsys.readouterr().err == ""


def test_the_command_line_itself_is_light() -> None:
    """`roomcast --help` answers at once: nothing heavy is imported before a command needs it."""
    code = (
        f"import roomcast.cli.main, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )
    assert (done.stderr, ast.literal_eval(done.stdout)) == ("", [])


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roomcast", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        **options,
    )


def test_as_a_program() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"roomcast {roomcast.__version__}\n",
        "",
    )
    done = run("serve", "--port", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("roomcast: argument --port: must be a whole number")


def test_output_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "roomcast", "checkconfig", "--json"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            cwd=ROOT,
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert [
        line for line in done.stderr.splitlines() if not line.startswith("roomcast: warning: ")
    ] == []


@pytest.mark.parametrize("command", ["checkconfig", "dev"])
def test_a_hook_that_is_not_there(
    command: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("ROOMCAST_HOOKS_PUBLISH", "json:loads")
    assert cli.main([command]) == 2
    assert told() == "hooks.publish: json:loads is not an async function"


def test_who_has_a_connect_hook_needs_no_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(_event: object) -> None:
        """No opinion."""

    module = types.ModuleType("an_application")
    module.connect = connect  # type: ignore[attr-defined]  # that is what a module is for
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("ROOMCAST_HOOKS_CONNECT", "an_application:connect")
    assert cli.main(["checkconfig"]) == 0
    assert capsys.readouterr().err == ""
