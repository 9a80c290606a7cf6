"""What commands do before they start a server: hooks, warnings, logs."""

from __future__ import annotations

import argparse
import sys

from roomcast.cli.terminal import has_colours
from roomcast.config import Config

__all__ = ["concerns", "look_at_hooks", "start_logs"]


def look_at_hooks(config: Config) -> None:
    """Raises ConfigError when one of them is not there.

    Importing them runs what their modules do when imported.
    """
    from roomcast.hooks.calls import load_hooks

    load_hooks(config.hooks)


def concerns(config: Config) -> list[tuple[str, str]]:
    """What is allowed, and yet hardly ever meant: (event name, what it means)."""
    client = config.client
    if client.insecure:
        return [
            ("insecure_mode", "client.insecure is on: no token is needed and everything is allowed")
        ]
    if (
        not client.token.has_key
        and not client.allow_anonymous_connect_without_token
        and not config.hooks.connect
    ):
        return [
            (
                "nobody_can_connect",
                "no token key is configured and anonymous clients are not allowed: nobody can connect",
            )
        ]
    return []


def start_logs(arguments: argparse.Namespace) -> None:
    """Log to stderr from now on, as `--log-level` says: for people on a terminal, else JSON."""
    from roomcast.observe import logs as telemetry

    telemetry.configure(
        arguments.log_level, console=sys.stderr.isatty(), colors=has_colours(sys.stderr)
    )
