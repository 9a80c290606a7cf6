"""service/roomcast/cli/main.py: exit codes, one line for what is wrong,
and what each command passes on.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import roomcast.serve
from roomcast.cli import main as cli
from tests.processes import unread
from tests.unit.cli.conftest import Told

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


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"roomcast {roomcast.__version__}\n"
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in ("dev", "serve", "provision", "token", "bench", "nodes", "reap", "checkconfig"):
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


@pytest.mark.parametrize(
    "command, name, code",
    [("dev", "SIGINT", 0), ("serve", "SIGTERM", 0), ("serve", "SIGINT", 0), ("tail", "SIGINT", 1)],
)
def test_a_signal_before_anything_has_begun(command: str, name: str, code: int) -> None:
    """`dev` and `serve` were asked to stop, and have; any other command has not done its work."""
    signalled = (
        "import os, signal, sys\n"
        "import roomcast.__main__ as program, roomcast.cli.main as cli\n"
        f"cli.main = lambda: os.kill(os.getpid(), signal.{name})\n"
        f"sys.argv[1:] = [{command!r}]\n"
        "sys.exit(program.run())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", signalled], capture_output=True, text=True, timeout=30, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == ("roomcast: interrupted\n" if code else "")


def test_who_cannot_start_ends_also_if_nobody_reads_why() -> None:
    with unread() as stderr:
        done = subprocess.run(
            [sys.executable, "-m", "roomcast", "serve", "--config", "/nobody/has/that.toml"],
            stderr=stderr,
            timeout=20,
            cwd=ROOT,
        )
    assert done.returncode == 2


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
