"""Whoever signs tokens with a private key: an identity provider in the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import get_default_algorithms

__all__ = ["ALGORITHMS", "Signer", "jwks", "signer"]

# Every algorithm with a public key, and the option that takes its key.
ALGORITHMS: Final = {
    "RS256": "rsa_public_key",
    "RS384": "rsa_public_key",
    "RS512": "rsa_public_key",
    "ES256": "ecdsa_public_key",
    "ES384": "ecdsa_public_key",
    "ES512": "ecdsa_public_key",
    "EdDSA": "ed25519_public_key",
}
_CURVES: Final = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


class Signer:
    """A key pair, and the algorithm it is used with."""

    def __init__(self, algorithm: str, key: Any) -> None:
        self.algorithm = algorithm
        self.key = key
        self.public = key.public_key()

    @property
    def pem(self) -> str:
        pem: bytes = self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem.decode()

    @property
    def private_pem(self) -> bytes:
        pem: bytes = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem

    def jwk(self, kid: str | None = "k1", **changes: Any) -> dict[str, Any]:
        """As providers publish it; a change to None leaves a member out."""
        jwk = get_default_algorithms()[self.algorithm].to_jwk(self.public, as_dict=True)
        jwk |= {"kid": kid, "use": "sig", "alg": self.algorithm, "key_ops": None, **changes}
        return {name: value for name, value in jwk.items() if value is not None}

    def sign(
        self,
        claims: Mapping[str, Any],
        kid: str | None = "k1",
        algorithm: str | None = None,
        **headers: Any,
    ) -> str:
        if kid is not None:
            headers["kid"] = kid
        return jwt.encode(
            dict(claims), self.key, algorithm=algorithm or self.algorithm, headers=headers
        )


def signer(algorithm: str, number: int = 1) -> Signer:
    """The same for the same arguments. The three algorithms of RSA share their key."""
    return _signer(algorithm, number)


@cache
def _signer(algorithm: str, number: int) -> Signer:
    """RSA keys take a while to find."""
    match algorithm:
        case "RS256":
            return Signer(algorithm, rsa.generate_private_key(65537, 2048))
        case "RS384" | "RS512":
            return Signer(algorithm, _signer("RS256", number).key)
        case "EdDSA":
            return Signer(algorithm, ed25519.Ed25519PrivateKey.generate())
        case "Ed448":
            return Signer("EdDSA", ed448.Ed448PrivateKey.generate())
        case "ES256K":
            return Signer(algorithm, ec.generate_private_key(ec.SECP256K1()))
    return Signer(algorithm, ec.generate_private_key(_CURVES[algorithm]))


def jwks(*keys: Any) -> bytes:
    """The body of a JWK set."""
    return json.dumps({"keys": list(keys)}).encode()
