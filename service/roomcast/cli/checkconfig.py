"""`roomcast checkconfig`: checks the configuration, and prints the effective one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.cli.start import concerns, log_levels, look_at_certificates, look_at_hooks
from roomcast.config import effective, effective_toml, load

__all__ = ["add"]


_EXAMPLES: Final = """\
examples:
  roomcast checkconfig --config roomcast.toml
  roomcast checkconfig --json | jq .client

Prints the configuration in effect, file and environment together; secrets are masked.
Exit code 2 and one line on stderr when something in it is wrong.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast checkconfig`."""
    parser = add_command(
        commands,
        "checkconfig",
        checkconfig,
        "validate the configuration and print what is in effect",
        _EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of TOML")


def checkconfig(arguments: argparse.Namespace) -> int:
    """Prints the effective configuration. Raises ConfigError."""
    config = load(arguments.config, os.environ)
    from roomcast.auth.verifier import verifier_of

    # Checks the keys. A short key is reported below, not logged.
    verifier_of(config.client, insecure=True)
    look_at_hooks(config)
    look_at_certificates(config)
    log_levels(config)
    if arguments.json:
        print(json.dumps(effective(config), ensure_ascii=False, indent=2))
    else:
        print(effective_toml(config), end="")
    for _event, reason in concerns(config):
        print(f"roomcast: warning: {reason}", file=sys.stderr)
    return 0
