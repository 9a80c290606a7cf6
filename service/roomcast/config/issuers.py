"""Says which JWKS endpoints there are for the issuers of a token's table.

`{{name}}` in the address stands for what the group of that name found in the token's `iss` or
`aud`, which nobody has verified yet. So such a group must list its values, and all addresses are
known before the first token comes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Final

from roomcast.config.options import TokenConfig

__all__ = ["ENDPOINTS_MAX", "JWKS_ADDRESS", "IssuersRefused", "endpoint_of", "endpoints"]

# Each is fetched for itself, every five minutes.
ENDPOINTS_MAX: Final = 16
# An address without what stands for something.
JWKS_ADDRESS: Final = re.compile(
    r"https://[^/\s@?#{}]+(/[^\s#{}]*)?|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?(/[^\s#{}]*)?"
)
_PLACE: Final = re.compile(r"\{\{(\w+)\}\}")
# The values of one group: characters that stand for themselves, or are escaped.
_LISTED: Final = re.compile(
    r"((?:[^\\()\[\]{}*+?.^$|]|\\[^\w\s])+(?:\|(?:[^\\()\[\]{}*+?.^$|]|\\[^\w\s])+)*)\)"
)
_ESCAPED: Final = re.compile(r"\\(.)")


class IssuersRefused(ValueError):
    """An endpoint that is not the same few addresses for all tokens. The message says why."""


def endpoints(token: TokenConfig) -> Sequence[str]:
    """Every address that `endpoint_of` can return: none without an endpoint.

    Raises IssuersRefused.
    """
    address = token.jwks_public_endpoint
    if not address:
        return ()
    names = list(dict.fromkeys(_PLACE.findall(address)))
    values = [_values(name, token) for name in names]
    if prod(map(len, values)) > ENDPOINTS_MAX:
        raise IssuersRefused(f"stands for more than {ENDPOINTS_MAX} addresses")
    found = [
        endpoint_of(address, dict(zip(names, chosen, strict=True))) for chosen in product(*values)
    ]
    for each in found:
        if not JWKS_ADDRESS.fullmatch(each):
            raise IssuersRefused("must be an https:// address (http:// only of this machine)")
    return found


def endpoint_of(address: str, groups: Mapping[str, str]) -> str:
    """`address` with what its `{{…}}` stand for."""
    return _PLACE.sub(lambda place: groups[place[1]], address)


def _values(name: str, token: TokenConfig) -> Sequence[str]:
    """What the group `name` of the issuer's or the audience's expression can find."""
    begin = re.compile(rf"\(\?P?<{re.escape(name)}>")
    found = [
        match
        for expression in (token.issuer_regex, token.audience_regex)
        if (match := begin.search(expression))
    ]
    if len(found) != 1:
        raise IssuersRefused(
            f"needs one group called {name} for its {{{{{name}}}}}, in issuer_regex or "
            "audience_regex"
        )
    listed = _LISTED.match(found[0].string, found[0].end())
    if listed is None:
        raise IssuersRefused(
            f"needs a group {name} that lists its values, as in (?P<{name}>one|two): "
            "what it finds is not verified yet"
        )
    return list(dict.fromkeys(_ESCAPED.sub(r"\1", each) for each in _split(listed[1])))


def _split(listed: str) -> Sequence[str]:
    """The values between `|`, none of which is escaped in the middle."""
    return re.findall(r"(?:\\.|[^|\\])+", listed)
