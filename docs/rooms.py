"""Writes what tests/rooms.py says of the rooms into docs/architecture.md:
`python -m docs.rooms [--check]`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from tests.rooms import MODULES, PURE, ROOMS, Room

__all__ = ["main", "with_table"]

PAGE: Final = Path(__file__).with_name("architecture.md")
BEGIN: Final = "<!-- begin of the table: python -m docs.rooms -->\n"
END: Final = "<!-- end of the table -->\n"


def with_table(page: str) -> str:
    """The text of the page with the table as the rules are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError("docs/architecture.md has no place for the table")
    return f"{before}{BEGIN}\n{_table()}\n{END}{after}"


def _table() -> str:
    head = "| room | what it is | may import | libraries | pure modules |\n"
    head += "| --- | --- | --- | --- | --- |\n"
    return head + "".join(_row(name, room) for name, room in ROOMS.items() if name != "__version__")


def _row(name: str, room: Room) -> str:
    single = {
        module.partition(".")[2]: rules
        for module, rules in MODULES.items()
        if module.startswith(f"{name}.")
    }
    rooms = [_names(room.rooms)]
    rooms += [f"{module}: {_names(rules.rooms)}" for module, rules in single.items() if rules.rooms]
    libraries = [_names(room.libraries)]
    libraries += [
        f"{module}: {_names(rules.libraries)}"
        for module, rules in single.items()
        if rules.libraries
    ]
    pure = "all" if name in PURE else _names(_within(name))
    cells = [f"`{name}`", room.about, _joined(rooms), _joined(libraries), pure]
    return f"| {' | '.join(cells)} |\n"


def _within(name: str) -> list[str]:
    return [title.partition(".")[2] for title in PURE if title.startswith(f"{name}.")]


def _names(names: frozenset[str] | list[str]) -> str:
    return " ".join(sorted(each for each in names if each != "__version__"))


def _joined(parts: list[str]) -> str:
    return "; ".join(filter(None, parts)) or "–"


def main() -> int:
    """Exit code: 1 if `--check` finds another table than the rules make."""
    parser = argparse.ArgumentParser(prog="python -m docs.rooms", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    current = with_table(page)
    if check:
        if page != current:
            sys.stderr.write("docs/architecture.md: run python -m docs.rooms\n")
        return int(page != current)
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
