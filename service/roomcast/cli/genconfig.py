"""`roomcast genconfig`: writes a configuration to begin with, with secrets of its own."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.cli.terminal import Failed

__all__ = ["add"]

# Of the token key and the API key: twice what a guess would have to find.
_SECRET_BYTES: Final = 32

_EXAMPLES: Final = """\
examples:
  roomcast genconfig                            print it
  roomcast genconfig --output roomcast.toml     write a file that only you can read
  roomcast checkconfig --config roomcast.toml   then: is it right, and what is in effect?

An existing file stays as it is. All options, with their defaults: roomcast configdoc.
"""

_TEXT: Final = """\
# Every option has its reason in docs/configuration.md, or in `roomcast configdoc`. Each can come
# from the environment as well, which goes first: ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY, …

[client]
# Pages that may connect. Without any, no browser does.
allowed_origins = ["http://localhost:3000"]

[client.token]
# Your back end signs tokens for its users with it (HS256). `roomcast token --user ann` makes one
# for trying things out.
hmac_secret_key = "{token_key}"
# While the key is being changed, the other one, and when it ends (docs/operations.md, "Rotate a
# key"): no token is refused meanwhile.
# hmac_previous_secret_key = ""
# hmac_previous_secret_key_valid_until = 0

[http_api]
# Your back end sends it as X-API-Key.
key = "{api_key}"

[server]
# Health checks, metrics and the server API get a port of their own, away from clients.
# internal_port = 9000

# Channels whose names have no colon, such as "news".
[channel.without_namespace]
# The last 100 publications of a day; a client that was away gets what it missed.
history_size = 100
history_ttl = "24h"
force_recovery = true
allow_subscribe_for_client = true

# Channels such as "chat:lobby".
[[channel.namespaces]]
name = "chat"
history_size = 1000
history_ttl = "7d"
force_recovery = true
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_presence_for_subscriber = true
allow_history_for_subscriber = true

[aws]
# The topic that connects the instances: output TopicArn of deploy/data.yaml, or what
# `roomcast provision` prints.
# topic_arn = "arn:aws:sns:eu-central-1:123456789012:roomcast"
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast genconfig`."""
    parser = add_command(
        commands, "genconfig", genconfig, "write a configuration to begin with", _EXAMPLES
    )
    parser.add_argument(
        "--output", metavar="FILE", help="a file that is not there yet (default: standard output)"
    )


def genconfig(arguments: argparse.Namespace) -> int:
    """Writes it. Raises Failed, and OSError."""
    content = _TEXT.format(
        token_key=secrets.token_hex(_SECRET_BYTES), api_key=secrets.token_hex(_SECRET_BYTES)
    )
    if arguments.output is None:
        sys.stdout.write(content)
        return 0
    path = Path(arguments.output)
    try:
        # Nobody else may read it, not even for a moment.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failed(f"{path} is there already: choose another --output, or remove it") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    print(f"{path} has secrets: keep it out of version control.", file=sys.stderr)
    return 0
