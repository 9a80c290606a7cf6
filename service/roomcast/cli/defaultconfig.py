"""`roomcast defaultconfig`: prints every option with its default, as a file would have it."""

from __future__ import annotations

import argparse
import json
from typing import Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.config import Config, effective, effective_toml

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast defaultconfig                                 as TOML
  diff <(roomcast defaultconfig) <(roomcast checkconfig --config roomcast.toml)

It reads no file and no environment. What to begin with is roomcast genconfig; what each option is
for, roomcast configdoc; what is in effect, roomcast checkconfig.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast defaultconfig`."""
    parser = add_command(
        commands, "defaultconfig", defaultconfig, "print all defaults as a configuration", _EXAMPLES
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of TOML")


def defaultconfig(arguments: argparse.Namespace) -> int:
    """Prints them."""
    if arguments.json:
        print(json.dumps(effective(Config()), ensure_ascii=False, indent=2))
    else:
        print(effective_toml(Config()), end="")
    return 0
