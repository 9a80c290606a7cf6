"""service/roomcast/cli/doctor.py: how what it found is printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from roomcast.cli import doctor as doctor_module
from roomcast.cli import main as cli
from roomcast.cli.doctor_checks import Check

FOUND = [
    Check("table a", "failed", "http://ann:secret@proxy.example: n\x9b2J \u202e", 3),
    Check("queue", "ok", "", 7),
]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command silences the log of its process."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_it_found_is_no_order_to_a_terminal_and_has_no_password(
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def checks(_config: Any, *, as_json: bool) -> list[Check]:
        for check in FOUND if not as_json else ():
            doctor_module._print(check)
        return FOUND

    monkeypatch.setattr(doctor_module, "_checks", checks)
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", "arn:aws:sns:eu-west-1:123456789012:t")
    assert cli.main(["doctor", *options]) == 1
    out, err = capsys.readouterr()
    assert err == "roomcast: 1 of 2 checks failed: table a\n"
    assert all(line.isprintable() for line in out.splitlines())
    assert "http://***@proxy.example: n" in out
    if options:
        assert json.loads(out)[0]["told"] == "http://***@proxy.example: n\x9b2J \u202e"
