"""Makes `python -m roomcast` the same as `roomcast`."""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> int:
    """Runs the command of this process. Returns its exit code."""
    try:
        # Here, since Ctrl-C may come while it is imported.
        from roomcast.cli.main import main

        return main()
    except KeyboardInterrupt:
        sys.stderr.write("roomcast: interrupted\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(run())
