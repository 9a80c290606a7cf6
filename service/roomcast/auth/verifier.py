"""Verifies the signatures of JSON Web Tokens, and signs tokens for trials.

claims.py checks the claims. The configured keys decide which algorithms are accepted, never the
token. A table that is made at the start maps each algorithm to its keys; the JWKS endpoints have
others. The token's header, and with several issuers its `iss` and `aud`, only select among these.

For a rotation there may be two keys of a kind (docs/operations.md#rotate-a-key). Each is tried. A
previous secret has an end. What it signed is answered as expired from then on, so that the client
fetches a token of the new key. That gives nothing to whoever has the old secret: the answer is the
same for any token of theirs, and none of them opens anything.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
from roomcast.auth.issuers import Issuers
from roomcast.auth.jwks import JwksKeys
from roomcast.auth.jwks_sets import JwksSets
from roomcast.auth.keys import (
    KEY_ALGORITHMS,
    KeyRefused,
    PublicKey,
    SigningKey,
    VerifyingKey,
    public_keys,
)
from roomcast.auth.ports import Verifier
from roomcast.config import ClientConfig, ConfigError, TokenConfig
from roomcast.wire.publication import Json

__all__ = [
    "HEADER_CHARS_MAX",
    "HMAC_KEY_BYTES_MIN",
    "TOKEN_CHARS_MAX",
    "Chosen",
    "CountedVerifier",
    "SeparateVerifier",
    "TokenVerifier",
    "sign_connection",
    "sign_subscription",
    "verifier_of",
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
    """Verifies tokens with the keys of one table of the configuration."""

    def __init__(
        self,
        config: TokenConfig,
        *,
        insecure: bool = False,
        jwks: JwksSets | None = None,
        table: str = "client.token",
    ) -> None:
        """Raises ConfigError for a malformed key.

        `insecure`: a weak key is not logged.

        `jwks`: the keys of the configured endpoints. Without them, those keys are unknown. `table`:
        the name of `config`, for errors.
        """
        self._config = config
        self._jws = _jws()
        self._jwks = jwks if config.jwks_public_endpoint else None
        self._issuers = Issuers(config)
        # By algorithm. Bytes are a shared secret. The table does not change later.
        self._keys: dict[str, Sequence[bytes | PublicKey]] = {}
        if config.hmac_secret_key:
            secret = _secret(config, "hmac_secret_key", table, insecure=insecure)
            self._keys.update(dict.fromkeys(_HASHES, (secret,)))
        self._previous = (
            _secret(config, "hmac_previous_secret_key", table, insecure=insecure)
            if config.hmac_previous_secret_key
            else None
        )
        for option, kind in _PUBLIC_KEYS:
            if pem := getattr(config, option):
                for verifying in _configured(f"{table}.{option}", pem, kind):
                    for algorithm in verifying.algorithms:
                        self._keys[algorithm] = (*self._keys.get(algorithm, ()), verifying.key)

    @property
    def enabled(self) -> bool:
        """Whether any token can be valid: a key or a JWKS endpoint is configured."""
        return bool(self._keys) or self._previous is not None or self._jwks is not None

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
        self._issuers.check(claims)
        return read(
            claims,
            now_s,
            audience=self._config.audience,
            issuer=self._config.issuer,
            user_id_claim=self._config.user_id_claim,
            loads=orjson.loads,
        )

    async def _claims(self, token: str, now_s: float) -> Json:
        """The payload, once one of our keys has verified it."""
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenInvalid("too long")
        if not self.enabled:
            raise TokenInvalid("no key is configured")
        algorithm, kid = _named(token)
        refusal: TokenInvalid | None = None
        for key in self._keys.get(algorithm, ()):
            try:
                return self._verified(token, algorithm, key)
            except TokenInvalid as error:
                # Another key of the same kind may have signed it.
                refusal = error
        if algorithm in _HASHES and self._previous is not None:
            return self._by_previous(token, algorithm, self._previous, now_s)
        if self._jwks is None or algorithm not in KEY_ALGORITHMS:
            raise refusal or TokenInvalid("an algorithm that no key is configured for")
        endpoint = self._issuers.endpoint(_claims_of(token))
        jwks = self._jwks.of(endpoint)
        if jwks is None:
            # An expression that takes letters of either case, such as its list does not have.
            raise TokenInvalid("an issuer without keys")
        found = await self._fetched(jwks, token, algorithm, kid, now_s)
        return self._verified(token, algorithm, found.key)

    def _by_previous(self, token: str, algorithm: str, key: bytes, now_s: float) -> Json:
        claims = self._verified(token, algorithm, key)
        ends_at = self._config.hmac_previous_secret_key_valid_until
        if ends_at and now_s > ends_at:
            raise TokenExpired
        return claims

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


class SeparateVerifier:
    """Verifies subscription tokens with keys of their own, which open no connection."""

    def __init__(self, connections: Verifier, subscriptions: Verifier) -> None:
        self._connections = connections
        self._subscriptions = subscriptions

    @property
    def enabled(self) -> bool:
        return self._connections.enabled or self._subscriptions.enabled

    async def connection(self, token: str, now_s: float) -> ConnectionClaims:
        return await self._connections.connection(token, now_s)

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims:
        return await self._subscriptions.subscription(token, now_s)


def verifier_of(
    client: ClientConfig, *, insecure: bool = False, jwks: JwksSets | None = None
) -> Verifier:
    """The verifier of a configuration. Arguments and errors are those of TokenVerifier."""
    verifier = TokenVerifier(client.token, insecure=insecure, jwks=jwks)
    own = client.subscription_token
    if not own.enabled:
        return verifier
    return SeparateVerifier(
        verifier,
        TokenVerifier(own, insecure=insecure, jwks=jwks, table="client.subscription_token"),
    )


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


def _secret(config: TokenConfig, option: str, table: str, *, insecure: bool) -> bytes:
    secret: bytes = getattr(config, option).encode()
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except PyJWTError as error:
        raise ConfigError(
            f"{table}.{option} must be a secret shared with the signer; "
            "found a public key, a certificate or a JWK"
        ) from error
    if len(secret) < HMAC_KEY_BYTES_MIN and not insecure:
        _log.warning(
            "weak_token_key",
            option=f"{table}.{option}",
            key_bytes_min=HMAC_KEY_BYTES_MIN,
        )
    return secret


def _configured(option: str, pem: str, kind: type[PublicKey]) -> Sequence[VerifyingKey]:
    try:
        return public_keys(pem, kind)
    except KeyRefused as error:
        raise ConfigError(f"{option} must be a public key of its type; found {error}") from error


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
    claims = _claims_of(token)
    ends = claims.get("exp") if isinstance(claims, dict) else None
    return isinstance(ends, int | float) and not isinstance(ends, bool) and ends <= now_s


def _claims_of(token: str) -> Json:
    """The claims, which nobody has verified. None when there are none."""
    parts = token.split(".", 2)
    return _segment(parts[1]) if len(parts) > 1 else None


def _segment(segment: str) -> Json:
    """The JSON value in one part of a token. None when there is none."""
    try:
        return orjson.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError:
        return None


class Chosen(TypedDict, total=False):
    """Optional arguments of a token. `now_s`: used instead of the present time.

    `claims`: further claims. `kid`: the name of the key, for the header. `user_id_claim`: the claim
    that names the user; "" = `sub`.
    """

    audience: str
    issuer: str
    user_id_claim: str
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
    return _signed(user, {}, key, ttl_s, info, chosen)


def sign_subscription(
    user: str,
    channel: str,
    key: str | SigningKey,
    ttl_s: int,
    info: Json = None,
    **chosen: Unpack[Chosen],
) -> str:
    """A subscription token for `user` and `channel`. The rest is as for `sign_connection`."""
    return _signed(user, {"channel": channel}, key, ttl_s, info, chosen)


def _signed(
    user: str,
    named: Mapping[str, Json],
    key: str | SigningKey,
    ttl_s: int,
    info: Json,
    chosen: Chosen,
) -> str:
    if not key:
        raise ValueError("a token cannot be signed without a secret")
    now_s = chosen.get("now_s")
    issued_at = int(time.time() if now_s is None else now_s)
    whose = {chosen.get("user_id_claim") or "sub": user}
    payload: dict[str, Any] = {
        **(chosen.get("claims") or {}),
        **whose,
        **named,
        "iat": issued_at,
    }
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
