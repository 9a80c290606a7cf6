"""service/roomcast/cli/provision.py: what an emulator gets, and what is printed of it."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from roomcast.cli import main as cli
from roomcast.cli import provision as command
from roomcast.dev import provision as provisioning
from tests.unit.cli.conftest import Told


class Provisioner:
    """Stands in for roomcast.dev.provision.provision. Goes on once `may_go_on` is set."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, *arguments: Any, **options: Any) -> provisioning.Provisioned:
        self.asked.append((arguments, options))
        self.may_go_on.wait()
        if self.error:
            raise self.error
        return provisioning.Provisioned(
            "arn:topic", "arn:stream", ("a-channels", "a-nodes"), ("a-nodes",)
        )


@pytest.fixture
def provisioner(monkeypatch: pytest.MonkeyPatch) -> Provisioner:
    fake = Provisioner()
    monkeypatch.setattr(provisioning, "provision", fake)
    return fake


def test_provision(
    provisioner: Provisioner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["provision", "--aws-endpoint", "http://127.0.0.1:4566"]) == 0
    assert capsys.readouterr().out.split() == [
        "table", "a-channels", "table", "a-nodes", "(new)", "topic", "arn:topic",
        "stream", "arn:stream",
    ]  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:5000")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("ROOMCAST_AWS_TABLE_PREFIX", "a-")
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", "arn:aws:sns:eu-west-1:000000000000:mine")
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_SHARDS", "4")
    assert cli.main(["provision", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "topic_arn": "arn:topic",
        "stream_arn": "arn:stream",
        "presence_table": "",
        "presence_stream_arn": "",
        "events_queue_url": "",
        "tables": ["a-channels", "a-nodes"],
        "created": ["a-nodes"],
        "topic_shards": 1,
    }
    assert provisioner.asked == [
        (
            ("http://127.0.0.1:4566", "roomcast-"),
            {
                "region": "us-east-1",
                "credentials": provisioning.DUMMY_CREDENTIALS,
                "topic_name": "roomcast-topic",
                "topic_shards": 1,
            },
        ),
        (
            ("http://127.0.0.1:5000", "a-"),
            {
                "region": "eu-west-1",
                "credentials": None,
                "topic_name": "mine",
                "topic_shards": 4,
            },
        ),
    ]


def test_provision_that_fails(provisioner: Provisioner, told: Told) -> None:
    provisioner.error = provisioning.EmulatorUnreachable("no AWS emulator answers")
    assert cli.main(["provision", "--aws-endpoint", "http://127.0.0.1:4566"]) == 1
    assert told() == "no AWS emulator answers"


def test_an_emulator_that_never_comes_to_an_end(
    provisioner: Provisioner, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "LIMIT_S", 0.05)
    provisioner.may_go_on.clear()
    try:
        assert cli.main(["provision", "--aws-endpoint", "http://127.0.0.1:4566"]) == 1
    finally:
        provisioner.may_go_on.set()
    assert told() == "the AWS emulator at http://127.0.0.1:4566 took more than 0.05 s"
