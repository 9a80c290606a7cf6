"""service/roomcast/cli/genconfig.py: what it writes is taken, secret, and never over another."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from roomcast.cli import main as cli
from roomcast.config import load
from tests.unit.cli.conftest import Told


def test_what_is_written_is_taken_without_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "roomcast.toml"
    assert cli.main(["genconfig", "--output", str(path)]) == 0
    out, err = capsys.readouterr()
    assert (out, "keep it out of version control" in err) == ("", True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cli.main(["checkconfig", "--config", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    config = load(path, {})
    assert config.client.token.hmac_secret_key not in out
    assert config.channel.without_namespace.has_history
    assert config.channel.namespaces.keys() == {"chat"}


def test_secrets_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    found: set[str] = set()
    for _ in range(2):
        assert cli.main(["genconfig"]) == 0
        written = tomllib.loads(capsys.readouterr().out)
        found |= {written["client"]["token"]["hmac_secret_key"], written["http_api"]["key"]}
    assert len(found) == 4
    assert all(len(secret) == 64 for secret in found)


def test_what_is_there_stays(tmp_path: Path, told: Told) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text("mine")
    assert cli.main(["genconfig", "--output", str(path)]) == 1
    assert "is there already" in told()
    assert path.read_text() == "mine"
    assert cli.main(["genconfig", "--output", str(tmp_path / "no" / "such.toml")]) == 1
    assert "No such file or directory" in told()
