"""Makes `python -m roomcast` the same as `roomcast`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Final

__all__ = ["run"]

# They run until they are told to stop, so that is no failure of theirs.
_UNTIL_STOPPED: Final = ("dev", "serve")
_EXIT_DONE: Final = 0
_EXIT_FAILED: Final = 1


def run() -> int:
    """Runs the command of this process. Returns its exit code."""
    if sys.argv[1:2] in ([name] for name in _UNTIL_STOPPED):
        # Until they have begun what must end in order, and have handlers of their own.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
    try:
        # Here, since Ctrl-C may come while it is imported.
        from roomcast.cli.main import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("roomcast: interrupted\n")
        return _EXIT_FAILED


def _leave(_number: int, _frame: FrameType | None) -> None:
    # At once: an exception would be lost where it comes amidst an import, or in a callback.
    os._exit(_EXIT_DONE)


if __name__ == "__main__":
    raise SystemExit(run())
