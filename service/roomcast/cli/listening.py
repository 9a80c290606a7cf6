"""Looks whether `roomcast serve` could listen at an address, and who does if not."""

from __future__ import annotations

import errno
import json
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Final

from roomcast.cli.in_time import in_time

if TYPE_CHECKING:
    from roomcast.account.rules import Finding

__all__ = ["ANSWER_S", "port_finding"]

# Whoever listens there may say nothing.
ANSWER_S: Final = 2.0
_ANSWER_BYTES: Final = 64 * 1024
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where to ask who has all addresses


def port_finding(host: str, port: int) -> Finding:
    """Whether `host` and `port` are free. Nobody is sent away meanwhile: it only binds."""
    from roomcast.account.rules import Finding
    from roomcast.serve.entry import bound

    name = f"port {port}"
    try:
        bound(host, port).close()
    except OSError as error:
        if error.errno == errno.EACCES:
            return Finding(
                name,
                "failed",
                f"this user may not listen at {host}:{port}",
                "choose a --port from 1024 on, or give the unit CAP_NET_BIND_SERVICE",
            )
        if error.errno != errno.EADDRINUSE:
            why = error.strerror or str(error)
            return Finding(
                name,
                "failed",
                f"cannot listen at {host}:{port}: {why}",
                "--host must be an address of this machine: ip addr",
            )
    else:
        return Finding(name, "ok", f"{host}:{port} is free")
    if _is_roomcast(_LOOPBACK.get(host, host), port):
        return Finding(name, "ok", f"a node of roomcast listens at {host}:{port}")
    return Finding(
        name,
        "failed",
        f"{host}:{port} is taken by another program",
        f"ss -ltnp 'sport = :{port}' tells which; or choose another --port for roomcast serve",
    )


def _is_roomcast(host: str, port: int) -> bool:
    """Whether what listens there answers as a node does."""
    try:
        return in_time(ANSWER_S, lambda: _answers(host, port))
    except (OSError, HTTPException, ValueError):
        return False


def _answers(host: str, port: int) -> bool:
    connection = HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/health/live")
        found = json.loads(connection.getresponse().read(_ANSWER_BYTES))
    finally:
        connection.close()
    return isinstance(found, dict) and "node" in found
