"""Writes the tables of all options into docs/configuration.md: `python -m docs.options`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from roomcast.config import reference

__all__ = ["BEGIN", "END", "PAGE", "main", "with_tables"]

PAGE: Final = Path(__file__).with_name("configuration.md")
BEGIN: Final = "<!-- reference: begin -->\n"
END: Final = "<!-- reference: end -->"


def with_tables(page: str) -> str:
    """The text of the page with the tables as the options are declared now."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("docs/configuration.md has no place for the tables")
    return f"{before}{BEGIN}\n{reference().strip()}\n\n{END}{after}"


def main() -> None:
    """Writes it."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
