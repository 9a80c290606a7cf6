"""What a process and its supervisor begin with: an address, requests to stop, and refusals."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from roomcast.config import Config
from roomcast.observe.lines import tell
from roomcast.observe.redaction import printable, without_passwords

__all__ = [
    "Address",
    "Entrance",
    "Worker",
    "bound",
    "entrance",
    "internal_address",
    "refuse",
    "refuse_address",
    "stop_at_end_of_input",
    "stopped_by_signals",
]

_STDIN_BYTES: Final = 4096
# SIGHUP: the terminal that it runs in is gone.
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Worker:
    """What one process of several is given.

    `descriptor`: its end of the pair of sockets. `port`: the shared one. `own_port`: a port that it
    shares with nobody, 0 = any that is free. `own_internal_port`: the same for what is internal, if
    that has a port.
    """

    descriptor: int
    port: int
    own_port: int
    own_internal_port: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. `port` 0: any that is free."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Entrance:
    """An address that this process holds. `host`: as it was asked for."""

    host: str
    held: socket.socket

    @property
    def port(self) -> int:
        port: int = self.held.getsockname()[1]
        return port


def internal_address(config: Config, host: str) -> Address | None:
    """Where what is internal is served; None = where the clients are. `host`: theirs."""
    server = config.server
    if not server.internal_port:
        return None
    return Address(server.internal_address or host, server.internal_port)


@contextmanager
def entrance(host: str, port: int) -> Iterator[Entrance]:
    """Holds an address, as `bound` does. Raises OSError."""
    with bound(host, port) as held:
        yield Entrance(host, held)


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that holds the address from now on. It listens only when the node is ready.

    `shared`: other sockets of this user may hold it as well (SO_REUSEPORT). The kernel divides new
    connections among those that listen.

    Raises OSError.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except UnicodeError as error:  # the library's own, for what cannot be a name
        raise socket.gaierror(socket.EAI_NONAME, "Not a host name") from error
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError:
        holder.close()
        raise
    return holder


@contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at SIGTERM, SIGINT and SIGHUP. From the end of the context on, they are ignored.

    The process is about to exit then. Another signal would make an orderly end look like a failure.
    """
    loop = asyncio.get_running_loop()
    for name in _STOP_SIGNALS:
        # What was started by nohup(1) is to go on without its terminal.
        if name is not signal.SIGHUP or signal.getsignal(name) is not signal.SIG_IGN:
            loop.add_signal_handler(name, stop.set)
    try:
        yield
    finally:
        for name in _STOP_SIGNALS:
            # The event loop would set the default when it is closed.
            loop.remove_signal_handler(name)
            signal.signal(name, signal.SIG_IGN)


def stop_at_end_of_input(stop: asyncio.Event) -> None:
    """Set `stop` at the end of standard input.

    At that end, the parent process is gone or wants this one to stop.
    """
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _stop_at_end, stop)


def _stop_at_end(stop: asyncio.Event) -> None:
    """Standard input is readable now."""
    if not os.read(sys.stdin.fileno(), _STDIN_BYTES):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def refuse_address(
    host: str, port: int, error: OSError, *, internal: bool = False, more: str = ""
) -> int:
    """The same for an address that cannot be bound. `internal`: whether it is the internal one.
    `more`: what else there is to say of it.
    """
    is_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
    if internal:
        option = "server.internal_address" if is_host else "server.internal_port"
    else:
        option = "--host" if is_host else "--port"
    todo = more or f"choose another {option}"
    return refuse(f"cannot listen on {host}:{port}: {error.strerror or error}; {todo}")


def refuse(why: str, code: int = 1) -> int:
    """Say in one line why it cannot be. Returns `code`, the exit code."""
    tell(f"roomcast: {printable(without_passwords(why))}")
    return code
