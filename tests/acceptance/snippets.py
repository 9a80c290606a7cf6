"""The code blocks of the documentation that tests run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["marked"]

_ROOT: Final = Path(__file__).parents[2]


def marked(page: str, test: str, language: str) -> str:
    """The code block of `language` that `page` marks as run by the test file `test`."""
    mark = f"<!-- tested: tests/acceptance/{test} -->\n"
    (found,) = re.findall(
        rf"{re.escape(mark)}```{language}\n(.*?)^```$",
        (_ROOT / page).read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    return str(found)
