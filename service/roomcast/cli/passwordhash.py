"""`roomcast passwordhash`: makes the hash of the operations page's password."""

from __future__ import annotations

import argparse
import getpass
import json
import secrets
import sys
from typing import Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.cli.terminal import Failed

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast passwordhash                         asks for the password, and shows nothing of it
  roomcast passwordhash < password.txt          its first line
  roomcast passwordhash --generate              makes a password too, and prints it to stderr

The hash is for admin.password_hash, or ROOMCAST_ADMIN_PASSWORD_HASH: the same on every node. Keep
it secret: sessions are signed with a key that is made from it.
"""

# Random bytes of a generated password: nobody guesses it.
_GENERATED_BYTES: Final = 18


def add(commands: Subparsers) -> None:
    """Adds `roomcast passwordhash`."""
    parser = add_command(
        commands,
        "passwordhash",
        passwordhash,
        "make the hash of a password for the operations page at /admin",
        _EXAMPLES,
    )
    parser.add_argument(
        "--generate", action="store_true", help="make a random password, and print it to stderr"
    )
    parser.add_argument("--json", action="store_true", help="print an object: password_hash")


def passwordhash(arguments: argparse.Namespace) -> int:
    """Prints the hash. Raises Failed for a password that is too short or too long."""
    from roomcast.admin.passwords import (
        PASSWORD_BYTES_MAX,
        PASSWORD_CHARS_MIN,
        SALT_BYTES,
        hash_text,
    )

    password = secrets.token_urlsafe(_GENERATED_BYTES) if arguments.generate else _given()
    try:
        encoded = password.encode()
    except UnicodeEncodeError:
        raise Failed("the password is not UTF-8 text") from None
    if len(password) < PASSWORD_CHARS_MIN:
        raise Failed(f"a password has {PASSWORD_CHARS_MIN} characters or more")
    if len(encoded) > PASSWORD_BYTES_MAX:
        raise Failed(f"a password has {PASSWORD_BYTES_MAX} bytes at most")
    made = hash_text(encoded, secrets.token_bytes(SALT_BYTES))
    if arguments.generate:
        print(f"password: {password}", file=sys.stderr)
    print(json.dumps({"password_hash": made}) if arguments.json else made)
    return 0


def _given() -> str:
    """The password from the terminal, asked for twice; or the first line of standard input.

    Raises Failed.
    """
    if not sys.stdin.isatty():
        return sys.stdin.readline(64 * 1024).rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise Failed("the two passwords differ")
    return password
