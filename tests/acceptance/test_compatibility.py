"""docs/compatibility.md is what this run of the tests showed.
Runs behind all others (compatibility.py).
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.compatibility import OPTION, PAGE, WORKS, Compatibility, named, page, sdks_of
from tests.acceptance.features import CENT, SECTIONS, WITHIN, Feature
from tests.acceptance.peers import CLIENTS

HERE: Final = Path(__file__).parent


def test_the_page_says_what_the_tests_showed(pytestconfig: pytest.Config) -> None:
    found = pytestconfig.pluginmanager.get_plugin("compatibility")
    assert isinstance(found, Compatibility)
    if not found.is_whole:
        pytest.skip("only a part of the acceptance tests runs")
    shown = page(found)
    if path := pytestconfig.getoption(OPTION.lstrip("-"), None):
        Path(path).write_text(shown, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8").splitlines() == shown.splitlines(), (
        f"write it anew: {OPTION}"
    )


def test_the_page_has_a_reason_where_something_does_not_work() -> None:
    """Also when only a part of the tests runs."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for section in SECTIONS:
        for feature in section.features:
            (row,) = [row for row in rows if row.startswith(f"| {feature.title} | ")]
            cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
            assert cells == [feature.without.get(sdk, WORKS) for sdk in section.sdks], feature.title


def test_the_tests_that_features_name_exist() -> None:
    there = {
        f"{path.stem}::{part.name}"
        for path in HERE.glob("test_*.py")
        for part in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {*named(), *WITHIN} - there == set()


# ---- what counts


class Report:
    """As pytest gives it."""

    def __init__(self, nodeid: str, outcome: str) -> None:
        self.nodeid = nodeid
        self.outcome = outcome
        self.when = "call"
        self.passed = outcome == "passed"


@pytest.fixture
def found(pytestconfig: pytest.Config) -> Compatibility:
    """One feature's test, once for each of two SDKs."""
    fresh = Compatibility(pytestconfig)
    fresh._runs = {f"a::b[{sdk}]": ("a::b", frozenset({sdk})) for sdk in ("js", "py")}
    return fresh


@pytest.mark.parametrize(
    "outcomes, works",
    [
        ((), False),
        (("passed",), True),
        (("skipped",), True),
        (("failed",), False),
        (("passed", "failed"), False),
    ],
)
def test_a_feature_works_when_its_tests_passed(
    found: Compatibility, outcomes: tuple[str, ...], works: bool
) -> None:
    feature = Feature("f", ["a::b"])
    for outcome in outcomes:
        found.pytest_runtest_logreport(Report("a::b[js]", outcome))  # type: ignore[arg-type]  # enough of one
    assert found.works(feature, "js") is works
    assert not found.works(feature, "py"), "nothing ran"
    assert not found.works(feature, CENT), "there is no test"


@pytest.mark.parametrize(
    "outcomes, is_without", [((), False), (("passed",), True), (("failed",), False)]
)
def test_why_a_feature_does_not_work_is_shown(
    found: Compatibility, outcomes: tuple[str, ...], is_without: bool
) -> None:
    for outcome in outcomes:
        found.pytest_runtest_logreport(Report("a::b[js]", outcome))  # type: ignore[arg-type]  # enough of one
    assert found.is_without(Feature("f", without_by=["a::b"]), "js") is is_without
    assert not found.is_without(Feature("f"), "js"), "no test is named"


def test_all_that_is_said_is_shown() -> None:
    for section in SECTIONS:
        for feature in section.features:
            assert feature.shown_by or set(feature.without) == set(section.sdks), feature.title
            assert bool(feature.without) == bool(feature.without_by), feature.title


def test_for_whom_a_test_counts() -> None:
    assert sdks_of("a::b", ["js", "other"], ["dev"]) == {"js"}
    assert sdks_of("a::b", ["uni_sse"], []) == {"uni_sse"}
    assert sdks_of("a::b", [], ["back_end"]) == {CENT}
    within = "test_tokens::test_sessions_go_on_with_fresh_tokens"
    assert sdks_of(within, [], []) == set(CLIENTS)
