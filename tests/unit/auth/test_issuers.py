"""service/roomcast/auth/issuers.py: whose tokens are taken, and by which keys."""

from __future__ import annotations

from typing import Any

import pytest

from roomcast.auth.claims import TokenInvalid
from roomcast.auth.issuers import AUDIENCES_MAX, CLAIM_CHARS_MAX, Issuers
from roomcast.config import TokenConfig

ISSUERS = r"https://(?P<tenant>one|two)\.example"


def issuers(**options: Any) -> Issuers:
    return Issuers(TokenConfig(**options))


def test_without_expressions_everybody_is_taken() -> None:
    assert issuers().check({"iss": 5, "aud": None}) == {}
    with pytest.raises(TokenInvalid, match="not an object"):
        issuers().check([])


def test_an_issuer_matches_as_a_whole() -> None:
    ours = issuers(issuer_regex=ISSUERS)
    assert ours.check({"iss": "https://two.example"}) == {"tenant": "two"}
    for other in (
        "https://two.example.evil",
        "https://evil/https://two.example",
        "https://three.example",
        "https://two.example\n",
        "a" * (CLAIM_CHARS_MAX + 1),
        "",
        None,
        5,
        ["https://two.example"],
    ):
        with pytest.raises(TokenInvalid, match="another issuer"):
            ours.check({"iss": other})
    with pytest.raises(TokenInvalid, match="another issuer"):
        ours.check({})


def test_one_of_the_audiences_matches() -> None:
    ours = issuers(audience_regex="chat-(?P<stage>test|live)")
    assert ours.check({"aud": "chat-live"}) == {"stage": "live"}
    assert ours.check({"aud": [5, "other", "chat-test", "chat-live"]}) == {"stage": "test"}
    too_late = ["x"] * AUDIENCES_MAX + ["chat-live"]
    for other in ("chat-", ["chat"], [], None, {"chat-live": 1}, too_late):
        with pytest.raises(TokenInvalid, match="another audience"):
            ours.check({"aud": other})


def test_each_issuer_has_its_own_keys() -> None:
    fixed = issuers(jwks_public_endpoint="https://id.example/jwks", issuer_regex=ISSUERS)
    assert fixed.endpoint({"iss": "anybody"}) == "https://id.example/jwks"
    own = issuers(jwks_public_endpoint="https://id.example/{{tenant}}", issuer_regex=ISSUERS)
    assert own.endpoint({"iss": "https://one.example"}) == "https://id.example/one"
    with pytest.raises(TokenInvalid, match="another issuer"):
        own.endpoint({"iss": "https://evil.example"})
    optional = issuers(
        jwks_public_endpoint="https://id.example/{{tenant}}", issuer_regex="x(?P<tenant>one)?"
    )
    with pytest.raises(TokenInvalid, match="without keys"):
        optional.endpoint({"iss": "x"})
