"""Builds the messages about a wrong configuration: one line with the key and its place."""

from __future__ import annotations

import difflib
import re
from typing import Final

from roomcast.observe.redaction import without_passwords, without_user

__all__ = [
    "FOUND_CHARS_MAX",
    "VARIABLES_ALIKE",
    "ConfigError",
    "Origin",
    "one_line",
    "quoted",
    "shown",
    "suggestion",
    "untold",
]

# Characters of a wrong value that a message quotes: enough to recognise it on one line.
FOUND_CHARS_MAX: Final = 60
# The similarity (difflib's ratio) from which on one name may be meant by another. All variables
# begin alike, so their differing parts must be similar as well.
_NAMES_ALIKE: Final = 0.6
VARIABLES_ALIKE: Final = 0.77

_HEADER_LINE: Final = re.compile(r"\s*\[(\[?)([^\[\]]+)\]\]?\s*(?:#.*)?")
_KEY_LINE: Final = re.compile(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=")


class ConfigError(ValueError):
    """The configuration is wrong. One line: the key, its place, and the expected values."""


class Origin:
    """The places of keys, for messages. `path`: the file, "" = none. `text`: its content."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines = _key_lines(text)
        self._variables: dict[str, str] = {}

    def from_environment(self, key: str, variable: str) -> None:
        """Records that `variable` set `key`: messages then name it instead of the file."""
        self._variables[key] = variable

    def error(self, key: str, message: str) -> ConfigError:
        """The error for `key`. `message` follows the name of the key."""
        if key in self._variables:
            return ConfigError(f"environment: {self._variables[key]} {message}")
        if not self._path:
            return ConfigError(f"{key} {message}")
        enclosing = key
        while enclosing and enclosing not in self._lines:
            enclosing = enclosing.rpartition(".")[0]
        line = f", line {self._lines[enclosing]}" if enclosing else ""
        return ConfigError(f"{self._path}{line}: {key} {message}")


def quoted(found: object) -> str:
    """A wrong value for a message: short, on one line, without passwords."""
    if isinstance(found, dict):
        return "a table"
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, list) and any(isinstance(entry, dict) for entry in found):
        return "a list of tables"
    # Masked before it is cut, because the cut could remove the "@" that marks a password.
    text = _masked(found)
    try:
        shown = ascii(text) if not str(text).isprintable() else without_passwords(repr(text))
    except ValueError:  # Python writes no number of thousands of digits
        return "a number that is too long to show"
    return shown if len(shown) <= FOUND_CHARS_MAX else shown[:FOUND_CHARS_MAX] + "…"


def untold(found: object) -> str:
    """What was found where a table belongs, for a message. Texts are not quoted: who writes
    `token = "…"` means a key in that table.
    """
    if isinstance(found, str):
        return "text"
    return "a list" if isinstance(found, list) else quoted(found)


def _masked(found: object) -> object:
    if isinstance(found, list):
        return [_masked(entry) for entry in found]
    return without_user(found) if isinstance(found, str) else found


def shown(name: str) -> str:
    """A key unchanged, unless it could garble the message."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) else quoted(name)


def one_line(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(text.split())


def suggestion(name: str, known: list[str], *, alike: float = _NAMES_ALIKE) -> str:
    """The end of a message about an unknown name: " (did you mean …?)", or nothing."""
    # A right name in the wrong table is more likely than a similar name.
    last = name.rpartition(".")[2]
    close = [key for key in known if key.rpartition(".")[2] == last] or difflib.get_close_matches(
        name, known, n=1, cutoff=alike
    )
    return f" (did you mean {close[0]}?)" if close else ""


def _key_lines(text: str) -> dict[str, int]:
    """The line number of each table and key.

    The parser does not report lines. This search is right for files as people write them. If it
    finds no line, a message names the table's line or none.
    """
    lines: dict[str, int] = {}
    table = ""
    arrays: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER_LINE.fullmatch(line):
            table = _dotted(header[2])
            if header[1]:
                arrays[table] = arrays.get(table, -1) + 1
                lines.setdefault(table, number)
                table = f"{table}[{arrays[table]}]"
            lines.setdefault(table, number)
        elif assignment := _KEY_LINE.match(line):
            lines.setdefault(f"{table}.{_dotted(assignment[1])}".removeprefix("."), number)
    return lines


def _dotted(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))
