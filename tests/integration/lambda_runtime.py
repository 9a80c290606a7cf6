"""What AWS Lambda is to a function: `python -I tests/integration/lambda_runtime.py ZIP
HANDLER [AHEAD_MS]`.

Calls HANDLER, out of ZIP and nowhere else, with each event that comes as a line of JSON on standard
input, and answers each with a line on standard output: what it returned, or the error that it
raised. What it prints goes to standard error. AHEAD_MS: by how much the machine's clock is ahead.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["main"]


def main() -> int:
    archive, handler, ahead_ms = sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 0
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        function = _function(archive, handler, ahead_ms)
        for line in sys.stdin:
            try:
                answer = {"returned": function(json.loads(line), None)}
            except Exception as error:  # noqa: BLE001 - whatever a function raises is its answer
                answer = {"raised": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    return 0


def _function(archive: str, handler: str, ahead_ms: int) -> Callable[[Any, Any], Any]:
    module, _, name = handler.rpartition(".")
    sys.path.insert(0, archive)
    function: Callable[[Any, Any], Any] = getattr(importlib.import_module(module), name)
    for loaded, about in list(sys.modules.items()):
        if loaded.partition(".")[0] in ("roomcast", "stream_lambda"):
            assert str(about.__file__).startswith(archive), f"{loaded} is not out of the zip"
    if ahead_ms:
        clock: Any = importlib.import_module("roomcast.system").SystemClock
        now_ms = clock.now_ms
        clock.now_ms = lambda self: now_ms(self) + ahead_ms
    return function


if __name__ == "__main__":
    sys.exit(main())
