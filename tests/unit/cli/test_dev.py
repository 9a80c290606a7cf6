"""service/roomcast/cli/dev.py: what `roomcast dev` passes on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from roomcast.cli import main as cli
from roomcast.dev import supervisor
from tests.unit.cli.conftest import Told


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
        "--emulator-port 5001 --restart --log-level debug"
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
        "",
    )
    assert (second.instances, second.host, second.port, second.emulator_port) == (
        3,
        "::1",
        9000,
        5001,
    )
    assert (second.aws_endpoint, second.config) == ("http://127.0.0.1:4566", str(path))
    assert (second.restart, second.log_level) == (True, "debug")
    path.write_text("[aws]\ntopic_shards = 4\n")
    assert cli.main(["dev"]) == 0
    assert (first.topic_shards, second.topic_shards, asked[2].topic_shards) == (1, 1, 4)


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
