"""What of a text may be shown: no passwords, and nothing that a terminal or an editor obeys."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["json_printable", "printable", "without_passwords", "without_user"]

# The user part of an address (RFC 3986 §3.2.1), up to the last "@" before the path: passwords may
# have one, too.
_USER: Final = re.compile(r"(?<=://)[^\s/?#\"'<>\\]+@")
_MASKED_USER: Final = "***@"
# The same of what is meant as one address and may be none: whatever stands before its last "@".
_USER_OF_ONE: Final = re.compile(r"(?<=://).*@", re.DOTALL)


def without_passwords(text: str) -> str:
    """`text` with `user:password@` of each address in it masked."""
    return _USER.sub(_MASKED_USER, text) if "@" in text else text


def without_user(address: str) -> str:
    """`address` with `user:password@` masked, also if it is malformed.

    A password that is not escaped is what often makes it so.
    """
    return _USER_OF_ONE.sub(_MASKED_USER, address)


def printable(text: str, keep: str = "") -> str:
    """`text` with what is not printable escaped: control characters of either kind, marks that turn
    the direction of writing, line separators, spaces that look like others, halves of surrogate
    pairs. `keep`: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or each in keep
        else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def json_printable(document: str) -> str:
    """The same for a JSON document, which means the same afterwards.

    But for line breaks, only texts in it can hold such characters.
    """
    if document.isprintable():
        return document
    return "".join(
        each if each.isprintable() or each == "\n" else _json_escape(each) for each in document
    )


def _json_escape(character: str) -> str:
    """RFC 8259 §7: by UTF-16, so in two parts beyond the first 65,536."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
