"""service/roomcast/auth/keys.py: a key is taken for what it is,
for the algorithms that are its own, or not at all.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from roomcast.auth import keys as token_keys
from roomcast.auth.keys import (
    JWKS_KEYS_MAX,
    KEY_ALGORITHMS,
    KeyRefused,
    KeySet,
    PublicKey,
    private_key,
    public_keys,
    read_jwks,
)
from tests.signers import ALGORITHMS, Signer, jwks, signer

KINDS: dict[str, type[PublicKey]] = {
    "rsa_public_key": RSAPublicKey,
    "ecdsa_public_key": EllipticCurvePublicKey,
    "ed25519_public_key": Ed25519PublicKey,
}
RSA = frozenset({"RS256", "RS384", "RS512"})
SMALL = Signer("RS256", rsa.generate_private_key(65537, 1024))  # noqa: S505  # what must be refused


def own(algorithm: str) -> frozenset[str]:
    return RSA if algorithm in RSA else frozenset({algorithm})


def test_every_algorithm_of_a_public_key_is_known() -> None:
    assert set(ALGORITHMS) == KEY_ALGORITHMS


# ---- PEM


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_public_key_is_for_its_own_algorithms(algorithm: str) -> None:
    pem = signer(algorithm).pem
    for text in (
        pem,
        pem.strip(),
        f"\n{pem}\n",
        pem.replace("\n", "\r\n"),
        pem.replace("\n", "\\n"),
    ):
        (key,) = public_keys(text, KINDS[ALGORITHMS[algorithm]])
        assert key.algorithms == own(algorithm)
        assert key.key == signer(algorithm).public


def test_two_public_keys_for_a_rotation() -> None:
    both = signer("ES256").pem + signer("ES256", 2).pem
    for text in (both, both.replace("\n", "\r\n"), both.replace("\n", "\\n")):
        keys = public_keys(text, EllipticCurvePublicKey)
        assert [each.key for each in keys] == [signer("ES256").public, signer("ES256", 2).public]


@pytest.mark.parametrize(
    "pem, kind, reason",
    [
        ("", RSAPublicKey, "not a public key"),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            RSAPublicKey,
            "not a public key",
        ),
        (signer("RS256").private_pem.decode(), RSAPublicKey, "not a public key"),
        (signer("ES256").pem, RSAPublicKey, "another type"),
        (signer("RS256").pem, EllipticCurvePublicKey, "another type"),
        (signer("RS256").pem, Ed25519PublicKey, "another type"),
        (signer("Ed448").pem, Ed25519PublicKey, "another type"),
        (SMALL.pem, RSAPublicKey, "2048 to 8192 bits"),
        (signer("ES256K").pem, EllipticCurvePublicKey, "its curve must be"),
        (signer("RS256").pem + "x", RSAPublicKey, "not a public key"),
        (signer("RS256").pem + signer("ES256").pem, RSAPublicKey, "another type"),
        (signer("RS256").pem * 3, RSAPublicKey, "more than 2 keys"),
    ],
)
def test_what_is_not_the_public_key_that_is_wanted(
    pem: str, kind: type[PublicKey], reason: str
) -> None:
    with pytest.raises(KeyRefused, match=reason):
        public_keys(pem, kind)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384", "ES512", "EdDSA"])
def test_a_private_key_signs_with_its_algorithm(algorithm: str) -> None:
    key = private_key(signer(algorithm).private_pem)
    assert key.algorithm == algorithm
    assert "key" not in repr(key).partition("(")[2]


def test_what_is_no_private_key() -> None:
    locked = signer("ES256").key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    wrong = (b"", b"\xff", signer("ES256").pem.encode(), locked)
    for pem in (
        *wrong,
        SMALL.private_pem,
        signer("Ed448").private_pem,
        signer("ES256K").private_pem,
    ):
        with pytest.raises(KeyRefused):
            private_key(pem)


# ---- JWK sets


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_of_a_set_is_for_the_algorithm_it_names(algorithm: str) -> None:
    named = read_jwks(jwks(signer(algorithm).jwk()))
    assert named.kids == {"k1"}
    for each in KEY_ALGORITHMS:
        found = named.find("k1", each)
        assert (found is not None) == (each == algorithm)
        assert found is None or found.key == signer(algorithm).public
    # Without one, for all that it can be for.
    unnamed = read_jwks(jwks(signer(algorithm).jwk(alg=None)))
    assert {each for each in KEY_ALGORITHMS if unnamed.find("k1", each)} == own(algorithm)


OCT = {"kty": "oct", "kid": "k1", "alg": "HS256", "k": base64.urlsafe_b64encode(b"k" * 32).decode()}
RSA_JWK = signer("RS256").jwk()
EC_JWK = signer("ES256").jwk()
ED_JWK = signer("EdDSA").jwk()


@pytest.mark.parametrize(
    "jwk",
    [
        OCT,
        {**OCT, "kty": "RSA", "alg": "RS256"},
        None,
        [],
        "k1",
        {},
        {"kty": ["RSA"]},
        {"kty": None},
        {**RSA_JWK, "kty": "EC"},
        {**RSA_JWK, "kty": "oct", "alg": "HS256", "k": RSA_JWK["n"]},
        {**RSA_JWK, "alg": "HS256"},
        {**RSA_JWK, "alg": "ES256"},
        {**RSA_JWK, "alg": "PS256"},
        {**RSA_JWK, "alg": "none"},
        {**RSA_JWK, "alg": ["RS256"]},
        {**RSA_JWK, "use": "enc"},
        {**RSA_JWK, "use": None},
        {**RSA_JWK, "key_ops": ["sign"]},
        {**RSA_JWK, "key_ops": "verify"},
        {**RSA_JWK, "d": "AQAB"},
        {**RSA_JWK, "n": 5},
        {**RSA_JWK, "n": "AQAB" * 350 + "A"},
        {**RSA_JWK, "n": "@@@@"},
        {**RSA_JWK, "e": None},
        {**RSA_JWK, "e": "AQ"},
        {**RSA_JWK, "kid": 5},
        {**RSA_JWK, "kid": "x" * 257},
        SMALL.jwk(),
        {**EC_JWK, "crv": "P-384"},
        {**EC_JWK, "crv": "Ed25519"},
        {**EC_JWK, "crv": ["P-256"]},
        {**EC_JWK, "alg": "ES384"},
        {**EC_JWK, "y": EC_JWK["x"]},
        {**EC_JWK, "x": "A"},
        signer("ES256K").jwk(),
        signer("ES256K").jwk(alg=None),
        {**ED_JWK, "crv": "X25519"},
        {**ED_JWK, "x": "AAAA"},
        {**ED_JWK, "kty": "EC"},
        signer("Ed448").jwk(),
    ],
)
def test_what_cannot_verify_is_passed_over(jwk: Any) -> None:
    with pytest.raises(KeyRefused, match="no key that can verify a token"):
        read_jwks(jwks(jwk))
    good = signer("ES384").jwk("good")
    for keys in ((jwk, good), (good, jwk)):
        found = read_jwks(jwks(*keys))
        assert len(found) == 1
        assert found.find("good", "ES384") is not None
        assert found.find("k1", "RS256") is None


def number(value: int, order: Literal["big", "little"] = "big", size: int = 0) -> str:
    data = value.to_bytes(size or (value.bit_length() + 7) // 8, order)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# RFC 8032 §5.1
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def y_of_order_8() -> int:
    """The y of a point whose double has y = 0: d·y⁴ + 2·y² = 1."""
    root = pow(1 + D, (P + 3) // 8, P)
    root = root if root * root % P == (1 + D) % P else root * pow(2, (P - 1) // 4, P) % P
    for square in ((root - 1) * pow(D, -1, P) % P, (-root - 1) * pow(D, -1, P) % P):
        y = pow(square, (P + 3) // 8, P)
        for each in (y, y * pow(2, (P - 1) // 4, P) % P):
            if each * each % P == square:
                return each
    raise AssertionError("it has a root")


Y8 = y_of_order_8()


@pytest.mark.parametrize("y", [0, 1, P - 1, P, P + 1, Y8, P - Y8])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_point_for_which_anybody_can_sign_is_no_key(y: int, sign: int) -> None:
    x = number(y + (sign << 255), "little", 32)
    with pytest.raises(KeyRefused, match=r"k1: (a point of small order|its numbers are no key)"):
        read_jwks(jwks({**ED_JWK, "x": x}))


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"e": number(2**64 + 1)}, "an RSA exponent of more than 64 bits"),
        ({"n": number(3**1300)}, "no product of two large primes"),
        ({"n": number(2**2047)}, "no product of two large primes"),
        ({"n": number(743 * 2**2040 + 743)}, "no product of two large primes"),
        ({"n": SMALL.jwk()["n"]}, "an RSA key must have 2048 to 8192 bits"),
        ({"alg": "HS256"}, "for an algorithm that does not fit it"),
        (OCT, "a shared secret"),
    ],
)
def test_a_weak_key_is_refused_in_words(changed: Any, reason: str) -> None:
    with pytest.raises(KeyRefused, match=f"^no key that can verify a token; k1: .*{reason}"):
        read_jwks(jwks({**RSA_JWK, **changed}))
    taken = read_jwks(jwks(signer("ES256").jwk("good"), {**RSA_JWK, **changed}))
    assert taken.kids == {"good"}
    (told,) = taken.refused
    assert reason in told


def test_keys_for_other_purposes_are_passed_over_without_a_word() -> None:
    others = ({**RSA_JWK, "use": "enc"}, {**RSA_JWK, "key_ops": ["encrypt"]})
    assert read_jwks(jwks(signer("ES256").jwk("good"), *others)).refused == ()


def test_the_exponent_that_everybody_has_is_taken_and_small_ones() -> None:
    for exponent in (3, 65537, 2**64 - 1):
        assert len(read_jwks(jwks({**RSA_JWK, "e": number(exponent)}))) == 1


def test_a_number_that_is_too_long_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: dict[str, Any]) -> object:
        raise AssertionError("it was read")

    monkeypatch.setitem(token_keys._READERS, "RSA", (read, ("n", "e")))
    with pytest.raises(KeyRefused, match="no key that can verify a token"):
        read_jwks(jwks({**RSA_JWK, "n": "A" * 200_000}))


def test_what_a_key_may_be_called_and_be_for() -> None:
    for jwk in ({**RSA_JWK, "key_ops": ["verify", "encrypt"]}, signer("RS256").jwk(use=None)):
        assert read_jwks(jwks(jwk)).find("k1", "RS256") is not None


@pytest.mark.parametrize(
    "body, reason",
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[]", "not a JWK set"),
        (b"{}", "not a JWK set"),
        (b'{"keys":{}}', "not a JWK set"),
        (json.dumps(RSA_JWK).encode(), "not a JWK set"),
        (jwks(), "no key that can verify"),
        (jwks(*[{}] * (JWKS_KEYS_MAX + 1)), "more than 100 keys"),
        (jwks(*[{}] * 5000), "more than 100 keys"),
    ],
)
def test_what_is_no_set_of_use(body: bytes, reason: str) -> None:
    with pytest.raises(KeyRefused, match=reason):
        read_jwks(body)


def test_a_key_is_found_by_its_name() -> None:
    one, two = signer("ES256", 1), signer("ES256", 2)
    found = read_jwks(jwks(one.jwk("one"), two.jwk("two"), RSA_JWK, ED_JWK))
    first, second = found.find("one", "ES256"), found.find("two", "ES256")
    assert first is not None
    assert first.key == one.public
    assert second is not None
    assert second.key == two.public
    assert found.find("three", "ES256") is None
    assert found.find("", "ES256") is None
    # RFC 7517 §4.5: keys of different types may share a name.
    assert found.find("k1", "RS256") is not None
    assert found.find("k1", "EdDSA") is not None
    assert found.find("k1", "ES256") is None


def test_a_token_without_a_name_has_the_only_key_that_fits() -> None:
    found = read_jwks(jwks(signer("ES256", 1).jwk("one"), signer("ES256", 2).jwk("two"), RSA_JWK))
    assert found.find(None, "RS256") is not None
    assert found.find(None, "ES256") is None
    assert found.find(None, "EdDSA") is None
    nameless = read_jwks(jwks(signer("EdDSA").jwk(None)))
    assert nameless.kids == frozenset()
    assert nameless.find(None, "EdDSA") is not None
    assert nameless.find("k1", "EdDSA") is None


def test_an_empty_set_has_nothing() -> None:
    assert len(KeySet()) == 0
    assert KeySet().find(None, "RS256") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
)
MEMBERS = ["kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "x", "y", "d", "k"]


@given(
    st.sampled_from([RSA_JWK, EC_JWK, ED_JWK]),
    st.dictionaries(
        st.sampled_from(MEMBERS),
        json_values
        | st.sampled_from(
            ["RSA", "EC", "OKP", "P-521", "Ed25519", "verify", RSA_JWK["n"], EC_JWK["x"]]
        )
        | st.binary(max_size=600).map(lambda raw: base64.urlsafe_b64encode(raw).decode()),
    ),
)
def test_a_set_of_any_content_is_read_or_refused(
    jwk: dict[str, Any], changes: dict[str, Any]
) -> None:
    try:
        keys = read_jwks(jwks({**jwk, **changes}))
    except KeyRefused:
        return
    assert len(keys) == 1


@given(st.binary(max_size=100))
def test_a_body_of_any_content_is_read_or_refused(body: bytes) -> None:
    with pytest.raises(KeyRefused):
        read_jwks(body)
