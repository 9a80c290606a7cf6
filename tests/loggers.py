"""Logging belongs to the process: how a test that configures it leaves it to
the others as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from roomcast.observe import logs as telemetry

__all__ = ["logging_restored"]


@contextmanager
def logging_restored() -> Iterator[None]:
    """What is configured in the context is undone at its end."""
    root = logging.getLogger()
    level = root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.setLevel(level)
    for handler in [each for each in root.handlers if isinstance(each, telemetry._LibraryHandler)]:
        root.removeHandler(handler)
