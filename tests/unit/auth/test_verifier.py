"""service/roomcast/auth/verifier.py: only what our key signed,
with an algorithm of that key, gets through.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import product
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from roomcast.auth.claims import (
    ConnectionClaims,
    SubscriptionClaims,
    TokenEarly,
    TokenExpired,
    TokenInvalid,
    TokenUnverifiable,
)
from roomcast.auth.jwks import DEMAND_PAUSE_S, FetchFailed, JwksKeys
from roomcast.auth.jwks_sets import JwksSets
from roomcast.auth.keys import KEY_ALGORITHMS, private_key
from roomcast.auth.ports import Verifier
from roomcast.auth.verifier import (
    HEADER_CHARS_MAX,
    HMAC_KEY_BYTES_MIN,
    TOKEN_CHARS_MAX,
    TokenVerifier,
    sign_connection,
    sign_subscription,
    verifier_of,
)
from roomcast.config import ClientConfig, ConfigError, SubscriptionTokenConfig, TokenConfig
from roomcast.testing.memory import ManualClock
from tests.signers import ALGORITHMS, Signer, jwks, signer
from tests.unit.worlds import until

KEY = "k" * 64
ENDPOINT = "https://id.example/jwks"
NOW_S = 1_700_000_000.0


def verifier(**options: str) -> TokenVerifier:
    return TokenVerifier(token_config(**{"hmac_secret_key": KEY, **options}))


def token_config(**options: Any) -> TokenConfig:
    return TokenConfig(**options)


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
    assert await strict.connection(token, NOW_S + 59) == ConnectionClaims(
        "ann", 1_700_000_060, {"a": 1}
    )
    with pytest.raises(TokenExpired):
        await strict.connection(token, NOW_S + 60)
    assert await verifier().connection(token, NOW_S)
    token = sign_subscription("ann", "news", KEY, 0, now_s=NOW_S)
    assert await verifier().subscription(token, NOW_S + 1e9) == SubscriptionClaims(
        "ann", "news", None
    )
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
        f"{segment(b'[' * 1500)}.e30.AAAA",
        handmade(
            {"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}, "x": "y" * HEADER_CHARS_MAX},
            b'{"sub":"ann"}',
        ),
        handmade({"alg": "HS256", "kid": None}, b'{"sub":"ann"}'),
        handmade({"alg": "HS256", "kid": ["k1"]}, b'{"sub":"ann"}'),
        handmade({"alg": "hs256"}, b'{"sub":"ann"}'),
        handmade({"alg": "HS256\x00"}, b'{"sub":"ann"}'),
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


async def test_a_long_token_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    for claims in (
        {"info": deep},
        {"b64info": base64.b64encode(json.dumps(deep).encode()).decode()},
    ):
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


# ---- public keys


CLAIMS = {"sub": "ann", "exp": NOW_S + 60}
ANN = ConnectionClaims("ann", 1_700_000_060)
# RS384 and RS512 have the key of RS256.
PAIRS = ["RS256", "ES256", "ES384", "ES512", "EdDSA"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_of_every_algorithm(algorithm: str) -> None:
    own = signer(algorithm)
    checker = TokenVerifier(token_config(**{ALGORITHMS[algorithm]: own.pem}))
    assert checker.enabled
    for kid in (None, "any"):
        assert await checker.connection(own.sign(CLAIMS, kid), NOW_S) == ANN
    assert (
        await checker.subscription(own.sign({**CLAIMS, "channel": "news"}), NOW_S)
    ).channel == "news"
    with pytest.raises(TokenExpired):
        await checker.connection(own.sign(CLAIMS), NOW_S + 60)
    # Another key of the same kind, and a signature over something else.
    stolen = own.sign({**CLAIMS, "sub": "bob"}).rpartition(".")[2]
    tampered = f"{own.sign(CLAIMS).rpartition('.')[0]}.{stolen}"
    for wrong in (signer(algorithm, 2).sign(CLAIMS), tampered, own.sign(CLAIMS)[:-4]):
        with pytest.raises(TokenInvalid, match="not signed with our key"):
            await checker.connection(wrong, NOW_S)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_key_signs_for_no_algorithm_but_its_own(algorithm: str) -> None:
    """Also not for one whose key is not configured, and never for a shared secret."""
    checker = TokenVerifier(token_config(**{ALGORITHMS[algorithm]: signer(algorithm).pem}))
    for other in {*KEY_ALGORITHMS, "HS256", "HS384", "HS512", "none", "PS256", "ES256K"} - {
        algorithm
    }:
        if signer(algorithm).algorithm in ALGORITHMS and other[:2] == algorithm[:2] == "RS":
            continue
        header = segment(json.dumps({"alg": other, "typ": "JWT"}).encode())
        _, payload, signature = signer(algorithm).sign(CLAIMS).split(".")
        with pytest.raises(TokenInvalid):
            await checker.connection(f"{header}.{payload}.{signature}", NOW_S)
        with pytest.raises(TokenInvalid):
            await checker.connection(f"{header}.{payload}.", NOW_S)


def as_secrets(key: Signer) -> list[bytes]:
    """All that somebody who knows a public key could take for the secret of HS256."""
    pem = key.pem.encode()
    jwk = json.dumps(key.jwk()).encode()
    return [pem, pem.strip(), pem + b"\n", pem.replace(b"\n", b"\\n"), jwk, b""]


@pytest.mark.parametrize("algorithm", PAIRS)
@pytest.mark.parametrize("with_secret", [False, True])
async def test_a_public_key_is_no_secret(algorithm: str, with_secret: bool) -> None:
    """Key confusion: everybody knows the public key, and HMAC takes any bytes for a key."""
    own = signer(algorithm)
    options = {ALGORITHMS[algorithm]: own.pem} | ({"hmac_secret_key": KEY} if with_secret else {})
    checker = TokenVerifier(token_config(**options))
    for secret, name in product(as_secrets(own), ("HS256", "HS384", "HS512")):
        signed = f"{segment(json.dumps({'alg': name}).encode())}.{segment(b'{}')}"
        mac = hmac.digest(secret, signed.encode(), name.replace("HS", "sha"))
        with pytest.raises(TokenInvalid):
            await checker.connection(f"{signed}.{segment(mac)}", NOW_S)
    assert await checker.connection(own.sign(CLAIMS), NOW_S) == ANN
    if with_secret:
        assert await checker.connection(jwt.encode(CLAIMS, KEY), NOW_S) == ANN


@pytest.mark.parametrize("option", sorted(set(ALGORITHMS.values())))
@pytest.mark.parametrize("found", ["RS256", "ES256", "EdDSA", "private", "nonsense"])
def test_a_key_of_another_type_stops_the_start(option: str, found: str) -> None:
    pem = {
        "private": signer("RS256").private_pem.decode(),
        "nonsense": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
    }.get(found) or signer(found).pem
    if ALGORITHMS.get(found) == option:
        TokenVerifier(token_config(**{option: pem}))
        return
    with pytest.raises(ConfigError, match=f"client.token.{option} must be a public key") as caught:
        TokenVerifier(token_config(**{option: pem}))
    assert pem not in str(caught.value)


@pytest.mark.parametrize("algorithm", PAIRS)
async def test_we_sign_with_private_keys(algorithm: str) -> None:
    key = private_key(signer(algorithm).private_pem)
    checker = TokenVerifier(token_config(**{ALGORITHMS[algorithm]: signer(algorithm).pem}))
    caps = [{"channels": ["news"], "allow": ["sub"]}]
    token = sign_connection(
        "ann", key, 60, now_s=NOW_S, kid="k7", claims={"caps": caps, "sub": "bob"}
    )
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": "k7", "typ": "JWT"}
    claims = await checker.connection(token, NOW_S)
    assert claims.user == "ann"
    assert claims.caps[0].channels == ("news",)
    token = sign_subscription("ann", "news", key, 60, now_s=NOW_S, claims={"allow": ["pub"]})
    assert len((await checker.subscription(token, NOW_S)).allow) == 1


# ---- two keys at a time, and keys of their own


OLD, NEW = "o" * 64, "n" * 64
END_S = int(NOW_S) + 3600


def rotating(**options: Any) -> TokenVerifier:
    return TokenVerifier(token_config(hmac_secret_key=NEW, hmac_previous_secret_key=OLD, **options))


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_tokens_of_both_keys_are_taken(algorithm: str) -> None:
    for key in (OLD, NEW):
        token = jwt.encode({"sub": "ann"}, key, algorithm=algorithm)
        assert (await rotating().connection(token, NOW_S)).user == "ann"
        token = jwt.encode({"sub": "ann", "channel": "news"}, key, algorithm=algorithm)
        assert (await rotating().subscription(token, NOW_S)).channel == "news"
    with pytest.raises(TokenInvalid):
        await rotating().connection(jwt.encode({"sub": "ann"}, "x" * 64, algorithm), NOW_S)


async def test_a_previous_key_ends() -> None:
    checker = rotating(hmac_previous_secret_key_valid_until=END_S)
    old, new = (sign_connection("ann", key, 0, now_s=NOW_S) for key in (OLD, NEW))
    assert (await checker.connection(old, END_S)).user == "ann"
    # As if it had expired: the client fetches another one, which the new key has signed.
    with pytest.raises(TokenExpired):
        await checker.connection(old, END_S + 1)
    with pytest.raises(TokenExpired):
        await checker.subscription(sign_subscription("ann", "news", OLD, 0), END_S + 1)
    assert (await checker.connection(new, END_S + 1)).user == "ann"
    # A stranger's is as invalid as ever.
    with pytest.raises(TokenInvalid):
        await checker.connection(sign_connection("ann", "x" * 64, 0), END_S + 1)


async def test_a_previous_key_alone_is_a_key() -> None:
    config = token_config(hmac_previous_secret_key=OLD)
    assert config.has_key
    checker = TokenVerifier(config)
    assert checker.enabled
    assert (await checker.connection(sign_connection("ann", OLD, 60, now_s=NOW_S), NOW_S)).user


async def test_no_public_key_is_taken_for_the_previous_secret() -> None:
    pem = signer("RS256").pem
    config = token_config(hmac_secret_key=NEW, hmac_previous_secret_key=pem)
    with pytest.raises(ConfigError, match="hmac_previous_secret_key must be a secret"):
        TokenVerifier(config)
    checker = rotating(rsa_public_key=pem)
    for forged in (
        handmade({"alg": "RS256"}, b'{"sub":"ann"}', OLD),
        handmade({"alg": "none"}, b'{"sub":"ann"}', OLD),
    ):
        with pytest.raises(TokenInvalid):
            await checker.connection(forged, NOW_S)


async def test_tokens_of_two_public_keys_are_taken() -> None:
    first, second, stranger = (signer("ES256", number) for number in (1, 2, 3))
    checker = TokenVerifier(token_config(ecdsa_public_key=first.pem + second.pem))
    for each in (first, second):
        assert (await checker.connection(each.sign({"sub": "ann"}), NOW_S)).user == "ann"
    with pytest.raises(TokenInvalid):
        await checker.connection(stranger.sign({"sub": "ann"}), NOW_S)


def separate(**options: Any) -> Verifier:
    return verifier_of(
        ClientConfig(
            token=token_config(hmac_secret_key=KEY, user_id_claim="uid"),
            subscription_token=SubscriptionTokenConfig(hmac_secret_key=NEW, **options),
        )
    )


async def test_subscription_tokens_have_a_key_of_their_own() -> None:
    checker = separate(enabled=True)
    assert checker.enabled
    opens = sign_connection("ann", KEY, 60, now_s=NOW_S, user_id_claim="uid")
    assert (await checker.connection(opens, NOW_S)).user == "ann"
    subscribes = sign_subscription("ann", "news", NEW, 60, now_s=NOW_S)
    assert (await checker.subscription(subscribes, NOW_S)).user == "ann"
    # Neither key does the work of the other one, not even for what says that it is of its kind.
    for wrong in (sign_connection("ann", NEW, 60, now_s=NOW_S, user_id_claim="uid"), subscribes):
        with pytest.raises(TokenInvalid):
            await checker.connection(wrong, NOW_S)
    for wrong in (sign_subscription("ann", "news", KEY, 60, now_s=NOW_S), opens):
        with pytest.raises(TokenInvalid):
            await checker.subscription(wrong, NOW_S)


async def test_a_key_of_their_own_that_is_not_enabled_is_for_nothing() -> None:
    checker = separate(enabled=False)
    with pytest.raises(TokenInvalid):
        await checker.subscription(sign_subscription("ann", "news", NEW, 60), NOW_S)
    of_both = sign_subscription("ann", "news", KEY, 60, now_s=NOW_S, user_id_claim="uid")
    assert (await checker.subscription(of_both, NOW_S)).user == "ann"


def test_a_malformed_key_says_in_which_table_it_is() -> None:
    with pytest.raises(ConfigError, match=r"client\.subscription_token\.hmac_secret_key must be"):
        verifier_of(
            ClientConfig(
                subscription_token=SubscriptionTokenConfig(
                    enabled=True, hmac_secret_key=signer("RS256").pem
                )
            )
        )


@pytest.mark.parametrize(
    "claims, user",
    [
        ({"cognito:username": "ann", "sub": "8-4-4"}, "ann"),
        ({"cognito:username": 42}, "42"),
        ({"cognito:username": 2**53}, str(2**53)),
        ({"sub": "ann"}, ""),
        ({"cognito:username": ""}, ""),
    ],
)
async def test_another_claim_names_the_user(claims: dict[str, Any], user: str) -> None:
    checker = verifier(user_id_claim="cognito:username")
    assert (await checker.connection(jwt.encode(claims, KEY), NOW_S)).user == user
    token = jwt.encode({**claims, "channel": "news"}, KEY)
    assert (await checker.subscription(token, NOW_S)).user == user


@pytest.mark.parametrize("value", [True, None, 1.5, ["ann"], {"name": "ann"}])
async def test_a_claim_that_names_nobody_makes_a_token_invalid(value: Any) -> None:
    with pytest.raises(TokenInvalid):
        await verifier(user_id_claim="uid").connection(jwt.encode({"uid": value}, KEY), NOW_S)


async def test_issuers_and_audiences_by_expressions() -> None:
    checker = verifier(issuer_regex="https://(one|two)[.]example", audience_regex="chat-.+")
    ours = {"iss": "https://two.example", "aud": ["other", "chat-1"]}
    assert await checker.connection(jwt.encode(ours, KEY), NOW_S)
    assert await checker.subscription(jwt.encode({**ours, "channel": "news"}, KEY), NOW_S)
    for change in ({"iss": "https://three.example"}, {"aud": "other"}):
        with pytest.raises(TokenInvalid):
            await checker.connection(jwt.encode({**ours, **change}, KEY), NOW_S)
        with pytest.raises(TokenInvalid):
            await checker.subscription(
                jwt.encode({**ours, **change, "channel": "news"}, KEY), NOW_S
            )


async def test_the_keys_of_one_issuer_sign_for_no_other() -> None:
    """The claim that selects the keys is not verified before they have verified the token."""
    clock, tenants = ManualClock(), {"one": signer("ES256"), "two": signer("ES256", 2)}

    def keys(tenant: Signer) -> JwksKeys:
        async def fetch() -> bytes:
            return jwks(tenant.jwk("k1"))

        return JwksKeys(fetch, clock, lambda: 0.5)

    sets = JwksSets({f"https://id.example/{name}": keys(each) for name, each in tenants.items()})
    checker = TokenVerifier(
        token_config(
            jwks_public_endpoint="https://id.example/{{tenant}}",
            issuer_regex="(?i)https://(?P<tenant>one|two)[.]example",
        ),
        jwks=sets,
    )
    running = asyncio.create_task(sets.run())
    await until(lambda: sets.usable)
    try:
        for name, each in tenants.items():
            claims = {"sub": "ann", "iss": f"https://{name}.example"}
            assert (await checker.connection(each.sign(claims), NOW_S)).user
            other = {**claims, "iss": f"https://{'two' if name == 'one' else 'one'}.example"}
            with pytest.raises(TokenInvalid):
                await checker.connection(each.sign(other), NOW_S)
        for issuer in ("https://ONE.example", "https://evil.example", ""):
            token = tenants["one"].sign({"sub": "ann", "iss": issuer})
            with pytest.raises(TokenInvalid):
                await checker.connection(token, NOW_S)
        header = segment(b'{"alg":"ES256","kid":"k1"}')
        with pytest.raises(TokenInvalid):
            await checker.connection(f"{header}.{segment(b'5')}.AAAA", NOW_S)
        with pytest.raises(TokenInvalid):
            await checker.connection(header, NOW_S)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


# ---- keys of an endpoint


class Provider:
    """Publishes keys, and signs. The verifier's fetches are done when `until` says so."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.body: bytes | None = jwks(
            *(signer(algorithm).jwk(algorithm) for algorithm in ALGORITHMS)
        )
        self.fetched = 0
        self.keys = JwksKeys(self._fetch, self.clock, lambda: 0.5)

    async def _fetch(self) -> bytes:
        self.fetched += 1
        if self.body is None:
            raise FetchFailed("status 503")
        return self.body

    def verifier(self, **options: str) -> TokenVerifier:
        return TokenVerifier(
            token_config(jwks_public_endpoint=ENDPOINT, **options),
            jwks=JwksSets({ENDPOINT: self.keys}),
        )


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    task = asyncio.create_task(provider.keys.run())
    await until(lambda: provider.keys.usable)
    yield provider
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_tokens_of_a_provider(provider: Provider, algorithm: str) -> None:
    checker = provider.verifier()
    assert checker.enabled
    assert await checker.connection(signer(algorithm).sign(CLAIMS, algorithm), NOW_S) == ANN
    provider.clock.advance(DEMAND_PAUSE_S)
    for wrong in (
        # Somebody else's key under a known name; a known key under another's name; an unknown one.
        signer(algorithm, 2).sign(CLAIMS, algorithm),
        signer(algorithm).sign(CLAIMS, "ES256" if algorithm != "ES256" else "ES384"),
        signer(algorithm, 2).sign(CLAIMS, "unknown"),
    ):
        with pytest.raises(TokenInvalid):
            await checker.connection(wrong, NOW_S)


async def test_a_provider_gives_no_secrets(provider: Provider) -> None:
    """A symmetric key in a set that everybody can read is a secret that everybody knows."""
    known = {"kty": "oct", "kid": "h", "alg": "HS256", "k": segment(KEY.encode())}
    provider.body = jwks(known, signer("RS256").jwk("h"))
    provider.clock.advance(DEMAND_PAUSE_S)
    checker = provider.verifier()
    assert await checker.connection(signer("RS256").sign(CLAIMS, "h"), NOW_S) == ANN
    confused = [jwt.encode(CLAIMS, KEY, headers={"kid": "h"})]
    for secret in as_secrets(signer("RS256")):
        signed = f"{segment(json.dumps({'alg': 'HS256', 'kid': 'h'}).encode())}.{segment(b'{}')}"
        confused.append(f"{signed}.{segment(hmac.digest(secret, signed.encode(), 'sha256'))}")
    for token in confused:
        with pytest.raises(TokenInvalid, match="no key is configured for"):
            await checker.connection(token, NOW_S)
    # The secret that is configured goes on being one.
    both = provider.verifier(hmac_secret_key="s" * 32)
    assert await both.connection(jwt.encode(CLAIMS, "s" * 32, headers={"kid": "h"}), NOW_S) == ANN
    for token in confused:
        with pytest.raises(TokenInvalid):
            await both.connection(token, NOW_S)


async def test_keys_of_the_header_are_nobodys(provider: Provider) -> None:
    mallory = signer("ES256", 2)
    checker = provider.verifier()
    for headers in (
        {"jwk": mallory.jwk("ES256")},
        {"jku": "https://mallory.example.com/keys"},
        {"x5u": "https://mallory.example.com/keys"},
    ):
        with pytest.raises(TokenInvalid):
            await checker.connection(mallory.sign(CLAIMS, "ES256", **headers), NOW_S)


async def test_configured_keys_stand_beside_those_of_the_endpoint(provider: Provider) -> None:
    own = signer("ES256", 3)
    checker = provider.verifier(ecdsa_public_key=own.pem)
    assert await checker.connection(own.sign(CLAIMS, None), NOW_S) == ANN
    assert await checker.connection(signer("ES256").sign(CLAIMS, "ES256"), NOW_S) == ANN
    assert provider.fetched == 1


async def test_a_rotated_key_is_found_and_an_expired_token_of_the_old_one_is_told(
    provider: Provider,
) -> None:
    checker = provider.verifier()
    old, new = signer("ES256"), signer("ES256", 2)
    provider.body = jwks(new.jwk("new"))
    provider.clock.advance(DEMAND_PAUSE_S)
    assert await checker.connection(new.sign(CLAIMS, "new"), NOW_S) == ANN
    provider.clock.advance(DEMAND_PAUSE_S)
    # Its client slept for a week. It is to ask for a new token, and not to give up.
    fetched = provider.fetched
    for ends in (NOW_S, NOW_S - 604_800, 0):
        with pytest.raises(TokenExpired):
            await checker.connection(old.sign({"sub": "ann", "exp": ends}, "ES256"), NOW_S)
    assert provider.fetched == fetched
    with pytest.raises(TokenInvalid):
        await checker.connection(old.sign(CLAIMS, "ES256"), NOW_S)


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"null", b'{"exp":"1"}', b'{"exp":true}', b'{"exp":null}']
)
async def test_what_only_looks_like_a_token_is_not_told_that_it_expired(
    provider: Provider, payload: bytes
) -> None:
    provider.clock.advance(DEMAND_PAUSE_S)
    head = json.dumps({"alg": "ES256", "kid": "unknown"}).encode()
    token = f"{segment(head)}.{segment(payload)}.AAAA"
    with pytest.raises(TokenInvalid):
        await provider.verifier().connection(token, NOW_S)
    provider.clock.advance(DEMAND_PAUSE_S)
    with pytest.raises(TokenInvalid):
        await provider.verifier().connection(token.partition(".")[0], NOW_S)


async def test_without_keys_nobody_is_accepted_and_nobody_refused_for_good() -> None:
    provider = Provider()
    provider.body = None
    task = asyncio.create_task(provider.keys.run())
    await until(lambda: provider.fetched)
    checker = provider.verifier(audience="chat")
    for token in (
        signer("ES256").sign(CLAIMS, "ES256"),
        signer("ES256").sign(CLAIMS, None),
        signer("ES256", 2).sign(CLAIMS, "unknown"),
    ):
        with pytest.raises(TokenUnverifiable):
            await checker.connection(token, NOW_S)
        with pytest.raises(TokenUnverifiable):
            await checker.subscription(token, NOW_S)
    # What no key could make good is refused at once.
    for token in (
        jwt.encode(CLAIMS, KEY),
        jwt.encode({}, "", algorithm="none"),
        "a.b.c",
        "x" * 9000,
    ):
        with pytest.raises(TokenInvalid):
            await checker.connection(token, NOW_S)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_claims_of_a_provider_are_checked_as_any(provider: Provider) -> None:
    checker = provider.verifier(audience="chat", issuer="us")
    own = signer("RS256")
    good = {**CLAIMS, "aud": ["x", "chat"], "iss": "us"}
    assert await checker.connection(own.sign(good, "RS256"), NOW_S) == ANN
    for changes in ({"aud": "x"}, {"iss": "them"}, {"channel": "news"}, {"sub": 5}):
        with pytest.raises(TokenInvalid):
            await checker.connection(own.sign({**good, **changes}, "RS256"), NOW_S)
    with pytest.raises(TokenEarly):
        await checker.connection(own.sign({**good, "nbf": NOW_S + 60}, "RS256"), NOW_S)
