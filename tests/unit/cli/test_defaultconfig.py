"""`roomcast defaultconfig`: all defaults, which mean the same when they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roomcast.cli import main as cli
from roomcast.config import OPTIONS, Config, effective, load


def test_read_again_it_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["defaultconfig"]) == 0
    out = capsys.readouterr().out
    file = tmp_path / "roomcast.toml"
    file.write_text(out, encoding="utf-8")
    assert load(str(file), {}) == Config()
    names = {line.partition(" = ")[0] for line in out.splitlines()}
    assert {option.key.rpartition(".")[2] for option in OPTIONS} <= names


def test_neither_file_nor_environment_changes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOMCAST_CONFIG", "/nowhere.toml")
    monkeypatch.setenv("ROOMCAST_NODE_DRAIN_S", "7")
    assert cli.main(["defaultconfig", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == effective(Config())
