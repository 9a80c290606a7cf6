"""service/roomcast/cli/serve.py: what `roomcast serve` passes on, warns of, and how it fails."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

import roomcast
import roomcast.serve
from roomcast.cli import main as cli
from roomcast.cli import serve as serve_command
from roomcast.config import Config, ConfigError, dev_config
from roomcast.ports import Rejected
from roomcast.serve.entry import Address, Worker
from roomcast.serve.supervisor import Command
from tests.unit.cli.conftest import Told


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


def test_what_serve_passes_on(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["serve"]) == 0
    assert app.config == Config()
    assert app.options == {
        "host": "0.0.0.0", "port": 8000, "demo_urls": None, "exit_on_stdin_close": False,
        "worker": None, "task_endpoint": "",
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
    assert app.options == {
        "host": "127.0.0.1", "port": 8001, "exit_on_stdin_close": True, "worker": None,
        "task_endpoint": "",
    }  # fmt: skip
    assert cli.main(["serve", "--demo"]) == 0
    assert list(app.options["demo_urls"]) == []
    # What ECS gives a container.
    monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", "http://127.0.0.1:51679/v4/id")
    assert cli.main(["serve"]) == 0
    assert app.options["task_endpoint"] == "http://127.0.0.1:51679/v4/id"


class Supervisor:
    """roomcast.serve.supervisor.supervise, in so far as the command line knows it."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.command: list[str] = []

    async def supervise(self, command: Command, **options: Any) -> int:
        self.options = options
        self.command = list(command(Worker(7, 8000, own_port=8002, own_internal_port=9002)))
        return 0


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    fake = Supervisor()
    monkeypatch.setattr("roomcast.serve.supervisor.supervise", fake.supervise)
    return fake


def test_several_processes_get_what_the_supervisor_got(
    app: App, supervisor: Supervisor, tmp_path: Path
) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text(
        "[client]\ninsecure = true\n[node]\ndrain_s = 7\n"
        "[server]\ninternal_port = 9000\ninternal_address = '0.0.0.0'\n"
    )
    arguments = ["--config", str(path), "--processes", "3", "--log-level", "error"]
    assert cli.main(["serve", *arguments]) == 0
    assert supervisor.options == {
        "host": "127.0.0.1", "port": 8000, "processes": 3, "drain_s": 7.0,
        "exit_on_stdin_close": False, "internal": Address("0.0.0.0", 9000),
    }  # fmt: skip
    assert app.config is None, "it serves nobody itself"
    program, *rest = supervisor.command
    assert (program, rest[:2]) == (sys.executable, ["-m", "roomcast"])
    with structlog.testing.capture_logs() as logs:
        assert cli.main(rest[2:]) == 0
    assert app.config is not None
    assert app.config.node.drain_s == 7.0
    assert app.options == {
        "host": "127.0.0.1", "port": 8000, "demo_urls": None, "exit_on_stdin_close": False,
        "worker": Worker(7, 8000, own_port=8002, own_internal_port=9002), "task_endpoint": "",
    }  # fmt: skip
    assert logs == [], "the supervisor has warned"


def test_two_ports_that_are_one(app: App, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOMCAST_SERVER_INTERNAL_PORT", "8000")
    assert cli.main(["serve"]) == 2
    assert "--port 8000 is server.internal_port" in told()
    assert app.config is None


@pytest.mark.parametrize(
    "arguments, variable, processes",
    [
        ([], "2", 2),
        (["--processes", "3"], "2", 3),
        ([], "0", 5),
        (["--processes", "auto"], "1", 5),
        (["--processes", "1"], "4", None),
        ([], None, None),
    ],
)
def test_how_many_processes(
    arguments: list[str],
    variable: str | None,
    processes: int | None,
    app: App,
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("roomcast.serve.cores.usable_cores", lambda: 5)
    if variable is not None:
        monkeypatch.setenv("ROOMCAST_NODE_PROCESSES", variable)
    assert cli.main(["serve", *arguments]) == 0
    assert supervisor.options.get("processes") == processes
    assert (app.config is None) is (processes is not None)


@pytest.mark.parametrize("found", ["0", "-1", "257", "two", ""])
def test_numbers_of_processes_that_there_are_not(found: str, told: Told) -> None:
    assert cli.main(["serve", "--processes", found]) == 2
    assert "--processes" in told()


def test_serve_with_a_file_of_its_own(app: App, tmp_path: Path) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("[client]\nchannel_limit = 5\n")
    assert cli.main(["serve", "--demo", "--config", str(path)]) == 0
    assert app.config is not None
    assert app.config.client.channel_limit == 5
    assert not app.config.client.insecure


# A hook over HTTP, and pages of any site.
HOOKED: Final = {
    "ROOMCAST_CLIENT_PROXY_CONNECT_ENDPOINT": "https://app.example.com/a",
    "ROOMCAST_CLIENT_ALLOWED_ORIGINS": "*",
}


@pytest.mark.parametrize(
    "environ, events",
    [
        ({}, ["nobody_can_connect"]),
        ({"ROOMCAST_CLIENT_INSECURE": "true"}, ["insecure_mode"]),
        ({"ROOMCAST_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true"}, []),
        ({"ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": "k" * 32}, []),
        ({"ROOMCAST_CLIENT_PROXY_CONNECT_ENDPOINT": "http://127.0.0.1:9/a"}, []),
        ({"ROOMCAST_CLIENT_PROXY_CONNECT_ENDPOINT": "https://app.example.com/a"}, []),
        (
            {"ROOMCAST_CLIENT_PROXY_CONNECT_ENDPOINT": "http://app.example.com/a"},
            ["hook_in_the_clear"],
        ),
        (
            {"ROOMCAST_CLIENT_PROXY_CONNECT_ENDPOINT": "http://127.0.0.1.example.com/"},
            ["hook_in_the_clear"],
        ),
        (
            {**HOOKED, "ROOMCAST_CLIENT_PROXY_CONNECT_HTTP_HEADERS": "X-A,cookie,Authorization"},
            ["any_page_is_its_visitor", "any_page_is_its_visitor"],
        ),
        ({**HOOKED, "ROOMCAST_CLIENT_PROXY_CONNECT_HTTP_HEADERS": "X-A"}, []),
        ({**HOOKED, "ROOMCAST_CLIENT_PROXY_CONNECT_EMULATED_HEADERS": "Cookie"}, []),
        (
            {
                **HOOKED,
                "ROOMCAST_CLIENT_PROXY_CONNECT_HTTP_HEADERS": "Cookie",
                "ROOMCAST_CLIENT_ALLOWED_ORIGINS": "https://*.example.com",
            },
            [],
        ),
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
            Rejected("no permission to create the queue"),
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

    monkeypatch.setattr(serve_command, "load", interrupted)
    assert cli.main(["serve"]) == 1
    assert told() == "interrupted"


def test_a_hook_that_hangs_while_it_is_imported_keeps_no_process(tmp_path: Path) -> None:
    """The signal came to an event loop that did not turn, and nothing but SIGKILL ended it."""
    hanging = "import sys, time\nprint('imported', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    (tmp_path / "hanging_hook.py").write_text(hanging)
    config = tmp_path / "roomcast.toml"
    config.write_text(
        "[client]\ninsecure = true\n"
        "[aws]\ntopic_arn = 'arn:aws:sns:us-east-1:123456789012:roomcast-topic'\n"
        f"[hooks]\ndirectory = '{tmp_path}'\nconnect = 'hanging_hook:connect'\n"
        "[node]\nimds_endpoint = ''\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "roomcast", "serve", "--config", str(config), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(roomcast.__file__).parents[1],
    ) as process:
        assert process.stderr is not None
        try:
            assert any("imported" in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
