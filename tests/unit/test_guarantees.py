"""docs/guarantees.md: every function, bound, option and test that it names exists,
and bounds are what it says.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from roomcast.config import OPTIONS

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "guarantees.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
PROMISES: Final = re.split(
    r"^### ", TEXT.partition("## Promises")[2].partition("## Not promised")[0], flags=re.MULTILINE
)[1:]
UNITS: Final = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}
SECTIONS: Final = sorted({option.section for option in OPTIONS}, key=len, reverse=True)

# What stands in backticks: `file::name`, `roomcast.module.CONSTANT`, `section.option`.
IN_FILE: Final = r"`((?:service|stream_lambda|tests|benchmarks)/[\w/]+\.py)::([\w.]+)`"
# (`roomcast.publish` is a method of the protocol.)
CONSTANT: Final = r"`((?:roomcast\.\w+|stream_lambda)\.[\w.]+)`"
OPTION: Final = rf"`((?:{'|'.join(re.escape(section) for section in SECTIONS)})\.[a-z_0-9]+)`"


def sources(text: str) -> set[tuple[str, str]]:
    return set(re.findall(IN_FILE, text))


@cache
def defined(path: str) -> frozenset[str]:
    """Functions, classes and methods of a file; none when there is no such file."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    names: set[str] = set()
    for part in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(part.name)
        if isinstance(part, ast.ClassDef):
            names |= {
                f"{part.name}.{inner.name}"
                for inner in part.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return frozenset(names)


def value(name: str) -> Any:
    """Of a constant, or the default of an option. Raises AttributeError, ImportError, KeyError."""
    if name.startswith(("roomcast.", "stream_lambda.")):
        module, _, constant = name.rpartition(".")
        return getattr(importlib.import_module(module), constant)
    return {option.key: option.default for option in OPTIONS}[name]


def unknown(text: str) -> list[str]:
    """What is named in `text` and is not there."""
    missing = [f"{path}::{name}" for path, name in sources(text) if name not in defined(path)]
    for name in {*re.findall(CONSTANT, text), *re.findall(OPTION, text)}:
        try:
            value(name)
        except (AttributeError, ImportError, KeyError):
            missing.append(name)
    return sorted(missing)


def test_everything_that_is_named_exists() -> None:
    assert unknown(TEXT) == []


@pytest.mark.parametrize(
    "name",
    [
        "service/gone.py::Writer",
        "service/roomcast/gateway/writer.py::Writer.gone",
        "tests/unit/node/test_node.py::test_gone",
        "roomcast.log.rules.GONE_MS",
        "roomcast.gone.MARGIN_MS",
        "node.gone_s",
    ],
)
def test_what_does_not_exist_is_found(name: str) -> None:
    assert unknown(
        f"This is `{name}`, and this `service/roomcast/gateway/writer.py::Writer.send`."
    ) == [name]


def test_nothing_is_named_in_another_way() -> None:
    """A name that no pattern knows would not be checked."""
    named = {
        token for token in re.findall(r"`([^`\n]+)`", TEXT) if re.search(r"::|^\w+\.\w+", token)
    }
    known = {f"{path}::{name}" for path, name in sources(TEXT)}
    known |= {*re.findall(CONSTANT, TEXT), *re.findall(OPTION, TEXT)}
    said = {"module.CONSTANT", "section.option", "file::function", "file::test", "roomcast.publish"}
    assert named - known - said == set()


def part(promise: str, title: str) -> str:
    """One of a promise's three bullets."""
    found = re.search(
        rf"^- \*\*{title}\*\*:\s(.*?)(?=^- \*\*|\Z)", promise, flags=re.MULTILINE | re.DOTALL
    )
    assert found, f"no {title}"
    return found[1]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.partition("\n")[0])
def test_a_promise_has_a_mechanism_a_bound_and_a_test(promise: str) -> None:
    mechanism, bound, test = (part(promise, title) for title in ("Mechanism", "Bound", "Test"))
    assert {path.split("/")[0] for path, _ in sources(mechanism)} <= {"service", "stream_lambda"}
    assert sources(mechanism)
    assert re.findall(CONSTANT, bound) or re.findall(OPTION, bound)
    tests = sources(test)
    assert tests
    assert all(path.startswith("tests/") and name.startswith("test_") for path, name in tests)


def test_every_invariant_is_there() -> None:
    titles = " ".join(promise.partition("\n")[0] for promise in PROMISES)
    assert set(re.findall(r"\bI\d\b", titles)) == {f"I{number}" for number in range(1, 8)}


def bounds() -> list[tuple[str, str]]:
    table = TEXT.partition("## Bounds")[2]
    return re.findall(r"^\| `([\w.]+)` \| ([\d.,]+(?: \w+)?) \|", table, flags=re.MULTILINE)


@pytest.mark.parametrize("name, told", bounds())
def test_a_bound_is_what_the_table_says(name: str, told: str) -> None:
    number, _, unit = told.partition(" ")
    assert float(number.replace(",", "")) * UNITS[unit] == value(name)


def test_every_bound_of_a_promise_is_in_the_table() -> None:
    """But those of channels, which have no default to speak of."""
    named = {
        name
        for promise in PROMISES
        for name in (*re.findall(CONSTANT, promise), *re.findall(OPTION, promise))
        if not name.startswith("channel.")
    }
    assert named - {name for name, _ in bounds()} == set()
