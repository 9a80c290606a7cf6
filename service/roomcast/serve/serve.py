"""Runs one node in this process until it is told to end: `roomcast serve`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from roomcast.config import Config, ConfigError
from roomcast.ec2.instance_metadata import this_machine
from roomcast.observe.redaction import printable, without_passwords
from roomcast.ports import PortError
from roomcast.serve.collector import look_seldom
from roomcast.serve.plan import planned
from roomcast.serve.process import NodeProcess
from roomcast.system import SystemClock

__all__ = ["serve"]

_STDIN_BYTES: Final = 4096
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger(__name__)


async def serve(
    config: Config,
    *,
    host: str,
    port: int,
    demo_urls: Sequence[str] | None,
    exit_on_stdin_close: bool,
) -> int:
    """Run one node until SIGTERM or SIGINT (or the end of standard input). Returns the exit code.

    Both signals are ignored afterwards.

    `demo_urls`: base URLs of all instances of a development set-up, which serves the demo page;
    None = production.
    """
    look_seldom()
    try:
        listening = _bound(host, port)
    except OSError as error:
        return _refuse(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        )
    stop = asyncio.Event()
    with listening, _stopped_by_signals(stop):
        if exit_on_stdin_close:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_at_end, stop)
        async with this_machine(config.node.imds_endpoint, SystemClock()) as machine:
            try:
                plan = planned(config, machine)
            except ConfigError as error:
                return _refuse(str(error), code=2)
            # On every log line from here on, because logs of several nodes are often read together.
            structlog.contextvars.bind_contextvars(node=plan.node_id)
            process = NodeProcess(plan, stop, demo_urls=demo_urls)
            return await _exit_code(process, listening, host)


async def _exit_code(process: NodeProcess, listening: socket.socket, host: str) -> int:
    """Run `process` to its end. Returns the exit code."""
    try:
        if not await process.run(listening, host):
            return process.exit_code
    except PortError as error:
        return _refuse(f"cannot start: {error}")
    except OSError as error:
        # Another process that started at the same time may have bound the address, too, and
        # listened first.
        return _refuse(
            f"cannot listen on {host}:{listening.getsockname()[1]}: {error.strerror or error}"
        )
    finally:
        await process.end()
    _log.info("stopped", node=process.node_id)
    return process.exit_code


@contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at SIGTERM and SIGINT. From the end of the context on, both are ignored.

    The process is about to exit then. Another signal would make an orderly end look like a failure.
    """
    loop = asyncio.get_running_loop()
    for name in _STOP_SIGNALS:
        loop.add_signal_handler(name, stop.set)
    try:
        yield
    finally:
        for name in _STOP_SIGNALS:
            # The event loop would set the default when it is closed.
            loop.remove_signal_handler(name)
            signal.signal(name, signal.SIG_IGN)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that holds the address from now on. It listens only when the node is ready.

    Raises OSError.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _stop_at_end(stop: asyncio.Event) -> None:
    """Set `stop` at the end of standard input, which is readable now.

    At that end, the parent process is gone or wants this one to stop.
    """
    if not os.read(sys.stdin.fileno(), _STDIN_BYTES):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def _refuse(why: str, code: int = 1) -> int:
    sys.stderr.write(f"roomcast: {printable(without_passwords(why))}\n")
    return code
