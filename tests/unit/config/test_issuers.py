"""service/roomcast/config/issuers.py: all addresses of an endpoint are known at the start."""

from __future__ import annotations

from typing import Any

import pytest

from roomcast.config import TokenConfig
from roomcast.config.issuers import ENDPOINTS_MAX, IssuersRefused, endpoint_of, endpoints

ADDRESS = "https://{{tenant}}.example.com/{{realm}}/jwks"


def of(address: str, **options: Any) -> list[str]:
    return list(endpoints(TokenConfig(jwks_public_endpoint=address, **options)))


def test_an_address_without_places_is_itself() -> None:
    assert of("https://id.example.com/jwks", issuer_regex="(?P<x>.*)") == [
        "https://id.example.com/jwks"
    ]
    assert of("", issuer_regex="(?P<x>.*)") == []


def test_each_place_has_what_its_group_lists() -> None:
    assert of(
        ADDRESS,
        issuer_regex=r"^https://(?P<tenant>one|eu\.two)\.example$",
        audience_regex="(?<realm>chat)",
    ) == ["https://one.example.com/chat/jwks", "https://eu.two.example.com/chat/jwks"]
    assert of("https://a.example/{{t}}/{{t}}", issuer_regex="(?P<t>x)") == ["https://a.example/x/x"]
    assert endpoint_of(ADDRESS, {"tenant": "a", "realm": "b"}) == "https://a.example.com/b/jwks"


@pytest.mark.parametrize(
    "group",
    [
        ".+",
        "[a-z]+",
        r"\d",
        r"\w+",
        "a|b*",
        "a|",
        "|a",
        "",
        "a.b",
        "(a|b)",
        "(?:a|b)",
        "a|[bc]",
        "a{2}",
        "^a$",
        "a",  # its bracket is missing
    ],
)
def test_a_group_that_lists_nothing_is_refused(group: str) -> None:
    closed = "" if group == "a" else ")"
    with pytest.raises(IssuersRefused, match="lists its values"):
        of("https://{{t}}.example/", issuer_regex=f"https://(?P<t>{group}{closed}")


def test_a_place_needs_one_group() -> None:
    with pytest.raises(IssuersRefused, match="needs one group called t"):
        of("https://{{t}}.example/")
    with pytest.raises(IssuersRefused, match="needs one group called t"):
        of("https://{{t}}.example/", issuer_regex="(?P<t>a)", audience_regex="(?P<t>b)")


@pytest.mark.parametrize("value", ["a@evil.example", "a/", "a#", "a?x", "user:password@a"])
def test_what_is_no_address_is_refused(value: str) -> None:
    escaped = "".join(f"\\{each}" if each in "?." else each for each in value)
    with pytest.raises(IssuersRefused, match="must be an https:// address"):
        of("https://{{t}}", issuer_regex=f"(?P<t>x|{escaped} )")


def test_there_are_only_so_many() -> None:
    many = "|".join(f"t{number}" for number in range(ENDPOINTS_MAX))
    assert len(of("https://{{t}}.example/", issuer_regex=f"(?P<t>{many})")) == ENDPOINTS_MAX
    with pytest.raises(IssuersRefused, match="more than 16"):
        of("https://{{t}}.example/", issuer_regex=f"(?P<t>{many}|another)")
