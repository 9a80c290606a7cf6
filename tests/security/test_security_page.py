"""docs/security.md: every threat has a defence and a test, all of them exist,
and every test here is named there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from tests.unit.test_guarantees import defined, sources, unknown

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
TEXT: Final = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS: Final = re.findall(r"^\| (?!Threat|---)(.+) \| (.+) \| (.+) \|$", TEXT, flags=re.MULTILINE)
# What shows that the other tests can pass at all, and the page's own.
NO_THREAT: Final = {
    "test_a_page_of_ours_may_connect",
    "test_who_says_in_which_name_it_comes_changes_no_origin",
    "test_a_body_that_never_comes_to_its_end",
    "test_every_method_is_attacked",
    "test_what_is_right_is_let_in",
}


def test_everything_that_is_named_exists() -> None:
    assert unknown(TEXT) == []
    assert unknown("`tests/security/test_tokens.py::test_gone`") == [
        "tests/security/test_tokens.py::test_gone"
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_threat_has_a_defence_and_a_test(row: tuple[str, str, str]) -> None:
    _, defence, test = row
    assert sources(defence)
    assert all(path.startswith("service/") for path, _ in sources(defence))
    assert sources(test)
    assert all(
        path.startswith("tests/") and name.startswith("test_") for path, name in sources(test)
    )


def test_there_are_threats() -> None:
    assert len(ROWS) > 10


def test_every_test_here_stands_on_the_page() -> None:
    there = {name for path, name in sources(TEXT) if path.startswith("tests/security/")}
    here: set[str] = set()
    for file in HERE.glob("test_*.py"):
        if file != Path(__file__):
            here |= {
                name for name in defined(f"tests/security/{file.name}") if name.startswith("test_")
            }
            assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert here - there == NO_THREAT
