"""service/roomcast/cli/doctor.py: how what it found is printed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from roomcast.account.ports import AccountReader
from roomcast.aws import account as aws_account
from roomcast.cli import doctor as doctor_module
from roomcast.cli import main as cli
from roomcast.cli.doctor_checks import Check
from tests.unit.account.memory import Account

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


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Account:
    """The account that the command reads. Nothing of a deployment is configured."""
    account = Account()

    @asynccontextmanager
    async def read_account(**_where: str | None) -> AsyncIterator[AccountReader]:
        yield account

    monkeypatch.setattr(aws_account, "read_account", read_account)
    monkeypatch.delenv("ROOMCAST_AWS_TOPIC_ARN", raising=False)
    return account


def test_an_account_is_read_before_there_is_a_deployment(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--account"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("note     account  ")
    [at] = [number for number, line in enumerate(lines) if "vCPUs on demand" in line]
    assert lines[at].startswith("warning  ")
    assert "ms)" not in lines[at], "nothing was timed"
    assert lines[at + 1].split()[:3] == ["aws", "service-quotas", "request-service-quota-increase"]


def test_what_is_missing_fails_and_is_told_as_json(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    account.denied = {"concurrency"}
    arguments = ["--fargate", "--vcpus", "8", "--instances", "3", "--bucket", "built", "--nat"]
    assert cli.main(["doctor", "--account", "--json", "--existing-vpc", *arguments]) == 1
    out, err = capsys.readouterr()
    assert err == "roomcast: 1 of 7 checks failed: quota: vCPUs of Fargate\n"
    found = {each["name"]: each for each in json.loads(out)}
    assert "--desired-value 32" in found["quota: vCPUs of Fargate"]["ask"]
    assert found["quota: Lambda at once"]["outcome"] == "skipped"
    assert "quota: VPCs" not in found


@pytest.mark.parametrize("option", [["--bucket", "b"], ["--instances", "3"], ["--nat"]])
def test_options_of_an_account_need_it(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", "arn:aws:sns:eu-west-1:123456789012:t")
    assert cli.main(["doctor", *option]) == 2
    assert f"{option[0]} goes with --account" in capsys.readouterr().err
