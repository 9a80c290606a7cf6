"""service/roomcast/cli/doctor.py: how the checks are printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roomcast.cli import doctor as doctor_command
from roomcast.cli import main as cli
from roomcast.cli.doctor_checks import Check
from roomcast.config import Config

RUDE = "\x1b[2J\u202e\x9b"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_words_of_others_are_told_to_no_terminal_and_show_no_password(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"Read timeout on http://user:secret@aws.example{RUDE}"
    check = Check("queue", "failed", told)

    async def checks(_config: Config, *, as_json: bool) -> list[Check]:
        if not as_json:
            doctor_command._print(check)
        return [check]

    monkeypatch.setattr(doctor_command, "_checks", checks)
    monkeypatch.setattr("structlog.configure", lambda **_: None)
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", "arn:aws:sns:us-east-1:123456789012:t")
    assert cli.main(["doctor", *options]) == 1
    out, err = capsys.readouterr()
    assert err == "roomcast: 1 of 1 checks failed: queue\n"
    assert "http://***@aws.example" in out
    assert "secret" not in out
    assert out.replace("\n", "").isprintable()
    if options:
        found: Any = json.loads(out)
        assert found[0]["told"] == told.replace("user:secret", "***")
