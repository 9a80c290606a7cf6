"""Says whether issuer and audience of a token are among ours, and which JWKS endpoint it needs.

The plain names of both (`issuer`, `audience`) are compared by claims.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from roomcast.auth.claims import TokenInvalid
from roomcast.config import TokenConfig
from roomcast.config.issuers import endpoint_of
from roomcast.patterns import Pattern, pattern
from roomcast.wire.publication import Json

__all__ = ["AUDIENCES_MAX", "CLAIM_CHARS_MAX", "Issuers"]

# An issuer is an address, an audience an address or an id. Longer ones match nothing: what an
# expression is held against has a bound, even before anybody has verified it.
CLAIM_CHARS_MAX: Final = 255
# Of a token. Identity providers write one to three.
AUDIENCES_MAX: Final = 8


class Issuers:
    """Those of one table of the configuration. Raises PatternRefused for one that is malformed."""

    def __init__(self, config: TokenConfig) -> None:
        self._address = config.jwks_public_endpoint
        self._issuer = pattern(config.issuer_regex) if config.issuer_regex else None
        self._audience = pattern(config.audience_regex) if config.audience_regex else None
        self.have_own_endpoints = "{{" in self._address

    def check(self, claims: Json) -> Mapping[str, str]:
        """What the expressions' groups found in the claims. Raises TokenInvalid."""
        if not isinstance(claims, dict):
            raise TokenInvalid("claims are not an object")
        found: dict[str, str] = {}
        if self._issuer is not None:
            groups = _groups(self._issuer, claims.get("iss"))
            if groups is None:
                raise TokenInvalid("another issuer")
            found.update(groups)
        if self._audience is not None:
            audience = claims.get("aud")
            listed = audience[:AUDIENCES_MAX] if isinstance(audience, list) else [audience]
            matches = (_groups(self._audience, each) for each in listed)
            groups = next((groups for groups in matches if groups is not None), None)
            if groups is None:
                raise TokenInvalid("another audience")
            found.update(groups)
        return found

    def endpoint(self, claims: Json) -> str:
        """The address of the keys for a token with these claims, which are not verified yet.

        Raises TokenInvalid.
        """
        if not self.have_own_endpoints:
            return self._address
        groups = self.check(claims)
        try:
            return endpoint_of(self._address, groups)
        except KeyError as error:
            # A group that may be left out of a match.
            raise TokenInvalid("an issuer without keys") from error


def _groups(expression: Pattern, claim: Json) -> Mapping[str, str] | None:
    if not isinstance(claim, str) or len(claim) > CLAIM_CHARS_MAX:
        return None
    return expression.groups(claim)
