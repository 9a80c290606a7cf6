"""Turns the secret, a JSON object of environment variables on standard input,
into a file for systemd's EnvironmentFile.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Final

__all__ = ["WrongSecret", "environment_file"]

# Nothing else may come from there: PATH or LD_PRELOAD in a secret would run a
# program of its author's.
_NAME: Final = re.compile(r"ROOMCAST_[A-Z0-9_]+")
# What systemd takes as special between double quotes.
_SPECIAL: Final = re.compile(r'(["\\`$])')


class WrongSecret(ValueError):
    """One line that says what is wrong, and never a value."""


def environment_file(text: str) -> str:
    """A line for each variable. Raises WrongSecret."""
    try:
        variables = json.loads(text)
    except (ValueError, RecursionError):
        raise WrongSecret("the secret is not JSON") from None
    if not isinstance(variables, dict) or not variables:
        raise WrongSecret("the secret is not a JSON object of environment variables")
    return "".join(_line(name, value) for name, value in variables.items())


def _line(name: str, value: object) -> str:
    if not _NAME.fullmatch(name):
        raise WrongSecret(f"the secret names {name[:60]!r}, which is no variable of roomcast")
    if not isinstance(value, str) or not value.isprintable():
        raise WrongSecret(f"{name} in the secret is not text of printable characters")
    escaped = _SPECIAL.sub(r"\\\1", value)
    return f'{name}="{escaped}"\n'


def main() -> int:
    """0 done, 1 the secret is wrong."""
    try:
        sys.stdout.write(environment_file(sys.stdin.read()))
    except WrongSecret as error:
        sys.stderr.write(f"roomcast: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
