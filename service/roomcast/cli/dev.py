"""`roomcast dev`: runs the whole system on this machine, with an embedded AWS emulator."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
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
    url,
    whole,
)
from roomcast.cli.start import look_at_hooks, start_logs
from roomcast.cli.terminal import Failed
from roomcast.config import config_path, load

__all__ = ["add"]


# Enough for one machine: each instance is a process with its own port.
INSTANCES_MAX: Final = 32

_EXAMPLES: Final = """\
examples:
  roomcast dev
  roomcast dev --instances 4 --port 9000
  roomcast dev --aws-endpoint http://127.0.0.1:4566   an emulator that runs already

When all instances are ready, one line of JSON on stdout tells their addresses and process ids.
Ctrl-C ends everything it started.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast dev`."""
    parser = add_command(
        commands,
        "dev",
        dev,
        "run everything on this machine: embedded AWS, instances and a demo page",
        _EXAMPLES,
    )
    parser.add_argument(
        "--instances",
        type=whole(1, INSTANCES_MAX),
        default=2,
        metavar="N",
        help="servers (default: 2)",
    )
    parser.add_argument(
        "--host",
        type=text,
        default=LOOPBACK,
        help=f"address the servers listen on (default: {LOOPBACK}; any other lets the network in)",
    )
    parser.add_argument(
        "--port",
        type=whole(0, PORT_MAX),
        default=8000,
        help="of the first server; the others follow; 0 = any that are free (default: 8000)",
    )
    parser.add_argument(
        "--aws-endpoint",
        type=url,
        metavar="URL",
        help="use the emulator that runs there and start none",
    )
    parser.add_argument(
        "--emulator-port",
        type=whole(0, PORT_MAX),
        default=0,
        metavar="PORT",
        help="of the embedded AWS (default: 0 = any that is free)",
    )
    parser.add_argument(
        "--events",
        action="store_true",
        help="run the events Lambda too: a queue of the embedded AWS gets what `events` want",
    )
    parser.add_argument("--restart", action="store_true", help="start a server again when it dies")
    add_log_level(parser)


def dev(arguments: argparse.Namespace) -> int:
    """Runs the system until it is stopped. Raises ConfigError, UsageError and Failed."""
    last = arguments.port + arguments.instances - 1
    if arguments.port and last > PORT_MAX:
        raise UsageError(
            f"--port and --instances need ports up to {last}; {PORT_MAX} is the last one"
        )
    # Before any process starts: otherwise every instance would fail with a less clear message.
    config = load(arguments.config, os.environ, demo=True)
    look_at_hooks(config)
    if arguments.aws_endpoint is None and not all(
        importlib.util.find_spec(name) for name in ("moto", "flask")
    ):
        raise Failed(
            "the embedded AWS is not installed: pip install 'roomcast[dev]' (or use --aws-endpoint)"
        )
    start_logs(arguments, config)
    from roomcast.dev.supervisor import DevOptions, run_dev

    path = config_path(arguments.config, os.environ)
    options = DevOptions(
        instances=arguments.instances,
        host=arguments.host,
        port=arguments.port,
        aws_endpoint=arguments.aws_endpoint,
        emulator_port=arguments.emulator_port,
        config=None if path is None else str(path),
        restart=arguments.restart,
        log_level=arguments.log_level or "",
        topic_shards=config.aws.topic_shards,
        events=arguments.events,
    )
    return asyncio.run(run_dev(options))
