"""Tells systemd that the event loop of this process turns: sd_notify(3), `WatchdogSec=` of a unit.

A process that hangs says nothing any more, and systemd starts it again. Without systemd nothing is
told to anybody.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog

from roomcast.concurrency import beside

__all__ = ["under_watchdog"]

# Signs of life within the time after which systemd takes the process for hung. Two are recommended
# (sd_watchdog_enabled(3)); one may come late.
_SIGNS: Final = 4
_US: Final = 1_000_000

_log = structlog.get_logger(__name__)


async def under_watchdog(work: Coroutine[Any, Any, int], environ: Mapping[str, str]) -> int:
    """The result of `work`, beside which systemd gets signs of life, if `environ` says that it
    waits for them.
    """
    async with beside(_tell(environ)):
        return await work


async def _tell(environ: Mapping[str, str]) -> None:
    address, interval_s = environ.get("NOTIFY_SOCKET", ""), _interval_s(environ)
    if not address or interval_s is None:
        return
    if address.startswith("@"):
        # It stands for the zero byte of an abstract address.
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
        telling.setblocking(False)
        is_heard = True
        while True:
            try:
                telling.sendto(b"WATCHDOG=1", address)
                is_heard = True
            except OSError as error:
                if is_heard:
                    _log.warning("watchdog_not_told", reason=error.strerror)
                is_heard = False
            await asyncio.sleep(interval_s)


def _interval_s(environ: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life; None = systemd waits for none of this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        # What another process was given, whose child this is.
        return None
    with suppress(ValueError):
        within_us = int(environ.get("WATCHDOG_USEC", "0"))
        if within_us > 0:
            return within_us / _US / _SIGNS
    return None
