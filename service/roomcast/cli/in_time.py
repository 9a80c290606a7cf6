"""Gives blocking work a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_time"]

T = TypeVar("T")


def in_time(limit_s: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Raises TimeoutError after `limit_s`: the rest of `work` ends
    with the process.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised where the result is awaited
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(limit_s)
