"""Makes a text fit to show: masks passwords, and escapes characters that terminals and editors
obey.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["json_printable", "printable", "without_passwords", "without_user"]

# The user part of an address (RFC 3986 §3.2.1), up to the last "@" before the path, because
# passwords may contain "@".
_USER: Final = re.compile(r"(?<=://)[^\s/?#\"'<>\\]+@")
_MASKED_USER: Final = "***@"
# The same for a text that should be one address but may be malformed: everything before its last
# "@", but for a scheme that is written as it should be.
_USER_OF_ONE: Final = re.compile(r"\A([a-z][a-z0-9+.-]*://)?.*@", re.DOTALL | re.IGNORECASE)


def without_passwords(text: str) -> str:
    """`text` with `user:password@` of each address in it masked."""
    return _USER.sub(_MASKED_USER, text) if "@" in text else text


def without_user(address: str) -> str:
    """`address` with `user:password@` masked, even if it is malformed.

    An unescaped password often makes it malformed, and so does a scheme that was left out.
    """
    return _USER_OF_ONE.sub(lambda found: f"{found[1] or ''}{_MASKED_USER}", address)


def printable(text: str, keep: str = "") -> str:
    """`text` with characters that are not printable escaped.

    These are control characters (C0 and C1), marks that change the direction of writing, line
    separators, unusual spaces, and lone surrogates. `keep`: characters that stay.
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
    """The same for a JSON document, whose meaning stays the same.

    Apart from line breaks, such characters occur only in its strings.
    """
    if document.isprintable():
        return document
    return "".join(
        each if each.isprintable() or each == "\n" else _json_escape(each) for each in document
    )


def _json_escape(character: str) -> str:
    """The escape of RFC 8259 §7. It uses UTF-16, so characters beyond the first 65,536 take two
    parts.
    """
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
