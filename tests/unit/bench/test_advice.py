"""service/roomcast/bench/advice.py: each refusal comes with what to do about it."""

from __future__ import annotations

import re

import pytest

from roomcast.bench import advice
from roomcast.bench.advice import Step
from roomcast.cli import main as cli
from roomcast.config.options import Config
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Disconnect, Error


@pytest.mark.parametrize(
    "step, error, option",
    [
        (Step.CONNECT, Error.UNAUTHORIZED, "client.allow_anonymous_connect_without_token"),
        (Step.CONNECT, Error.TOKEN_EXPIRED, "--token"),
        (Step.SUBSCRIBE, Error.UNKNOWN_CHANNEL, "--namespace"),
        (Step.SUBSCRIBE, Error.PERMISSION_DENIED, "allow_subscribe_for_client"),
        (Step.SUBSCRIBE, Error.LIMIT_EXCEEDED, "client.channel_limit"),
        (Step.PUBLISH, Error.PERMISSION_DENIED, "allow_publish_for_subscriber"),
        (Step.PUBLISH, Error.LIMIT_EXCEEDED, "client.message_size_limit"),
    ],
)
def test_error_replies(step: Step, error: Error, option: str) -> None:
    code = error.value
    told = advice.refused(step, code.code, code.message)
    assert told.startswith(f"{step.value}: {code.message} ({code.code}); ")
    assert option in told
    assert advice.is_final(step, code.code)


def test_what_may_pass_is_not_final() -> None:
    assert "--rate" in advice.refused(Step.PUBLISH, 111, "too many requests")
    assert not advice.is_final(Step.PUBLISH, Error.TOO_MANY_REQUESTS.value.code)
    assert not advice.is_final(Step.PUBLISH, Error.INTERNAL.value.code)


def test_what_is_unknown_is_told_as_it_is() -> None:
    assert advice.refused(Step.PUBLISH, 4711, "no") == "publish: no (4711)"
    assert advice.closed(4000, "bye") == "the server closed the connection: bye (4000)"
    assert advice.closed(4000, "") == "the server closed the connection: without a reason (4000)"
    assert advice.unreachable("ws://a", "who knows") == "ws://a: who knows"


def test_closes() -> None:
    for why, option in (
        (Disconnect.INVALID_TOKEN, "client.token.hmac_secret_key"),
        (Disconnect.CONNECTION_LIMIT, "client.user_connection_limit"),
    ):
        assert option in advice.closed(why.value.code, why.value.reason)
    assert advice.closed(1006, "") == advice.closed(0, "") == "the connection broke"


def test_handshakes() -> None:
    assert "--origin" in advice.handshake("ws://a", 403, "")
    told = advice.handshake("ws://a", 403, "http://evil")
    assert told == (
        "ws://a answers with HTTP 403; client.allowed_origins of the server does not have "
        "http://evil"
    )
    assert "/connection/websocket" in advice.handshake("ws://a/x", 404, "")
    assert "client.handshake_rate_limit" in advice.handshake("ws://a", 429, "")
    assert "/health/ready" in advice.handshake("ws://a", 503, "")
    assert advice.handshake("ws://a", 200, "").endswith("is it a roomcast server?")


def test_addresses_that_lead_nowhere() -> None:
    told = advice.unreachable("ws://a", "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    assert told.endswith("; it does not speak TLS: take ws://, or http://")
    assert "wss://" in advice.unreachable("ws://a", "Server disconnected")
    assert "is the URL right?" in advice.unreachable("ws://a", "Name or service not known")


def test_the_api() -> None:
    assert "ROOMCAST_HTTP_API_KEY" in advice.api("http://a", 401)
    assert advice.api("http://a", 404).endswith("is it a roomcast server?")


def everything() -> str:
    told = [
        advice.refused(step, error.value.code, error.value.message)
        for step in Step
        for error in Error
    ]
    told += [advice.closed(each.value.code, each.value.reason) for each in Disconnect]
    told += [advice.handshake("", status, "o") for status in (401, 403, 404, 429, 503)]
    return "\n".join([*told, advice.api("", 401)])


def test_options_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    usage = capsys.readouterr().out
    named = set(re.findall(r"--[a-z-]+", everything()))
    assert named
    assert {option for option in named if option not in usage} == set()
    config, options = Config(), set(ChannelOptions.__dataclass_fields__)
    for name in set(re.findall(r"\b(?:client|http_api)(?:\.[a-z_]+)+", everything())):
        section: object = config
        for part in name.split("."):
            assert hasattr(section, part), name
            section = getattr(section, part)
    assert set(re.findall(r"\ballow_[a-z]+_for_[a-z]+", everything())) <= options
