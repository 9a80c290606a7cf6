"""service/auth.py: only what our key signed, with an algorithm of that key, gets through."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.auth import (
    HMAC_KEY_BYTES_MIN,
    TOKEN_CHARS_MAX,
    TokenVerifier,
    sign_connection,
    sign_subscription,
)
from service.config import ConfigError, TokenConfig
from service.core.tokens import ConnectionClaims, SubscriptionClaims, TokenExpired, TokenInvalid

KEY = "k" * 64
NOW_S = 1_700_000_000.0


def verifier(**options: str) -> TokenVerifier:
    return TokenVerifier(TokenConfig(**{"hmac_secret_key": KEY, **options}))


def segment(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def handmade(header: object, payload: bytes, key: str = KEY) -> str:
    """A token with a right HS256 signature, whatever its parts say."""
    signed = f"{segment(json.dumps(header).encode())}.{segment(payload)}"
    return f"{signed}.{segment(hmac.digest(key.encode(), signed.encode(), hashlib.sha256))}"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_tokens_of_another_library(algorithm: str) -> None:
    claims = {"sub": "ann", "exp": NOW_S + 60, "info": {"name": "Ann"}}
    token = jwt.encode(claims, KEY, algorithm=algorithm)
    assert await verifier().connection(token, NOW_S) == ConnectionClaims(
        "ann", 1_700_000_060, {"name": "Ann"}
    )


async def test_what_we_sign_we_accept() -> None:
    strict = verifier(audience="chat", issuer="us")
    token = sign_connection("ann", KEY, 60, {"a": 1}, audience="chat", issuer="us", now_s=NOW_S)
    assert await strict.connection(token, NOW_S + 59) == ConnectionClaims("ann", 1_700_000_060, {"a": 1})
    with pytest.raises(TokenExpired):
        await strict.connection(token, NOW_S + 60)
    assert await verifier().connection(token, NOW_S)
    token = sign_subscription("ann", "news", KEY, 0, now_s=NOW_S)
    assert await verifier().subscription(token, NOW_S + 1e9) == SubscriptionClaims("ann", "news", None)
    with pytest.raises(TokenInvalid):
        await strict.subscription(token, NOW_S)


async def test_the_two_kinds_are_not_exchangeable() -> None:
    with pytest.raises(TokenInvalid):
        await verifier().connection(sign_subscription("ann", "news", KEY, 60, now_s=NOW_S), NOW_S)
    with pytest.raises(TokenInvalid):
        await verifier().subscription(sign_connection("ann", KEY, 60, now_s=NOW_S), NOW_S)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "....",
        "\udcff.\udcff.\udcff",
        "é.é.é",
        sign_connection("ann", "k" * 63 + "l", 60, now_s=NOW_S),
        jwt.encode({"sub": "ann"}, "", algorithm="none"),
        handmade({"alg": "none"}, b'{"sub":"ann"}'),
        handmade({"alg": "RS256"}, b'{"sub":"ann"}'),
        handmade({"alg": "HS384"}, b'{"sub":"ann"}'),
        handmade({"alg": ["HS256"]}, b'{"sub":"ann"}'),
        handmade({"alg": {"HS256": 1}}, b'{"sub":"ann"}'),
        handmade({"alg": None}, b'{"sub":"ann"}'),
        handmade({}, b'{"sub":"ann"}'),
        handmade([], b'{"sub":"ann"}'),
        handmade("HS256", b'{"sub":"ann"}'),
        handmade({"alg": "HS256", "crit": ["exp"], "exp": 1}, b'{"sub":"ann"}'),
        handmade({"alg": "HS256", "b64": False, "crit": ["b64"]}, b""),
        handmade({"alg": "HS256", "kid": 5}, b'{"sub":"ann"}'),
        handmade({"alg": "HS256"}, b"{"),
        handmade({"alg": "HS256"}, b'"ann"'),
        handmade({"alg": "HS256"}, b'{"sub":"ann","exp":NaN}'),
        handmade({"alg": "HS256"}, b'{"sub":"\xff"}'),
        handmade({"alg": "HS256"}, b'{"sub":"\\ud800"}'),
        handmade({"alg": "HS256"}, b"[" * 2000 + b"]" * 2000),
        f"{segment(b'[' * 3000)}.e30.AAAA",
    ],
)
async def test_what_must_not_get_through(token: str) -> None:
    with pytest.raises(TokenInvalid):
        await verifier().connection(token, NOW_S)
    with pytest.raises(TokenInvalid):
        await verifier().subscription(token, NOW_S)


async def test_a_token_that_is_right_but_for_its_end() -> None:
    token = handmade({"alg": "HS256"}, b'{"sub":"ann"}')
    assert await verifier().connection(token, NOW_S) == ConnectionClaims("ann", None)
    for wrong in (token[:-2], token + "A", token + ".", token + "\n", " " + token):
        with pytest.raises(TokenInvalid):
            await verifier().connection(wrong, NOW_S)


async def test_a_long_token_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def long(characters: int) -> str:
        token = handmade({"alg": "HS256"}, b'{"sub":"%s"}' % (b"a" * characters))
        return token if len(token) <= TOKEN_CHARS_MAX or characters > 6200 else long(characters - 1)

    assert (await verifier().connection(long(6000), NOW_S)).user == "a" * 6000
    checker = verifier()
    monkeypatch.setattr(checker, "_jws", None)
    with pytest.raises(TokenInvalid, match="too long"):
        await checker.connection(long(6300), NOW_S)


async def test_info_that_could_not_be_sent_on() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    for claims in ({"info": deep}, {"b64info": base64.b64encode(json.dumps(deep).encode()).decode()}):
        with pytest.raises(TokenInvalid, match="too deeply"):
            await verifier().connection(jwt.encode(claims, KEY), NOW_S)


async def test_without_a_key_no_token_is_good() -> None:
    checker = TokenVerifier(TokenConfig())
    assert not checker.enabled
    assert verifier().enabled
    for key in ("x", KEY):
        with pytest.raises(TokenInvalid, match="no key"):
            await checker.connection(sign_connection("ann", key, 60), NOW_S)
    with pytest.raises(TokenInvalid, match="no key"):
        await checker.connection(handmade({"alg": "HS256"}, b'{"sub":"ann"}', key=""), NOW_S)


async def test_a_short_key_works_and_is_told_once() -> None:
    config = TokenConfig(hmac_secret_key="secret")
    with capture_logs() as logs:
        checker = TokenVerifier(config)
        token = sign_connection("ann", "secret", 60, now_s=NOW_S)
        for _ in range(3):
            assert (await checker.connection(token, NOW_S)).user == "ann"
    assert [log["event"] for log in logs] == ["weak_token_key"]
    assert "secret" not in {str(value) for log in logs for value in log.values()}
    with capture_logs() as logs:
        TokenVerifier(config, insecure=True)
        TokenVerifier(TokenConfig(hmac_secret_key="k" * HMAC_KEY_BYTES_MIN))
    assert logs == []


@pytest.mark.parametrize(
    "key",
    [
        "-----BEGIN PUBLIC KEY-----MFkw-----END PUBLIC KEY-----",
        '{"kty":"oct","k":"c2VjcmV0"}',
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKey",
    ],
)
def test_a_key_that_is_no_shared_secret(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenVerifier(TokenConfig(hmac_secret_key=key))
    assert "client.token.hmac_secret_key" in str(caught.value)
    assert key not in str(caught.value)


def test_nothing_is_signed_without_a_secret() -> None:
    with pytest.raises(ValueError, match="without a secret"):
        sign_connection("ann", "", 60)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
async def test_any_text_is_no_token(text: str) -> None:
    with pytest.raises(TokenInvalid):
        await verifier().connection(text, NOW_S)


info = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.text(st.characters(codec="utf-8"), max_size=50), info)
async def test_user_and_info_arrive_as_they_were(user: str, told: object) -> None:
    token = sign_connection(user, KEY, 60, told, now_s=NOW_S)
    claims = await verifier().connection(token, NOW_S)
    assert claims == ConnectionClaims(user, 1_700_000_060, told)
    assert orjson.loads(orjson.dumps(claims.info)) == told
