"""service/roomcast/cli/doctor.py: how what it found is printed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from roomcast.account.ports import AccountReader
from roomcast.account.rules import Finding
from roomcast.aws import account as aws_account
from roomcast.cli import doctor as doctor_module
from roomcast.cli import main as cli
from roomcast.cli.doctor_checks import Check
from tests.unit.account.memory import Account

FOUND = [
    Check("table a", "failed", "http://ann:secret@proxy.example: n\x9b2J \u202e", 3, "do this"),
    Check("queue", "ok", "", 7),
]
READ = [
    Finding("set-up of a", "failed", "there is none", "make it"),
    Finding("stream of a", "ok", ""),
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

    async def set_up(_config: Any, *, as_json: bool) -> list[Finding]:
        for finding in READ if not as_json else ():
            doctor_module._print(finding)
        return READ

    monkeypatch.setattr(doctor_module, "_checks", checks)
    monkeypatch.setattr(doctor_module, "_set_up", set_up)
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", "arn:aws:sns:eu-west-1:123456789012:t")
    assert cli.main(["doctor", *options]) == 1
    out, err = capsys.readouterr()
    assert err == "roomcast: 2 of 4 checks failed: set-up of a, table a\n"
    assert all(line.isprintable() for line in out.splitlines())
    assert "http://***@proxy.example: n" in out
    if options:
        found = json.loads(out)
        assert [each["name"] for each in found] == [
            "set-up of a",
            "stream of a",
            "table a",
            "queue",
        ]
        assert found[2]["told"] == "http://***@proxy.example: n\x9b2J \u202e"
        assert (found[0]["ask"], found[2]["ask"]) == ("make it", "do this")
    else:
        # What to do follows what was found.
        assert [line.split() for line in out.splitlines()][1::3] == [["make", "it"], ["do", "this"]]


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


def test_a_host_without_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--host", "10.0.0.1"]) == 2
    assert "--host goes with --port" in capsys.readouterr().err
