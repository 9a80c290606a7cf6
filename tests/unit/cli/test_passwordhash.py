"""service/roomcast/cli/passwordhash.py: what it prints is taken, and it shows no password."""

from __future__ import annotations

import getpass
import io
import json
import sys
from unittest.mock import patch

import pytest

from roomcast.admin import passwords
from roomcast.admin.passwords import PasswordHash
from roomcast.cli import main as cli

PASSWORD = "a password of the tests"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cheap as a hash may be."""
    monkeypatch.setattr(passwords, "_LN", 14)
    monkeypatch.setattr(passwords, "_P", 1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def given(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_the_first_line_of_standard_input_is_hashed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, f"{PASSWORD}\nanother line\n")
    assert cli.main(["passwordhash"]) == 0
    out, err = capsys.readouterr()
    assert PasswordHash.read(out.strip()).is_of(PASSWORD.encode())
    assert PASSWORD not in out + err


def test_a_terminal_is_asked_twice_without_an_echo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    with patch.object(getpass, "getpass", side_effect=[PASSWORD, PASSWORD]):
        assert cli.main(["passwordhash", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["password_hash"]
    assert PasswordHash.read(made).is_of(PASSWORD.encode())
    with patch.object(getpass, "getpass", side_effect=[PASSWORD, PASSWORD + "!"]):
        assert cli.main(["passwordhash"]) == 1
    assert capsys.readouterr().err == "roomcast: the two passwords differ\n"


@pytest.mark.parametrize("text", ["", "short\n", "x" * 1025, "\ud800" * 12])
def test_what_is_no_password_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    given(monkeypatch, text)
    assert cli.main(["passwordhash"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("roomcast: ")


def test_a_password_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["passwordhash", "--generate"]) == 0
    out, err = capsys.readouterr()
    password = err.removeprefix("password: ").strip()
    assert len(password) >= 20
    assert PasswordHash.read(out.strip()).is_of(password.encode())


def test_the_hash_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = passwords.hash_text(PASSWORD.encode(), b"0123456789abcdef")
    monkeypatch.setenv("ROOMCAST_ADMIN_PASSWORD_HASH", made)
    assert cli.main(["checkconfig"]) == 0
    out, err = capsys.readouterr()
    assert 'password_hash = "***"' in out
    assert made not in out + err
