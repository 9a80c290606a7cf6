"""What is shown of a text: no password, nothing that a terminal obeys,
and otherwise what it was.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.observe.redaction import json_printable, printable, without_passwords

# Of both kinds of control characters, of direction, of lines, of width, of nothing,
# of another plane, and no text.
UNSEEN = [
    "\x00",
    "\x1b",
    "\x7f",
    "\x85",
    "\x9b",
    "\u200e",
    "\u202e",
    "\u2066",
    "\u2028",
    "\u00a0",
    "\ufeff",
]
UNSEEN += ["\U000e0041", "\ud800"]


@pytest.mark.parametrize("character", UNSEEN, ids=ascii)
def test_what_is_not_printable_is_escaped(character: str) -> None:
    assert printable(f"ü{character}b").isprintable()
    assert printable(f"ü{character}b").startswith("ü\\")
    document = json_printable(json.dumps(f"ü{character}b", ensure_ascii=False))
    assert document.isprintable()
    assert json.loads(document) == f"ü{character}b"


def test_what_is_kept_stays() -> None:
    assert printable("a\nb\x9b\n", keep="\n") == "a\nb\\x9b\n"
    assert printable("a\nb") == "a\\nb"


@given(st.text() | st.text(UNSEEN))
def test_a_text_becomes_printable_and_one_that_is_stays(text: str) -> None:
    assert printable(text).isprintable()
    assert text.isprintable() is (printable(text) == text)


@given(
    st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    st.booleans(),
)
def test_a_document_means_the_same(value: object, is_wide: bool) -> None:
    document = json_printable(json.dumps(value, ensure_ascii=False, indent=2 if is_wide else None))
    assert json.loads(document) == value
    assert document.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "text, shown",
    [
        ("http://ann:hush@127.0.0.1:5000", "http://***@127.0.0.1:5000"),
        ("found 'https://hush@a.example/x?y'", "found 'https://***@a.example/x?y'"),
        (
            "http://ann:hu@sh@a.example and http://b:hush@c/",
            "http://***@a.example and http://***@c/",
        ),
        ("http://a.example/ann@b.example", "http://a.example/ann@b.example"),
        ("http://a.example?user=ann@b.example", "http://a.example?user=ann@b.example"),
        ("ann@example.com", "ann@example.com"),
        ("http://a.example", "http://a.example"),
        ('{"url":"http://a","mail":"b@c"}', '{"url":"http://a","mail":"b@c"}'),
    ],
)
def test_of_an_address_the_user_and_password_are_not_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
