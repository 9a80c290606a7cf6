"""JSON Web Tokens: verify the signature and hand the claims to core/tokens.py; sign tokens for trying things out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import orjson
import structlog
from jwt import PyJWS
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import PyJWTError

from service.config import ConfigError, TokenConfig
from service.core.publication import Json
from service.core.tokens import (
    ConnectionClaims,
    SubscriptionClaims,
    TokenInvalid,
    connection_claims,
    subscription_claims,
)

__all__ = ["HMAC_KEY_BYTES_MIN", "TOKEN_CHARS_MAX", "TokenVerifier", "sign_connection", "sign_subscription"]

# Checked before anything is decoded: what an unknown peer can make us compute is bounded.
TOKEN_CHARS_MAX: Final = 8 * 1024
# As long as the digest of HS256; shorter keys can be searched for offline (RFC 7518 §3.2).
HMAC_KEY_BYTES_MIN: Final = 32

_HASHES: Final = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
_ALGORITHMS: Final = tuple(_HASHES)

Claims = TypeVar("Claims", ConnectionClaims, SubscriptionClaims)

_log = structlog.get_logger()


class _CheckedHmac(HMACAlgorithm):
    """HMAC with a key that was checked once, when the configuration was read, and not for every token."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002  # the verifier logs a weak key, once
        return None


def _jws() -> PyJWS:
    jws = PyJWS(algorithms=[])
    for name, hash_function in _HASHES.items():
        jws.register_algorithm(name, _CheckedHmac(hash_function))
    return jws


class TokenVerifier:
    """Verifies tokens as the configuration says. Only algorithms that fit the configured key are accepted,
    whatever a token's header asks for.
    """

    def __init__(self, config: TokenConfig, *, insecure: bool = False) -> None:
        """Raises ConfigError for a key that cannot be one. `insecure`: a weak key is nothing to log."""
        self._config = config
        self._jws = _jws()
        self._key = config.hmac_secret_key.encode()
        if self._key:
            try:
                HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(self._key)
            except PyJWTError as error:
                raise ConfigError(
                    "client.token.hmac_secret_key must be a secret shared with the signer; "
                    "found a public key, a certificate or a JWK"
                ) from error
            if len(self._key) < HMAC_KEY_BYTES_MIN and not insecure:
                _log.warning(
                    "weak_token_key", option="client.token.hmac_secret_key", key_bytes_min=HMAC_KEY_BYTES_MIN
                )

    @property
    def enabled(self) -> bool:
        """Whether any token can be good: a key is configured."""
        return bool(self._key)

    async def connection(self, token: str, now_s: float) -> ConnectionClaims:
        """`now_s`: s since 1970. Raises TokenExpired or TokenInvalid."""
        return self._checked(connection_claims, token, now_s)

    async def subscription(self, token: str, now_s: float) -> SubscriptionClaims:
        """`now_s`: s since 1970; compare the claims with the request. Raises TokenExpired or TokenInvalid."""
        return self._checked(subscription_claims, token, now_s)

    def _checked(self, read: Callable[..., Claims], token: str, now_s: float) -> Claims:
        return _encodable(
            read(
                self._claims(token),
                now_s,
                audience=self._config.audience,
                issuer=self._config.issuer,
                loads=orjson.loads,
            )
        )

    def _claims(self, token: str) -> Json:
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenInvalid("too long")
        if not self._key:
            raise TokenInvalid("no key is configured")
        try:
            payload = self._jws.decode(token, self._key, algorithms=_ALGORITHMS)
            return orjson.loads(payload)
        except (PyJWTError, ValueError) as error:
            # Not the error's text: it may quote the token.
            raise TokenInvalid("malformed, or not signed with our key") from error
        except (TypeError, AttributeError, RecursionError) as error:
            # Headers of unexpected JSON types, which PyJWT does not look for everywhere.
            raise TokenInvalid("malformed header") from error


def sign_connection(
    user: str,
    secret: str,
    ttl_s: int,
    info: Json = None,
    *,
    audience: str = "",
    issuer: str = "",
    now_s: float | None = None,
) -> str:
    """A connection token (HS256) for `user`, good for `ttl_s` seconds (0 = for ever). Raises ValueError without secret."""
    return _signed({"sub": user}, secret, ttl_s, info, audience, issuer, now_s)


def sign_subscription(
    user: str,
    channel: str,
    secret: str,
    ttl_s: int,
    info: Json = None,
    *,
    audience: str = "",
    issuer: str = "",
    now_s: float | None = None,
) -> str:
    """A subscription token (HS256) for `user` and `channel`; the rest as for `sign_connection`."""
    return _signed({"sub": user, "channel": channel}, secret, ttl_s, info, audience, issuer, now_s)


def _signed(
    claims: Mapping[str, Any],
    secret: str,
    ttl_s: int,
    info: Json,
    audience: str,
    issuer: str,
    now_s: float | None,
) -> str:
    if not secret:
        raise ValueError("a token cannot be signed without a secret")
    issued_at = int(time.time() if now_s is None else now_s)
    payload: dict[str, Any] = {**claims, "iat": issued_at}
    if ttl_s:
        payload["exp"] = issued_at + ttl_s
    if info is not None:
        payload["info"] = info
    if audience:
        payload["aud"] = audience
    if issuer:
        payload["iss"] = issuer
    return _jws().encode(orjson.dumps(payload), secret, algorithm="HS256")


def _encodable(claims: Claims) -> Claims:
    """Info that cannot be written again would break every push that carries it: orjson reads deeper than it writes."""
    try:
        orjson.dumps(claims.info)
    except orjson.JSONEncodeError as error:
        raise TokenInvalid("info is nested too deeply") from error
    return claims
