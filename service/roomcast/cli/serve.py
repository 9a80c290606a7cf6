"""`roomcast serve`: runs one instance."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Coroutine
from typing import Any, Final

from roomcast.cli.arguments import (
    COUNT_MAX,
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
from roomcast.cli.leaving import run_to_its_end
from roomcast.cli.start import concerns, start_logs
from roomcast.config import PROCESSES_MAX, Config, ConfigError, load

__all__ = ["add"]

# Where a container of ECS finds what its task is.
_TASK_ENDPOINT: Final = "ECS_CONTAINER_METADATA_URI_V4"
_EVERY_ADDRESS: Final = "0.0.0.0"  # noqa: S104  # a server behind a load balancer; insecure ones bind loopback

_EXAMPLES: Final = """\
examples:
  roomcast serve --config /etc/roomcast.toml
  roomcast serve --processes auto                  a process for each core; they share the port
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
    parser.add_argument(
        "--processes",
        type=_processes,
        metavar="N",
        help="processes that share the port, each a node with a port of its own after --port; "
        "auto = one for each core (default: node.processes, which is 1)",
    )
    # Of one process among several.
    parser.add_argument("--worker", type=whole(0, COUNT_MAX), help=argparse.SUPPRESS)
    for own in ("--own-port", "--own-internal-port"):
        parser.add_argument(own, type=whole(0, PORT_MAX), default=0, help=argparse.SUPPRESS)
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
    if arguments.port and arguments.port == config.server.internal_port:
        raise UsageError(f"--port {arguments.port} is server.internal_port: they must differ")
    start_logs(arguments, config)
    if arguments.worker is None:
        _warn(config)
    import structlog

    from roomcast.ports import PortError
    from roomcast.serve.watchdog import under_watchdog

    private = config.client.insecure or arguments.demo
    host = arguments.host or (LOOPBACK if private else _EVERY_ADDRESS)
    processes = _number_of_processes(arguments, config)
    work = (
        _one(arguments, config, host)
        if processes == 1
        else _several(arguments, config, host, processes)
    )
    try:
        return run_to_its_end(under_watchdog(work, os.environ))
    except (ConfigError, PortError, OSError):
        raise  # one line says enough
    except Exception:
        structlog.get_logger().exception("serve_failed")
        raise


def _one(arguments: argparse.Namespace, config: Config, host: str) -> Coroutine[Any, Any, int]:
    """This process serves: the only one, or one of several."""
    from roomcast.serve import serve as app
    from roomcast.serve.entry import Worker

    worker = None
    if arguments.worker is not None:
        worker = Worker(
            arguments.worker, arguments.port, arguments.own_port, arguments.own_internal_port
        )
    return app.serve(
        config,
        host=host,
        port=arguments.port,
        demo_urls=(arguments.peers or ()) if arguments.demo else None,
        exit_on_stdin_close=arguments.exit_on_stdin_close,
        worker=worker,
        task_endpoint=os.environ.get(_TASK_ENDPOINT, ""),
    )


def _several(
    arguments: argparse.Namespace, config: Config, host: str, processes: int
) -> Coroutine[Any, Any, int]:
    """This process watches others that serve."""
    from roomcast.serve.entry import Worker, internal_address
    from roomcast.serve.supervisor import supervise

    def command(worker: Worker) -> list[str]:
        given = [] if arguments.config is None else ["--config", arguments.config]
        if arguments.demo:
            given.append("--demo")
        if arguments.peers is not None:
            given += ["--peers", ",".join(arguments.peers)]
        return [
            *(sys.executable, "-m", "roomcast", "serve", *given),
            *("--host", host, "--port", str(worker.port), "--processes", "1"),
            *("--worker", str(worker.descriptor), "--own-port", str(worker.own_port)),
            *("--own-internal-port", str(worker.own_internal_port)),
            *(() if arguments.log_level is None else ("--log-level", arguments.log_level)),
        ]

    return supervise(
        command,
        host=host,
        port=arguments.port,
        processes=processes,
        drain_s=config.node.drain_s,
        exit_on_stdin_close=arguments.exit_on_stdin_close,
        internal=internal_address(config, host),
    )


def _number_of_processes(arguments: argparse.Namespace, config: Config) -> int:
    given: int | None = arguments.processes
    wanted = config.node.processes if given is None else given
    if wanted:
        return wanted
    from roomcast.serve.cores import usable_cores

    return min(usable_cores(), PROCESSES_MAX)


def _processes(found: str) -> int:
    """A number of processes, or "auto", which is 0."""
    return 0 if found == "auto" else whole(1, PROCESSES_MAX)(found)


def _warn(config: Config) -> None:
    import structlog

    for event, reason in concerns(config):
        structlog.get_logger().warning(event, reason=reason)
