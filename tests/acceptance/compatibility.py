"""Collects what the tests showed for each feature and SDK,
and writes docs/compatibility.md of it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.features import CENT, SECTIONS, TITLES, WITHIN, WITHOUT_SDK, Feature
from tests.acceptance.peers import CLIENTS
from tests.requirements import JS_DIRECTORY

__all__ = ["NOT_SHOWN", "OPTION", "PAGE", "PAGE_TESTS", "WORKS", "Compatibility", "page", "sdks_of"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "compatibility.md"
OPTION: Final = "--compatibility"
# They look at the result, and so have to be the last.
PAGE_TESTS: Final = Path(__file__).with_name("test_compatibility.py")
WORKS: Final = "works"
NOT_SHOWN: Final = "not shown"
# The columns' parameters in tests.
_PARAMETERS: Final = ("sdk", "here", "there", "over")
_BACK_ENDS: Final = frozenset({"back_end", "async_back_end"})
# "skipped" is left to ROOMCAST_REQUIRE: what is not there on a machine is no news about an SDK.
_GOOD: Final = frozenset({"passed", "skipped"})

_INTRODUCTION: Final = """\
# Compatibility

What of the published SDKs works with roomcast. This page is made of the outcomes of the acceptance tests, and every full run of them compares it with what
they showed; a cell says "{works}" only when each test that is named for it has passed with that SDK in that encoding. Otherwise it says why not, and a test shows that as
well.

    pytest tests/acceptance {option}={path}

writes it anew. Which test shows what is in [features.py](../tests/acceptance/features.py). The SDKs are
[centrifuge](https://www.npmjs.com/package/centrifuge) {js} for JavaScript, and for Python [centrifuge-python](https://pypi.org/project/centrifuge-python/), as new
as pip has it, and [cent](https://pypi.org/project/cent/) 5 (6 has another interface, and is not tried). What the protocol offers beyond them, and how it is answered, is in
[protocol.md](protocol.md#what-is-not-there-and-how-it-is-answered).
"""


def name_of(item: pytest.Item) -> str:
    """`file::test`, as features name it; in other directories nothing that they could mean."""
    function = getattr(item, "originalname", item.name)
    return (
        f"{item.path.stem}::{function}"
        if item.path.parent == Path(__file__).parent
        else item.nodeid
    )


def sdks_of(name: str, parameters: Iterable[object], fixtures: Iterable[str]) -> frozenset[str]:
    """The SDKs for which a test counts."""
    cent = {CENT} if _BACK_ENDS & set(fixtures) else set()
    columns = {*CLIENTS, *WITHOUT_SDK}
    return frozenset({*columns.intersection(parameters), *WITHIN.get(name, ()), *cent})


class Compatibility:
    """A plugin of pytest: how each test of a feature ended, by test and SDK."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._runs: dict[str, tuple[str, frozenset[str]]] = {}
        self._ended: dict[str, set[str]] = defaultdict(set)
        self._left_out = False

    # ---- what pytest tells

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._left_out |= any(item.path.parent == Path(__file__).parent for item in items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            said = [parameters[each] for each in _PARAMETERS if each in parameters]
            name = name_of(item)
            self._runs[item.nodeid] = (name, sdks_of(name, said, getattr(item, "fixturenames", ())))
        items.sort(key=lambda item: item.path == PAGE_TESTS)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._ended[report.nodeid].add(report.outcome)

    # ---- what comes of it

    @property
    def is_whole(self) -> bool:
        """Whether every test that a feature names was to run, with all its parameters."""
        chosen = any("::" in argument for argument in self._config.args)
        collected = {name for name, _ in self._runs.values()}
        return not (chosen or self._left_out) and set(named()) <= collected

    def works(self, feature: Feature, sdk: str) -> bool:
        """Whether its tests for `sdk` show that the feature works."""
        return self._show(feature.shown_by, sdk)

    def is_without(self, feature: Feature, sdk: str) -> bool:
        """Whether its tests for `sdk` show that it does not."""
        return self._show(feature.without_by, sdk)

    def _show(self, names: Sequence[str], sdk: str) -> bool:
        """Each of the tests that is for `sdk` ran and did not fail, and there is one."""
        runs = [node for node, (name, sdks) in self._runs.items() if name in names and sdk in sdks]
        return bool(runs) and all(self._ended[node] and self._ended[node] <= _GOOD for node in runs)


def named() -> Iterator[str]:
    """The tests that features name."""
    for section in SECTIONS:
        for feature in section.features:
            yield from (*feature.shown_by, *feature.without_by)


def page(found: Compatibility) -> str:
    """The whole text of docs/compatibility.md."""
    js = json.loads((JS_DIRECTORY / "package.json").read_text(encoding="utf-8"))["dependencies"][
        "centrifuge"
    ]
    path = PAGE.relative_to(PAGE.parents[1])
    parts = [_INTRODUCTION.format(works=WORKS, option=OPTION, path=path, js=js)]
    for section in SECTIONS:
        titles = [TITLES[sdk] for sdk in section.sdks]
        rows = [["", *titles], ["---"] * (1 + len(titles))]
        rows += [
            [feature.title, *(_cell(found, feature, sdk) for sdk in section.sdks)]
            for feature in section.features
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## {section.heading}\n\n{table}\n")
    return "\n".join(parts)


def _cell(found: Compatibility, feature: Feature, sdk: str) -> str:
    if sdk in feature.without:
        return feature.without[sdk] if found.is_without(feature, sdk) else NOT_SHOWN
    return WORKS if found.works(feature, sdk) else NOT_SHOWN
