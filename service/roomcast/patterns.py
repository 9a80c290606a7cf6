"""Regular expressions that take no time worth mentioning, whatever they are held against.

They are RE2's, as Centrifugo's are: its automata look at each character once. Python's own would
try every way to match, which one name can make take for ever (docs/decisions/0089).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

__all__ = ["STEPS_MAX", "Pattern", "PatternRefused", "pattern"]

# Instructions of an expression's program. In the worst case each of them is tried at each
# character: the 255 of a channel's name then take less than 5 ms. Usual expressions have below a
# hundred, and take some microseconds.
STEPS_MAX: Final = 1000
# Bytes for the program and its automaton, which forgets what it has seen when they are full.
_BYTES_MAX: Final = 64 * 1024
# Expressions that are kept: those of every namespace, and of tokens.
_KEPT_MAX: Final = 1024
# Names of channels are ASCII. With one byte a character, `.` is one instruction and not nine.
_CODEC: Final = "latin-1"


class PatternRefused(ValueError):
    """A text is no regular expression of RE2, or one that would take too long."""


class _Compiled(Protocol):
    programsize: int

    def search(self, text: bytes) -> Any: ...

    def fullmatch(self, text: bytes) -> Any: ...


class Pattern:
    """One expression."""

    __slots__ = ("_compiled",)

    def __init__(self, compiled: _Compiled) -> None:
        self._compiled = compiled

    def is_in(self, text: str) -> bool:
        """Whether some part of `text` matches. The caller bounds its length."""
        try:
            return self._compiled.search(text.encode(_CODEC)) is not None
        except UnicodeEncodeError:
            return False

    def groups(self, text: str) -> Mapping[str, str] | None:
        """What the named groups found, as far as they did, if all of `text` matches.

        None: it does not. The caller bounds the length of `text`.
        """
        try:
            found = self._compiled.fullmatch(text.encode(_CODEC))
        except UnicodeEncodeError:
            return None
        if found is None:
            return None
        named: Mapping[bytes, bytes | None] = found.groupdict()
        return {
            name.decode(_CODEC): part.decode(_CODEC)
            for name, part in named.items()
            if part is not None
        }


@lru_cache(_KEPT_MAX)
def pattern(text: str) -> Pattern:
    """The expression `text`. Raises PatternRefused."""
    # Few configurations have any, and the Lambdas' zips are without this library.
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = _BYTES_MAX
    options.log_errors = False
    try:
        compiled: _Compiled = re2.compile(text.encode(_CODEC), options)
    except UnicodeEncodeError as error:
        raise PatternRefused("characters beyond Latin-1") from error
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        told = reason.decode(_CODEC) if isinstance(reason, bytes) else str(reason)
        raise PatternRefused(told or "not understood") from error
    if compiled.programsize > STEPS_MAX:
        raise PatternRefused("too large: what it repeats is written out")
    return Pattern(compiled)
