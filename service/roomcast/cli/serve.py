"""`roomcast serve`: runs one instance."""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Final

from roomcast.cli.arguments import (
    LOOPBACK,
    PORT_MAX,
    Subparsers,
    UsageError,
    add_command,
    add_log_level,
    text,
    urls,
    whole,
)
from roomcast.cli.start import concerns, start_logs
from roomcast.config import Config, ConfigError, load

__all__ = ["add"]

_EVERY_ADDRESS: Final = "0.0.0.0"  # noqa: S104  # a server behind a load balancer; insecure ones bind loopback

_EXAMPLES: Final = """\
examples:
  roomcast serve --config /etc/roomcast.toml
  ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY=… roomcast serve --port 8001

Credentials, region and AWS_ENDPOINT_URL are taken as every AWS tool takes them.
SIGTERM stops it in order: connections are asked to go elsewhere, then its queue is deleted.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast serve`."""
    parser = add_command(
        commands,
        "serve",
        serve,
        "run one instance against the AWS that the environment names",
        _EXAMPLES,
    )
    parser.add_argument(
        "--host", type=text, help="address to listen on (default: all; loopback if insecure)"
    )
    parser.add_argument(
        "--port",
        type=whole(0, PORT_MAX),
        default=8000,
        help="0 = any that is free (default: 8000)",
    )
    add_log_level(parser)
    development = parser.add_argument_group("development only, used by `roomcast dev`")
    development.add_argument(
        "--demo",
        action="store_true",
        help="serve the demo page; without a configuration file, be insecure",
    )
    development.add_argument(
        "--peers",
        type=urls,
        metavar="URL,…",
        help="all instances, for the demo page (needs --demo)",
    )
    development.add_argument(
        "--exit-on-stdin-close",
        action="store_true",
        help="stop, in order, when standard input ends",
    )


def serve(arguments: argparse.Namespace) -> int:
    """Serves until it is asked to stop. Raises ConfigError, UsageError and PortError."""
    if arguments.peers is not None and not arguments.demo:
        raise UsageError("--peers needs --demo")
    config = load(arguments.config, os.environ, demo=arguments.demo)
    start_logs(arguments)
    _warn(config)
    import structlog

    from roomcast.ports import PortError
    from roomcast.serve import serve as app

    private = config.client.insecure or arguments.demo
    serving = app.serve(
        config,
        host=arguments.host or (LOOPBACK if private else _EVERY_ADDRESS),
        port=arguments.port,
        demo_urls=(arguments.peers or ()) if arguments.demo else None,
        exit_on_stdin_close=arguments.exit_on_stdin_close,
    )
    try:
        return asyncio.run(serving)
    except (ConfigError, PortError, OSError):
        raise  # one line says enough
    except Exception:
        structlog.get_logger().exception("serve_failed")
        raise


def _warn(config: Config) -> None:
    import structlog

    for event, reason in concerns(config):
        structlog.get_logger().warning(event, reason=reason)
