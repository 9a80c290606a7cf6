"""service/roomcast/cli/start.py: the levels of the log, as they are configured."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest

from roomcast.cli import main as cli
from roomcast.cli.start import log_levels, start_logs
from roomcast.config import Config, ConfigError, LogConfig
from roomcast.observe import logs


def configured(*levels: str, level: str = "info") -> Config:
    return replace(Config(), log=LogConfig(level, levels))


def test_levels_are_for_rooms_and_modules() -> None:
    found = log_levels(configured("client=warning", "delivery.canary=debug"))
    assert found == {"client": "warning", "delivery.canary": "debug"}


@pytest.mark.parametrize("name", ["clients", "client.nothing", "no.thing.at.all"])
def test_a_room_that_there_is_not_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no room or module '{name}'"):
        log_levels(configured(f"{name}=debug"))


@pytest.mark.parametrize("given, expected", [(None, "warning"), ("debug", "debug")])
def test_the_argument_goes_before_the_option(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(logs, "configure", lambda level, **options: asked.append((level, options)))
    start_logs(argparse.Namespace(log_level=given), configured("client=error", level="warning"))
    [(level, options)] = asked
    assert (level, options["levels"]) == (expected, {"client": "error"})


def test_checkconfig_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOMCAST_LOG_LEVELS", "clients=debug")
    assert cli.main(["checkconfig"]) == 2
    assert "no room or module 'clients'" in capsys.readouterr().err
    monkeypatch.setenv("ROOMCAST_LOG_LEVELS", "client=loud")
    assert cli.main(["checkconfig"]) == 2
    assert 'levels such as "client=warning"' in capsys.readouterr().err
