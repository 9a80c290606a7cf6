"""service/roomcast/cli/configdoc.py: every option, as the documentation has it."""

from __future__ import annotations

import json

import pytest

from roomcast.cli import main as cli
from roomcast.config import CONSUMER_OPTIONS, OPTIONS, reference
from tests.unit.cli.conftest import Told


def test_all_of_them_as_the_page_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configdoc"]) == 0
    assert capsys.readouterr().out == reference()


def test_one_section(capsys: pytest.CaptureFixture[str], told: Told) -> None:
    assert cli.main(["configdoc", "http_api"]) == 0
    out = capsys.readouterr().out
    assert out.count("###") == 1
    assert out in reference()
    assert cli.main(["configdoc", "nothing"]) == 2
    assert "there are client, client.token, " in told()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configdoc", "--json"]) == 0
    told = {each["option"]: each for each in json.loads(capsys.readouterr().out)}
    assert told.keys() == {option.key for option in (*OPTIONS, *CONSUMER_OPTIONS)}
    key = told["client.token.hmac_secret_key"]
    assert key["variable"] == "ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY"
    assert (key["secret"], key["default"]) == (True, "")
    assert told["client.ping_interval_s"]["unit"] == "s"
