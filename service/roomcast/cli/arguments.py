"""Builds the argument parsers of all commands, and checks the values of their arguments."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import urlsplit

from roomcast.observe.redaction import without_user

__all__ = [
    "COUNT_MAX",
    "LOOPBACK",
    "PORT_MAX",
    "SERVER_URL",
    "Parser",
    "Subparsers",
    "UsageError",
    "add_address",
    "add_command",
    "add_log_level",
    "add_server",
    "json_object",
    "json_value",
    "number",
    "text",
    "url",
    "urls",
    "whole",
]

PORT_MAX: Final = 65_535
LOOPBACK: Final = "127.0.0.1"
# The default address of `roomcast dev` and `roomcast serve`.
SERVER_URL: Final = "http://127.0.0.1:8000"
COUNT_MAX: Final = 2**31 - 1
_DECIMAL: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


class UsageError(Exception):
    """The arguments do not fit together. One line."""


class Parser(argparse.ArgumentParser):
    """A parser that reports a usage error in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


class Subparsers(Protocol):
    """The target of `add`, as `add_subparsers` returns it."""

    def add_parser(self, name: str, /, **options: Any) -> argparse.ArgumentParser:
        """Adds a command and returns its parser."""


def add_command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    about: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Adds `roomcast NAME` and returns its parser.

    `run` returns the exit code. `about`: one line, without a capital and a full stop.
    """
    added = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    added.set_defaults(run=run)
    added.add_argument(
        "--config", metavar="FILE", help="TOML file (default: $ROOMCAST_CONFIG, else none)"
    )
    return added


def add_server(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of commands that call a running server: channel, address and output
    format.
    """
    parser.add_argument("channel", type=text, metavar="CHANNEL")
    add_address(parser)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Adds the address of a running server, and the output format."""
    parser.add_argument(
        "--url", type=url, default=SERVER_URL, help=f"of the server (default: {SERVER_URL})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, as the server tells it")


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """Adds `--log-level`, for `start_logs`."""
    # The levels of service/roomcast/observe/logs.py, whose import is too slow for a help text.
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        metavar="LEVEL",
        help="debug, info, warning or error (default: info)",
    )


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """The type of an integer from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        # int() alone would also accept "1_000", " 5 " and digits of other scripts.
        if not (
            text.isascii()
            and text.isdigit()
            and len(text) <= 12
            and minimum <= int(text) <= maximum
        ):
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {minimum} to {maximum}; found {text!r}"
            )
        return int(text)

    return parse


def number(minimum: float, maximum: float) -> Callable[[str], float]:
    """The type of a number from `minimum` to `maximum`, with a point or without."""

    def parse(text: str) -> float:
        if not (_DECIMAL.fullmatch(text) and minimum <= float(text) <= maximum):
            raise argparse.ArgumentTypeError(
                f"must be a number from {minimum:g} to {maximum:g}; found {text!r}"
            )
        return float(text)

    return parse


def text(found: str) -> str:
    """Any text that UTF-8 can encode."""
    try:
        found.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("must be valid Unicode") from None
    return found


def url(text: str) -> str:
    """An http or https address without a path."""
    try:
        parts = urlsplit(text)
        # As for aws.endpoint_url: no path, and no password that would appear in logs.
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        valid = (
            valid
            and text.rstrip("/") == f"{parts.scheme}://{parts.netloc}"
            and "@" not in parts.netloc
        )
        (parts.hostname or "").encode("idna")  # raises for what can be no host
    except ValueError:
        valid = False
    if not valid or not text.isprintable() or " " in text:
        found = without_user(text)
        raise argparse.ArgumentTypeError(
            f"must be an address such as http://127.0.0.1:5000; found {found!r}"
        )
    return text


def urls(text: str) -> tuple[str, ...]:
    """Such addresses, separated by commas."""
    return tuple(url(each) for each in text.split(",") if each)


def json_object(text: str) -> Any:
    """The object in a JSON text."""
    found = json_value(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return found


def json_value(found: str) -> Any:
    """The value in a JSON text."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text(found), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError("must be JSON") from None
