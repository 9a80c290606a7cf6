"""Writes the rooms' rules of tests/rooms.py as table and picture: `python -m docs.rooms [--check]`.

The table goes into docs/architecture.md, the picture into docs/rooms.svg.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from docs.rooms_picture import Box, picture
from tests.rooms import MODULES, PURE, ROOMS, SOURCE, Room

__all__ = ["main", "svg", "with_table"]

PAGE: Final = Path(__file__).with_name("architecture.md")
PICTURE: Final = Path(__file__).with_name("rooms.svg")
# Not rooms: their boxes would say nothing.
LEFT_OUT: Final = frozenset({"__main__", "__version__"})
BEGIN: Final = "<!-- begin of the table: python -m docs.rooms -->\n"
END: Final = "<!-- end of the table -->\n"


def with_table(page: str) -> str:
    """The text of the page with the table of the present rules."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError("docs/architecture.md has no place for the table")
    return f"{before}{BEGIN}\n{_table()}\n{END}{after}"


def svg() -> str:
    """The picture of the present rules.

    The arrows are the allowed imports. A test fails on an allowance that is not used.
    """
    names = [name for name in ROOMS if name not in LEFT_OUT]
    boxes = {
        name: Box(ROOMS[name].about, is_file=(SOURCE / "roomcast" / f"{name}.py").exists())
        for name in names
    }
    imports = {
        name: frozenset().union(
            *(
                rules.rooms
                for title, rules in (*ROOMS.items(), *MODULES.items())
                if title.partition(".")[0] == name
            )
        )
        - LEFT_OUT
        for name in names
    }
    return picture(boxes, imports)


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
    """Returns the exit code: 1 if `--check` finds a table or picture that differs from the
    rules.
    """
    parser = argparse.ArgumentParser(prog="python -m docs.rooms", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether they are current")
    check = parser.parse_args().check
    current = {PAGE: with_table(PAGE.read_text(encoding="utf-8")), PICTURE: svg()}
    stale = [path for path, text in current.items() if not _is(path, text)]
    for path in stale:
        if check:
            sys.stderr.write(f"docs/{path.name}: run python -m docs.rooms\n")
        else:
            path.write_text(current[path], encoding="utf-8")
    return int(check and bool(stale))


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
