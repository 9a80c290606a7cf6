"""`roomcast completion`: what a shell completes with it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from roomcast.cli import main as cli
from roomcast.cli.completion import SHELLS
from roomcast.cli.main import _COMMANDS

COMMANDS = {each.__name__.rpartition(".")[2] for each in _COMMANDS}


def completed(tmp_path: Path, words: Sequence[str]) -> set[str]:
    """What bash offers for the last of `words`."""
    script = tmp_path / "roomcast.bash"
    line = " ".join(map(shlex.quote, words))
    done = subprocess.run(
        [
            *("bash", "--norc", "--noprofile", "-c"),
            (
                f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
                "_shtab_roomcast; printf '%s\\n' \"${COMPREPLY[@]}\""
            ),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert cli.main(["completion", "bash"]) == 0
    path = tmp_path / "roomcast.bash"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "words, offered",
    [
        (["roomcast", "d"], {"dev", "doctor", "drain", "defaultconfig"}),
        (["roomcast", "drain", "--w"], {"--wait"}),
        (["roomcast", "tail", "--t"], {"--token", "--tag"}),
        (["roomcast", "completion", ""], set(SHELLS)),
        (["roomcast", "serve", "--log-level", "de"], {"debug"}),
    ],
)
def test_bash(script: Path, words: list[str], offered: set[str]) -> None:
    assert completed(script, words) == offered


def test_files_are_offered_where_one_is_meant(script: Path) -> None:
    (script / "roomcast.toml").touch()
    assert "roomcast.toml" in completed(script, ["roomcast", "nodes", "--config", "room"])


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in out] == []
    assert "--own-port" not in out, "what is for us alone is not offered"


def test_without_the_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert "pip install 'roomcast[completion]'" in capsys.readouterr().err


def test_another_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "csh"]) == 2
    assert "argument SHELL: invalid choice" in capsys.readouterr().err
