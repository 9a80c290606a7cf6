"""What all tests of the command line start from."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from roomcast.observe import logs as telemetry
from tests.unit.cli.account import TOPIC, Aws
from tests.unit.served import quiet, secured, served

__all__ = ["Told", "quiet", "secured", "served"]

Told = Callable[[], str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of whoever runs the tests, and no logging set up for the other tests."""
    for name in list(os.environ):
        if name.startswith(("ROOMCAST_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(telemetry, "configure", lambda *_args, **_options: None)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """The one line on stderr, when nothing was written to stdout."""

    def read() -> str:
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("roomcast: ")
        assert err.count("\n") == 1
        return err.removeprefix("roomcast: ").removesuffix("\n")

    return read


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Aws:
    for name in list(os.environ):
        if name.startswith(("ROOMCAST_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ROOMCAST_AWS_TOPIC_ARN", TOPIC)
    monkeypatch.setenv("ROOMCAST_AWS_TABLE_PREFIX", "t-")
    monkeypatch.setenv("ROOMCAST_AWS_QUEUE_PREFIX", "q-")
    return Aws(monkeypatch)
