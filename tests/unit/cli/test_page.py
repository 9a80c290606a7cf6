"""docs/cli.md against the commands: each has its row, and no other has one."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

from roomcast.cli.main import _COMMANDS, _parser

PAGE: Final = Path(__file__).parents[3] / "docs" / "cli.md"
COMMANDS: Final = [each.__name__.rpartition(".")[2] for each in _COMMANDS]


def rows() -> list[tuple[str, str]]:
    """Each command, and what its row says of JSON."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1:-1] for line in lines if line.startswith("| `roomcast ")]
    assert all(len(each) == 4 for each in cells)
    return [(each[0].strip(" `").removeprefix("roomcast "), each[3].strip()) for each in cells]


def parsers() -> dict[str, argparse.ArgumentParser]:
    [found] = [each.choices for each in _parser()._actions if isinstance(each.choices, dict)]
    return dict(found)


def test_every_command_has_a_row_in_their_order() -> None:
    assert [name for name, _ in rows()] == COMMANDS == list(parsers())


def test_the_page_says_what_prints_json() -> None:
    says = {name for name, cell in rows() if cell}
    has = {name for name, each in parsers().items() if "--json" in each.format_help()}
    # What these print is JSON in any case.
    assert says - {"dev", "serve"} == has


def test_the_page_has_every_option_of_tail() -> None:
    page = PAGE.read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", parsers()["tail"].format_help()))
    told = options - {"--help", "--channel-token"}
    assert [each for each in told if each not in page] == []
