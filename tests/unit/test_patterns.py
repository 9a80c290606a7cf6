"""service/roomcast/patterns.py: what matches, what is refused, and how long it takes."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.patterns import PatternRefused, pattern

# What takes Python's own engine longer than anybody waits.
SLOW = r"^(a+)+$"
HOSTILE = "a" * 254 + "!"


def test_a_part_of_a_text_matches_unless_the_expression_says_otherwise() -> None:
    assert pattern("[0-9]").is_in("room7")
    assert not pattern("^[0-9]+$").is_in("room7")
    assert pattern("^[0-9]+$").is_in("7")
    assert not pattern("^.$").is_in("\u20ac"), "beyond Latin-1 nothing matches"


def test_groups_are_of_a_whole_text() -> None:
    tenants = pattern("https://(?P<tenant>one|two)[.]example(?P<port>:[0-9]+)?")
    assert tenants.groups("https://two.example") == {"tenant": "two"}
    assert tenants.groups("https://two.example:80") == {"tenant": "two", "port": ":80"}
    assert tenants.groups("https://two.example.evil") is None
    assert tenants.groups("x https://two.example") is None
    assert tenants.groups("https://\u20ac.example") is None


@pytest.mark.parametrize(
    "text, why",
    [
        ("(", "missing )"),
        (r"(?=a)", "invalid perl operator"),
        (r"(a)\1", "invalid escape"),
        ("a{1001}", "invalid repetition size"),
        (r"((a?){100}){100}", "invalid repetition size"),
        (r"(x?){600}y", "too large"),
        (r"[a-z]{1,900}[a-z]{1,900}", "too large"),
        ("[\u20ac]", "beyond Latin-1"),
        ("\ud800", "beyond Latin-1"),
    ],
)
def test_what_is_no_expression_or_would_take_long_is_refused(text: str, why: str) -> None:
    with pytest.raises(PatternRefused, match=re.escape(why)):
        pattern(text)


@pytest.mark.parametrize(
    "text",
    [
        SLOW,
        r"(a|aa)+$",
        r"(x?){200}y",
        r"((a?){14}){14}b",
        r"(.*a.{14}b)",
        r"([a-z]{0,20}[0-9]?){15}!",
    ],
)
def test_no_name_takes_long(text: str) -> None:
    """Of the process's own time, since others may have the cores."""
    names = [HOSTILE, "ab" * 127, "xaxbxc" * 42, "a1" * 127, "x" * 255]
    began = time.process_time()
    for name in names:
        pattern(text).is_in(name)
    # A turn of the event loop has 10 ms. Five names, and room for slow machines.
    assert time.process_time() - began < 0.1


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=255))
def test_names_match_as_they_do_for_python(name: str) -> None:
    expression = r"^[a-z]{2,5}(-[0-9]+)?$"
    assert pattern(expression).is_in(name) == bool(re.search(expression, name))
