"""`roomcast checktoken`: tells whether a token is valid, and what it allows."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from roomcast.cli.arguments import Subparsers, add_command, text
from roomcast.cli.start import warn_on_stderr
from roomcast.cli.terminal import Failed, span
from roomcast.config import Config, ConfigError, load
from roomcast.observe.redaction import json_printable, printable

if TYPE_CHECKING:
    from roomcast.auth.claims import ConnectionClaims, SubscriptionClaims

__all__ = ["add"]

# In place of a token. No token is longer than what is read of it.
_STDIN: Final = "-"
_STDIN_CHARS_MAX: Final = 64 * 1024

_EXAMPLES: Final = """\
examples:
  roomcast checktoken eyJhbGciOi…
  roomcast token --user ann | roomcast checktoken -    no list of processes has it then
  roomcast checktoken --config roomcast.toml - < token.txt

Verified with the keys of the configuration, previous ones and client.token.jwks_public_endpoint
included; a token for a channel with those of client.subscription_token, if it is enabled. Without a
configuration, with the key of `roomcast dev`.
Exit code 1 and one line on stderr when no server of this configuration would take it now.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast checktoken`."""
    parser = add_command(
        commands, "checktoken", checktoken, "is a token valid, and what does it allow?", _EXAMPLES
    )
    parser.add_argument(
        "token", type=text, metavar="TOKEN", help="the token; - = from standard input"
    )
    parser.add_argument("--json", action="store_true", help="print an object")


def checktoken(arguments: argparse.Namespace) -> int:
    """Prints what the token allows. Raises ConfigError and Failed."""
    config = load(arguments.config, os.environ, demo=True)
    warn_on_stderr()
    given = arguments.token if arguments.token != _STDIN else sys.stdin.read(_STDIN_CHARS_MAX)
    now_s = time.time()
    from roomcast.auth.summary import summary

    told = summary(asyncio.run(_claims(config, given.strip(), now_s)))
    if arguments.json:
        print(json_printable(json.dumps(told, ensure_ascii=False, indent=2)))
    else:
        print(_lines(told, now_s))
    return 0


async def _claims(
    config: Config, token: str, now_s: float
) -> ConnectionClaims | SubscriptionClaims:
    """Raises ConfigError without keys, and Failed for a token that no server would take."""
    from roomcast.auth.claims import TokenError
    from roomcast.auth.jwks_sets import jwks_sets
    from roomcast.auth.summary import names_a_channel
    from roomcast.auth.verifier import verifier_of
    from roomcast.concurrency import beside
    from roomcast.system import SystemClock, random_fraction

    async with AsyncExitStack() as stack:
        keys = jwks_sets(config.client, SystemClock(), random_fraction)
        if keys is not None:
            await stack.enter_async_context(beside(keys.run()))
        verifier = verifier_of(config.client, insecure=True, jwks=keys)
        if not verifier.enabled:
            raise ConfigError("client.token has no key: no server would take any token")
        try:
            if names_a_channel(token):
                return await verifier.subscription(token, now_s)
            return await verifier.connection(token, now_s)
        except TokenError as error:
            raise Failed(f"no server would take the token: {error}") from error


def _lines(told: Mapping[str, Any], now_s: float) -> str:
    """The same for people, a line each. What it does not say is left out."""
    rows = [
        ("valid", f"a {told['kind']} token"),
        ("user", told["user"] or "none: anonymous"),
        ("expires", _end(told["expires_at"], now_s)),
        ("channel", told.get("channel", "")),
        ("only for client", told.get("client", "")),
        ("subscribed to", ", ".join(told.get("subscribed_to", ()))),
        ("may", ", ".join(told.get("allow", ()))),
        *(("may", _grant(grant)) for grant in told.get("caps", ())),
        ("info", "" if told["info"] is None else json.dumps(told["info"], ensure_ascii=False)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {printable(value)}" for name, value in rows if value)


def _grant(grant: Mapping[str, Any]) -> str:
    return f"{', '.join(grant['allow']) or 'nothing'} in {', '.join(grant['channels']) or 'none'}"


def _end(expires_at: int | None, now_s: float) -> str:
    if expires_at is None:
        return "never"
    try:
        at = datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        # Beyond what a calendar has.
        return f"{expires_at} s after 1970"
    return f"{at}, in {span(round((expires_at - now_s) * 1000))}"
