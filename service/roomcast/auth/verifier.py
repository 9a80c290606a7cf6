"""Verifies the signatures of JSON Web Tokens, and signs tokens for trials.

claims.py checks the claims. The configured keys decide which algorithms are accepted, never the
token. A table that is made at the start maps each algorithm to its key or to the JWKS endpoint. The
token's header only selects from this table.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypedDict, TypeVar, Unpack

import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWS
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import PyJWTError

from roomcast.auth.claims import (
    ConnectionClaims,
    SubscriptionClaims,
    TokenEarly,
    TokenError,
    TokenExpired,
    TokenInvalid,
    TokenUnverifiable,
    connection_claims,
    subscription_claims,
)
from roomcast.auth.jwks import JwksKeys
from roomcast.auth.keys import (
    KEY_ALGORITHMS,
    KeyRefused,
    PublicKey,
    SigningKey,
    VerifyingKey,
    public_key,
)
from roomcast.auth.ports import Verifier
from roomcast.config import ConfigError, TokenConfig
from roomcast.wire.publication import Json

__all__ = [
    "HEADER_CHARS_MAX",
    "HMAC_KEY_BYTES_MIN",
    "TOKEN_CHARS_MAX",
    "Chosen",
    "CountedVerifier",
    "TokenVerifier",
    "sign_connection",
    "sign_subscription",
]

# Checked before decoding, to bound the work that an unknown peer can cause.
TOKEN_CHARS_MAX: Final = 8 * 1024
# The token's first part, which is decoded before the signature is checked. Algorithm, type and kid
# take 150 characters.
HEADER_CHARS_MAX: Final = 2 * 1024
# The length of an HS256 digest. Shorter keys can be guessed offline (RFC 7518 §3.2).
HMAC_KEY_BYTES_MIN: Final = 32

_HASHES: Final = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
# The options that hold a public key, and its type.
_PUBLIC_KEYS: Final[tuple[tuple[str, type[PublicKey]], ...]] = (
    ("rsa_public_key", RSAPublicKey),
    ("ecdsa_public_key", EllipticCurvePublicKey),
    ("ed25519_public_key", Ed25519PublicKey),
)

Claims = TypeVar("Claims", ConnectionClaims, SubscriptionClaims)

_log = structlog.get_logger()


class _CheckedHmac(HMACAlgorithm):
    """HMAC with a key that was checked when the configuration was read."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002  # the verifier logs a weak key, once
        return None


def _jws() -> PyJWS:
    jws = PyJWS(algorithms=sorted(KEY_ALGORITHMS))
    for name, hash_function in _HASHES.items():
        jws.register_algorithm(name, _CheckedHmac(hash_function))
    return jws


class TokenVerifier:
    """Verifies tokens with the configured keys."""

    def __init__(
        self, config: TokenConfig, *, insecure: bool = False, jwks: JwksKeys | None = None
    ) -> None:
        """Raises ConfigError for a malformed key.

        `insecure`: a weak key is not logged.

        `jwks`: the keys of the configured endpoint. Without it, those keys are unknown.
        """
        self._config = config
        self._jws = _jws()
        self._jwks = jwks
        # By algorithm. Bytes are a shared secret. The table does not change later.
        self._keys: dict[str, bytes | PublicKey] = {}
        if config.hmac_secret_key:
            self._keys.update(
                dict.fromkeys(_HASHES, _secret(config.hmac_secret_key, insecure=insecure))
            )
        for option, kind in _PUBLIC_KEYS:
            if pem := getattr(config, option):
                verifying = _configured(option, pem, kind)
                self._keys.update(dict.fromkeys(verifying.algorithms, verifying.key))

    @property
    def enabled(self) -> bool:
        """Whether any token can be valid: a key or a JWKS endpoint is configured."""
        return bool(self._keys) or self._jwks is not None

    async def connection(self, token: str, now_s: float) -> ConnectionClaims:
        """`now_s`: s since 1970.

        Raises TokenExpired, TokenEarly, TokenInvalid or TokenUnverifiable.
        """
        return self._checked(connection_claims, await self._claims(token, now_s), now_s)

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims:
        """`now_s`: s since 1970. The caller must compare the claims with the request. Raises as
        `connection`.
        """
        return self._checked(subscription_claims, await self._claims(token, now_s), now_s)

    def _checked(self, read: Callable[..., Claims], claims: Json, now_s: float) -> Claims:
        return read(
            claims,
            now_s,
            audience=self._config.audience,
            issuer=self._config.issuer,
            loads=orjson.loads,
        )

    async def _claims(self, token: str, now_s: float) -> Json:
        """The payload, once one of our keys has verified it."""
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenInvalid("too long")
        if not self.enabled:
            raise TokenInvalid("no key is configured")
        algorithm, kid = _named(token)
        configured = self._keys.get(algorithm)
        if self._jwks is None or algorithm not in KEY_ALGORITHMS:
            if configured is None:
                raise TokenInvalid("an algorithm that no key is configured for")
            return self._verified(token, algorithm, configured)
        if configured is not None:
            try:
                return self._verified(token, algorithm, configured)
            except TokenInvalid:
                # The endpoint may have another key of the same type.
                pass
        found = await self._fetched(self._jwks, token, algorithm, kid, now_s)
        return self._verified(token, algorithm, found.key)

    async def _fetched(
        self, jwks: JwksKeys, token: str, algorithm: str, kid: str | None, now_s: float
    ) -> VerifyingKey:
        key = jwks.known(kid, algorithm)
        if key is None:
            if _says_it_expired(token, now_s):
                # Its key may be withdrawn already, and the client cannot know that. A new token
                # helps in any case.
                raise TokenExpired
            key = await jwks.find(kid, algorithm)
        if key is None:
            raise TokenInvalid("the JWKS endpoint has no key for it")
        return key

    def _verified(self, token: str, algorithm: str, key: bytes | PublicKey) -> Json:
        try:
            return orjson.loads(self._jws.decode(token, key, algorithms=[algorithm]))
        except (PyJWTError, ValueError) as error:
            # Not the error's own text, which may quote the token.
            raise TokenInvalid("malformed, or not signed with our key") from error
        except (TypeError, AttributeError, RecursionError) as error:
            # A header with unexpected JSON types, which PyJWT does not check everywhere.
            raise TokenInvalid("malformed header") from error


class CountedVerifier:
    """A Verifier that counts the refusals of `verifier` into `failures`, by reason."""

    def __init__(self, verifier: Verifier, failures: dict[str, int]) -> None:
        self._verifier = verifier
        self._failures = failures
        failures.update(dict.fromkeys(_REASONS.values(), 0))

    @property
    def uncounted(self) -> Verifier:
        """The same, for tokens that no client has shown."""
        return self._verifier

    @property
    def enabled(self) -> bool:
        return self._verifier.enabled

    async def connection(self, token: str, now_s: float) -> ConnectionClaims:
        return await self._counted(self._verifier.connection(token, now_s))

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims:
        return await self._counted(self._verifier.subscription(token, now_s))

    async def _counted(self, verifying: Awaitable[Claims]) -> Claims:
        try:
            return await verifying
        except tuple(_REASONS) as error:
            self._failures[_REASONS[type(error)]] += 1
            raise


_REASONS: Final[dict[type[TokenError], str]] = {
    TokenExpired: "expired",
    TokenEarly: "early",
    TokenInvalid: "invalid",
    TokenUnverifiable: "unverifiable",
}


def _secret(configured: str, *, insecure: bool) -> bytes:
    secret = configured.encode()
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except PyJWTError as error:
        raise ConfigError(
            "client.token.hmac_secret_key must be a secret shared with the signer; "
            "found a public key, a certificate or a JWK"
        ) from error
    if len(secret) < HMAC_KEY_BYTES_MIN and not insecure:
        _log.warning(
            "weak_token_key",
            option="client.token.hmac_secret_key",
            key_bytes_min=HMAC_KEY_BYTES_MIN,
        )
    return secret


def _configured(option: str, pem: str, kind: type[PublicKey]) -> VerifyingKey:
    try:
        return public_key(pem, kind)
    except KeyRefused as error:
        raise ConfigError(
            f"client.token.{option} must be a public key of its type; found {error}"
        ) from error


def _named(token: str) -> tuple[str, str | None]:
    """The algorithm and `kid` in the header, to select one of our keys. The library compares them
    again.
    """
    first = token.partition(".")[0]
    if len(first) > HEADER_CHARS_MAX:
        raise TokenInvalid("header too long")
    header = _segment(first)
    if not isinstance(header, dict):
        raise TokenInvalid("malformed header")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not (kid is None or isinstance(kid, str)):
        raise TokenInvalid("malformed header")
    return algorithm, kid


def _says_it_expired(token: str, now_s: float) -> bool:
    """Whether the token expired by its own claim, which is unverified. A false claim only makes the
    client fetch another token.
    """
    try:
        claims = _segment(token.split(".")[1])
    except IndexError:
        return False
    ends = claims.get("exp") if isinstance(claims, dict) else None
    return isinstance(ends, int | float) and not isinstance(ends, bool) and ends <= now_s


def _segment(segment: str) -> Json:
    """The JSON value in one part of a token. None when there is none."""
    try:
        return orjson.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError:
        return None


class Chosen(TypedDict, total=False):
    """Optional arguments of a token. `now_s`: used instead of the present time.

    `claims`: further claims. `kid`: the name of the key, for the header.
    """

    audience: str
    issuer: str
    now_s: float | None
    kid: str
    claims: Mapping[str, Json] | None


def sign_connection(
    user: str,
    key: str | SigningKey,
    ttl_s: int,
    info: Json = None,
    **chosen: Unpack[Chosen],
) -> str:
    """A connection token for `user`, valid for `ttl_s` seconds (0 = for ever).

    `key`: a secret (HS256) or a private key. Raises ValueError without one.
    """
    return _signed({"sub": user}, key, ttl_s, info, chosen)


def sign_subscription(
    user: str,
    channel: str,
    key: str | SigningKey,
    ttl_s: int,
    info: Json = None,
    **chosen: Unpack[Chosen],
) -> str:
    """A subscription token for `user` and `channel`. The rest is as for `sign_connection`."""
    return _signed({"sub": user, "channel": channel}, key, ttl_s, info, chosen)


def _signed(
    named: Mapping[str, Json], key: str | SigningKey, ttl_s: int, info: Json, chosen: Chosen
) -> str:
    if not key:
        raise ValueError("a token cannot be signed without a secret")
    now_s = chosen.get("now_s")
    issued_at = int(time.time() if now_s is None else now_s)
    payload: dict[str, Any] = {**(chosen.get("claims") or {}), **named, "iat": issued_at}
    if ttl_s:
        payload["exp"] = issued_at + ttl_s
    if info is not None:
        payload["info"] = info
    if audience := chosen.get("audience"):
        payload["aud"] = audience
    if issuer := chosen.get("issuer"):
        payload["iss"] = issuer
    kid = chosen.get("kid")
    headers = {"kid": kid} if kid else None
    if isinstance(key, SigningKey):
        return _jws().encode(
            orjson.dumps(payload), key.key, algorithm=key.algorithm, headers=headers
        )
    return _jws().encode(orjson.dumps(payload), key, algorithm="HS256", headers=headers)
