"""`python -m service` is `roomcast`."""

from __future__ import annotations

from service.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())
