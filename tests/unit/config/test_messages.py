"""service/roomcast/config/messages.py: how a refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.config.files import refusal, write


@pytest.mark.parametrize(
    "variable, hint",
    [
        ("ROOMCAST_CLIENT_INSECUR", " (did you mean ROOMCAST_CLIENT_INSECURE?)"),
        ("ROOMCAST_CHANNEL_NAMESPACES", ""),
        (
            "ROOMCAST_CHANEL_WITHOUT_NAMESPACE_PRESENCE",
            " (did you mean ROOMCAST_CHANNEL_WITHOUT_NAMESPACE_PRESENCE?)",
        ),
    ],
)
def test_a_variable_that_nobody_knows(variable: str, hint: str) -> None:
    assert f"environment: {variable} is not an option{hint}" in refusal(None, {variable: "1"})


def test_an_option_that_only_begins_alike_is_not_suggested() -> None:
    assert (
        refusal(None, {"ROOMCAST_CLIENT_XYZ_FOO": "1"})
        == "environment: ROOMCAST_CLIENT_XYZ_FOO is not an option"
    )


@pytest.mark.parametrize("value", ["with a newline\n", "\x00", "\udcff"])
def test_a_secret_is_never_told(value: str) -> None:
    told = refusal(None, {"ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": value})
    assert told == (
        "environment: ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY must be text without control characters"
    )


def test_a_secret_of_the_wrong_type_is_not_told_either(tmp_path: Path) -> None:
    assert "4711" not in refusal(write(tmp_path, "[client.token]\nhmac_secret_key = 4711"))


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(None, {"ROOMCAST_AWS_REGION": "x" * 10_000})) < 200


SECRET = "sesame-of-somebody"


@pytest.mark.parametrize(
    "text",
    [
        f"client.token = '{SECRET}'",
        f"http_api = '{SECRET}'",
        f"[server]\ntls = ['{SECRET}']",
        f"[client.proxy.connect]\nhttp = '{SECRET}'",
        f"[[proxies]]\nname = 'ab'\nhttp = '{SECRET}'",
        f"[[consumers]]\naws_sqs = '{SECRET}'",
    ],
)
def test_a_secret_where_its_table_belongs_is_not_told(tmp_path: Path, text: str) -> None:
    told = refusal(write(tmp_path, text))
    assert "must be a table" in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "address, shown",
    [
        (f"http://user:{SECRET}@host", "'http://***@host'"),
        (f"user:{SECRET}@host:4318", "'***@host:4318'"),
        (f"http:/user:{SECRET}@host", "'***@host'"),
        (f"https//user:{SECRET}@host", "'***@host'"),
        (f"user:p://{SECRET}@host", "'***@host'"),
        (f"HTTP://user:{SECRET}@host", "'HTTP://***@host'"),
    ],
)
def test_the_password_of_an_address_is_not_told_however_it_is_malformed(
    address: str, shown: str, tmp_path: Path
) -> None:
    assert refusal(None, {"ROOMCAST_AWS_ENDPOINT_URL": address}).endswith(f"found {shown}")
    assert f"found [{shown}]" in refusal(write(tmp_path, f"[aws]\nendpoint_url = ['{address}']"))
