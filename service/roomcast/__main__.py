"""Makes `python -m roomcast` the same as `roomcast`."""

from __future__ import annotations

from roomcast.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())
