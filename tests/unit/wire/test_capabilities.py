"""service/roomcast/wire/capabilities.py: which channels a grant covers, and which grant counts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.wire.capabilities import Capability, Grant, granted

SUB = frozenset({Capability.SUBSCRIBE})
PUB = frozenset({Capability.PUBLISH})


@pytest.mark.parametrize(
    "pattern, channel, covered",
    [
        ("news", "news", True),
        ("news", "newsy", False),
        ("*", "", True),
        ("*", "anything:at.all", True),
        ("user:*", "user:", True),
        ("user:*", "user:42", True),
        ("user:*", "other:user:42", False),
        ("*:out", "a:out", True),
        ("*:out", "a:out.", False),
        ("a*c*e", "abcde", True),
        ("a*c*e", "ace", True),
        ("a*c*e", "aec", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("a**b", "ab", True),
        ("[a-z]?", "ab", False),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_patterns(pattern: str, channel: str, covered: bool) -> None:
    assert Grant((pattern,), SUB, is_pattern=True).covers(channel) is covered


def test_a_name_is_no_pattern() -> None:
    grant = Grant(("user:*",), SUB)
    assert grant.covers("user:*")
    assert not grant.covers("user:42")


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_a_star_stands_for_any_text(pattern: str, channel: str) -> None:
    expected = (
        re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), channel) is not None
    )
    assert Grant((pattern,), SUB, is_pattern=True).covers(channel) is expected


def test_no_pattern_is_slow() -> None:
    """As a regular expression, this one takes longer than anybody waits."""
    assert not Grant(("a*" * 100 + "b",), SUB, is_pattern=True).covers("a" * 255)


def test_the_first_that_covers_a_channel_counts() -> None:
    narrow, wide = Grant(("a",), PUB), Grant(("*",), SUB, is_pattern=True)
    assert granted((narrow, wide), "a") == PUB
    assert granted((narrow, wide), "b") == SUB
    assert granted((wide, narrow), "a") == SUB
    assert granted((narrow,), "b") == frozenset()
    assert granted((), "a") == frozenset()
    assert granted((Grant(("a",), frozenset()), wide), "a") == frozenset()
