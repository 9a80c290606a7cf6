"""Reads the keys of tokens from PEM text and JWK sets, and binds each to its algorithms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any, Final

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

__all__ = [
    "JWKS_KEYS_MAX",
    "KEY_ALGORITHMS",
    "PEM_KEYS_MAX",
    "RSA_BITS_MAX",
    "RSA_BITS_MIN",
    "RSA_EXPONENT_BITS_MAX",
    "KeyRefused",
    "KeySet",
    "PublicKey",
    "SigningKey",
    "VerifyingKey",
    "private_key",
    "public_keys",
    "read_jwks",
]

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey

# Shorter keys can be broken (NIST SP 800-131A). Longer ones would cost milliseconds a token.
RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 8192
# A public exponent as long as the modulus would cost milliseconds a token, too. 65537 is usual.
RSA_EXPONENT_BITS_MAX: Final = 64
# No modulus of two large primes has such a factor (NIST SP 800-89 §5.3.3). What has one can be
# broken, or was made up.
_SMALL_FACTORS: Final = prod(
    number for number in range(2, 752) if all(number % each for each in range(2, number))
)
# The field of Ed25519, and y of its points of order 8 (the other one is its negative).
_ED25519_P: Final = 2**255 - 19
_ED25519_Y8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# y of all its points of small order, with the two that can be written in another way. As a key,
# such a point verifies signatures that anybody can make.
_ED25519_SMALL_ORDER: Final = frozenset(
    {
        *(0, 1, _ED25519_P - 1, _ED25519_P, _ED25519_P + 1),
        *(_ED25519_Y8, _ED25519_P - _ED25519_Y8),
    }
)
# Keys in a JWK set. Identity providers publish two to about twenty.
JWKS_KEYS_MAX: Final = 100
# A `kid` is a short name. Longer ones are not looked up.
_KID_CHARS_MAX: Final = 256
# Public keys in one option: those of a rotation. Each is tried with a token.
PEM_KEYS_MAX: Final = 2
_PEM_BLOCK: Final = re.compile(r"-----BEGIN .+?-----END [A-Z ]+-----", re.DOTALL)
# Keys that an error names.
_REFUSED_TOLD_MAX: Final = 3
# One number of a key in base64url: an RSA modulus of RSA_BITS_MAX, with some room.
_NUMBER_CHARS_MAX: Final = 1400

_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512"})
# RFC 7518 §3.4: each algorithm has its curve.
_CURVES: Final = {SECP256R1: "ES256", SECP384R1: "ES384", SECP521R1: "ES512"}
# RFC 8037 §3.1
_EDWARDS: Final = "EdDSA"
# All algorithms of public keys. None of them takes a shared secret.
KEY_ALGORITHMS: Final = _RSA_ALGORITHMS | frozenset(_CURVES.values()) | {_EDWARDS}

# The parameters of each type's public key (RFC 7518 §6.2, §6.3; RFC 8037 §2). Type "oct", a shared
# secret, is left out, because a published key is no secret.
_READERS: Final[Mapping[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]]] = {
    "RSA": (RSAAlgorithm.from_jwk, ("n", "e")),
    "EC": (ECAlgorithm.from_jwk, ("x", "y")),
    "OKP": (OKPAlgorithm.from_jwk, ("x",)),
}


class KeyRefused(ValueError):
    """A text is not the expected public key or set of keys.

    The message quotes nothing of it.
    """


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key, and the algorithms that a token for it may name."""

    key: PublicKey
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and the algorithm of the tokens that it signs."""

    key: PrivateKey = field(repr=False)
    algorithm: str


class KeySet:
    """The keys of one JWK set, by `kid`.

    `refused`: of keys for signatures that are not taken, a line each that says which and why.
    """

    def __init__(
        self,
        keys: Iterable[tuple[str | None, VerifyingKey]] = (),
        refused: Iterable[str] = (),
    ) -> None:
        self._keys = tuple(keys)
        self.kids = frozenset(kid for kid, _ in self._keys if kid is not None)
        self.refused = tuple(refused)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """The key of that name for `algorithm`. Without a name: the only key for it, if there is
        just one.
        """
        fitting = [
            key for name, key in self._keys if algorithm in key.algorithms and kid in (None, name)
        ]
        return fitting[0] if fitting and (kid is not None or len(fitting) == 1) else None


def public_keys(pem: str, wanted: type[PublicKey]) -> Sequence[VerifyingKey]:
    """The public keys of type `wanted` in `pem`, one after the other. A line break may be written
    as a backslash and an n.

    Raises KeyRefused, also for more than PEM_KEYS_MAX.
    """
    text = pem.replace("\\n", "\n")
    blocks = _PEM_BLOCK.findall(text)
    if not blocks or _PEM_BLOCK.sub("", text).strip():
        raise KeyRefused("not a public key in PEM form")
    if len(blocks) > PEM_KEYS_MAX:
        raise KeyRefused(f"more than {PEM_KEYS_MAX} keys")
    return [_public_key(block, wanted) for block in blocks]


def _public_key(pem: str, wanted: type[PublicKey]) -> VerifyingKey:
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyRefused("not a public key in PEM form") from error
    if not isinstance(key, wanted):
        raise KeyRefused("a key of another type")
    return _bound(key)


def private_key(pem: bytes) -> SigningKey:
    """The private key in `pem`, which must have no password. Raises KeyRefused."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRefused("not a private key in PEM form without a password") from error
    if not isinstance(key, PrivateKey):
        raise KeyRefused("of another type than RSA, ECDSA or Ed25519")
    # RSA has three algorithms, and the first is the most common one. The other types have one.
    return SigningKey(key, min(_bound(key.public_key()).algorithms))


def read_jwks(body: bytes) -> KeySet:
    """The keys of a JWK set (RFC 7517 §5) that can verify tokens. Other keys are left out.

    Raises KeyRefused when it is no set, has more than JWKS_KEYS_MAX keys, or no usable one.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise KeyRefused("not JSON") from error
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise KeyRefused("not a JWK set")
    if len(listed) > JWKS_KEYS_MAX:
        raise KeyRefused(f"more than {JWKS_KEYS_MAX} keys")
    usable: list[tuple[str | None, VerifyingKey]] = []
    refused: list[str] = []
    for number, jwk in enumerate(listed):
        try:
            usable.append(_jwk(jwk))
        except _OfNoConcern:
            continue
        except KeyRefused as error:
            refused.append(f"{_name(jwk, number)}: {error}")
    if not usable:
        raise KeyRefused(
            "; ".join(["no key that can verify a token", *refused[:_REFUSED_TOLD_MAX]])
        )
    return KeySet(usable, refused)


class _OfNoConcern(KeyRefused):
    """A key that is not for signatures. A set may have such keys as well."""


def _name(jwk: Any, number: int) -> str:
    kid = jwk.get("kid") if isinstance(jwk, dict) else None
    return kid if isinstance(kid, str) and len(kid) <= _KID_CHARS_MAX else f"key {number}"


def _jwk(jwk: Any) -> tuple[str | None, VerifyingKey]:
    """One key and its `kid`. Raises KeyRefused."""
    if not isinstance(jwk, dict):
        raise KeyRefused("not an object")
    if jwk.get("use", "sig") != "sig" or not _may_verify(jwk.get("key_ops")):
        raise _OfNoConcern("for another purpose")
    if "d" in jwk:
        raise KeyRefused("a private key that everybody knows")
    kid = jwk.get("kid")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= _KID_CHARS_MAX):
        raise KeyRefused("a kid that is no name")
    key = _bound(_read(jwk))
    algorithm = jwk.get("alg")
    if algorithm is None:
        return kid, key
    if not isinstance(algorithm, str) or algorithm not in key.algorithms:
        raise KeyRefused("for an algorithm that does not fit it")
    return kid, VerifyingKey(key.key, frozenset({algorithm}))


def _may_verify(operations: Any) -> bool:
    return operations is None or (isinstance(operations, list) and "verify" in operations)


def _read(jwk: Mapping[str, Any]) -> object:
    kind = jwk.get("kty")
    if kind == "oct":
        raise KeyRefused("a shared secret, which is none where everybody can read it")
    if not isinstance(kind, str) or kind not in _READERS:
        raise KeyRefused("of a type that does not verify")
    read, members = _READERS[kind]
    public = {name: jwk.get(name) for name in members}
    if not all(
        isinstance(number, str) and len(number) <= _NUMBER_CHARS_MAX for number in public.values()
    ):
        raise KeyRefused("without its numbers")
    try:
        return read({"kty": kind, "crv": jwk.get("crv"), **public})
    except (PyJWTError, ValueError, TypeError, OverflowError, UnsupportedAlgorithm) as error:
        raise KeyRefused("its numbers are no key") from error


def _bound(key: object) -> VerifyingKey:
    """`key` with its algorithms. Raises KeyRefused."""
    match key:
        case RSAPublicKey():
            if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
                raise KeyRefused(f"an RSA key must have {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
            numbers = key.public_numbers()
            if numbers.e.bit_length() > RSA_EXPONENT_BITS_MAX:
                raise KeyRefused(f"an RSA exponent of more than {RSA_EXPONENT_BITS_MAX} bits")
            if gcd(numbers.n, _SMALL_FACTORS) != 1:
                raise KeyRefused("an RSA modulus that is no product of two large primes")
            return VerifyingKey(key, _RSA_ALGORITHMS)
        case EllipticCurvePublicKey():
            algorithm = _CURVES.get(type(key.curve))
            if algorithm is None:
                raise KeyRefused("its curve must be P-256, P-384 or P-521")
            return VerifyingKey(key, frozenset({algorithm}))
        case Ed25519PublicKey():
            encoded = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
            # The highest bit is the sign of x.
            if int.from_bytes(encoded, "little") % 2**255 in _ED25519_SMALL_ORDER:
                raise KeyRefused("a point of small order, for which anybody can sign")
            return VerifyingKey(key, frozenset({_EDWARDS}))
    raise KeyRefused("of a type that does not verify")
