"""The documentation: links lead somewhere, names exist, and tables say what the code says."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

import pytest

from roomcast.cli import main as cli
from roomcast.config import OPTIONS
from roomcast.gateway.api.server import METHODS
from roomcast.wire.codes import Disconnect, Error, Unsubscribe

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").glob("*.md")]
)
PROTOCOL: Final = ROOT / "docs" / "protocol.md"
README: Final = ROOT / "README.md"
DECISIONS: Final = ROOT / "docs" / "decisions"
UNITS: Final = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


@functools.cache
def anchors(page: Path) -> set[str]:
    """What code hosts make of the headings: small letters, dashes for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, root: Path = ROOT) -> list[str]:
    """Relative links of `page` that lead to no file within `root`, or to no heading."""
    dead: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(root) or not file.exists():
            dead.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            dead.append(f"{target}: no such heading")
    return dead


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One: two\n[a](page.md#one-two) [b](gone.md) [c](#three) [d](https://example.com/x)\n"
    )
    assert dead_links(page, tmp_path) == ["gone.md: no such file", "#three: no such heading"]


# ---- lines

COLUMNS_MAX: Final = 100
# What a test writes. Nor are records of decisions asked.
UNWRAPPED: Final = ("compatibility.md",)


def long_lines(text: str) -> list[str]:
    """Lines of prose that are too long and could be broken; not tables, pictures or code."""
    found = []
    for line in re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines():
        # A break within backticks would be one within a command or a name.
        words = re.sub(r"`[^`]*`", lambda code: "x" * len(code[0]), line)
        begin = re.match(r" *(?:[-*] |\d+\. )?", words)
        assert begin, "matches nothing as well"
        room = words[begin.end() : COLUMNS_MAX]
        is_prose = not line.startswith(("|", "![", "#", "    ", "<!--"))
        if len(line) > COLUMNS_MAX and is_prose and " " in room:
            found.append(line)
    return found


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in UNWRAPPED and page.parent != DECISIONS],
    ids=name,
)
def test_prose_is_wrapped(page: Path) -> None:
    assert long_lines(page.read_text(encoding="utf-8")) == []


def test_a_long_line_is_found() -> None:
    long = "word " * 25
    assert long_lines(f"{long}\n- {long}") == [long, f"- {long}"]
    assert long_lines(f"| {long}\n```\n{long}\n```\n`{long}`\n- https://{'a' * 120} x") == []


# ---- names


@functools.cache
def defined() -> frozenset[str]:
    """Every function, method and class of the product."""
    return frozenset(_defined())


def _defined() -> Iterator[str]:
    for package in ("service/roomcast", "stream_lambda"):
        for path in (ROOT / package).rglob("*.py"):
            for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    yield part.name
                if isinstance(part, ast.ClassDef):
                    for inner in part.body:
                        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                            yield f"{part.name}.{inner.name}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_functions_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"`([A-Za-z_][\w.]*)\(\)`", prose(page)))
    assert named - defined() == set()


def test_the_architecture_names_functions() -> None:
    named = re.findall(r"`([A-Za-z_][\w.]*)\(\)`", prose(ROOT / "docs" / "architecture.md"))
    assert len(named) > 20


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_that_are_named_exist(page: Path) -> None:
    sections = "|".join(sorted({re.escape(option.section) for option in OPTIONS}))
    # Not a module, such as `node.py`.
    named = set(re.findall(rf"`((?:{sections})\.(?!(?:py|m?js)`)[a-z_]+)`", prose(page)))
    known = {option.key for option in OPTIONS} | {option.section for option in OPTIONS}
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_commands_that_are_named_exist(page: Path) -> None:
    assert absent(prose(page)) == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_are_in_the_files_that_are_said_to_have_them(page: Path) -> None:
    assert misplaced(page) == []


def test_a_name_that_is_in_another_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("HERE_S = 1\n")
    page = tmp_path / "page.md"
    page.write_text("(`HERE_S` of [one](one.py), `Gone.x` in\n[one](one.py))\n")
    assert misplaced(page) == ["Gone.x: not in one.py"]


def misplaced(page: Path) -> list[str]:
    """Names that `page` says are of, or in, a file that it links to, which has no such word."""
    return [
        f"{named}: not in {target}"
        for named, target in re.findall(
            r"`([A-Za-z_][\w.]*)`\s+(?:of|in)\s+\[[^\]]*\]\(([^)#:]+\.py)\)", prose(page)
        )
        if not re.search(
            rf"\b{named.rpartition('.')[2]}\b",
            (page.parent / target).read_text(encoding="utf-8"),
        )
    ]


def test_a_file_or_command_that_is_not_there_is_found() -> None:
    text = "`tests/gone.py` `tests/rooms.py::ROOMS` `log/item.py` `roomcast sing` `roomcast dev`"
    assert absent(text) == {"tests/gone.py", "roomcast sing"}


def absent(text: str) -> set[str]:
    """Files of Python and commands of roomcast that stand in backticks, and are not there."""
    files = re.findall(r"`([a-z]\w*/[\w/]+\.py)(?:::[\w.]+)?`", text)
    roots = (ROOT, ROOT / "service" / "roomcast")
    named = {each for each in files if not any((root / each).exists() for root in roots)}
    used = set(re.findall(r"`roomcast\s([a-z]+)", text))
    return named | {f"roomcast {each}" for each in used - COMMANDS}


# A module each.
COMMANDS: Final = frozenset(each.__name__.rpartition(".")[2] for each in cli._COMMANDS)


def test_docstrings_name_what_exists() -> None:
    packages = (ROOT / "service", ROOT / "stream_lambda")
    assert (
        unknown_names(*(path for package in packages for path in sorted(package.rglob("*.py"))))
        == []
    )


def test_a_docstring_that_names_what_is_gone_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        'def one(kept):\n    """`kept`, `gone` and `other.place`; then call `kept` or `one`."""\n'
        "    # Not `past`.\n"
    )
    assert unknown_names(module) == [
        "module.py: gone",
        "module.py: no function kept",
        "module.py: other.place",
        "module.py: past",
    ]


def unknown_names(*modules: Path) -> list[str]:
    """What stands in backticks, in docstrings and comments,
    and is the name of nothing in the code of the product.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in modules}
    known, functions = names_in_code(texts)
    missing: set[str] = set()
    for path, text in texts.items():
        said = [
            ast.get_docstring(part) or ""
            for part in ast.walk(ast.parse(text))
            if isinstance(part, DOCUMENTED)
        ]
        said += re.findall(r"#(.*)$", text, flags=re.MULTILINE)
        for each in said:
            for named in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)", each):
                if not known.issuperset(named.split(".")):
                    missing.add(f"{path.name}: {named}")
            for called in re.findall(r"\bcalls? `(\w+)`", each):
                if called in known and called not in functions:
                    missing.add(f"{path.name}: no function {called}")
    return sorted(missing)


DOCUMENTED: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def names_in_code(texts: Mapping[Path, str]) -> tuple[set[str], set[str]]:
    """Every name and word of a text constant in `texts`, modules and packages included;
    and the functions and what may be called like one:
    parameters and attributes of that kind are not told apart from others.
    """
    known = {path.stem for path in texts}
    known |= {
        each.name for path in texts for each in path.parents if (each / "__init__.py").exists()
    }
    functions: set[str] = set()
    for text in texts.values():
        tree = ast.parse(text)
        docstrings = {
            id(part.body[0].value)
            for part in ast.walk(tree)
            if isinstance(part, DOCUMENTED) and part.body and isinstance(part.body[0], ast.Expr)
        }
        for part in ast.walk(tree):
            match part:
                case (
                    ast.Name(name)
                    | ast.Attribute(attr=name)
                    | ast.arg(name)
                    | ast.keyword(str(name))
                ):
                    known.add(name)
                case ast.alias(name):
                    known.update(name.split("."))
                case ast.Constant(str(value)) if id(part) not in docstrings:
                    known.update(re.findall(r"\w+", value))
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.add(part.name)
            if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                known.add(part.name)
    return known, functions


def test_the_api_page_lists_as_missing_what_is_missing() -> None:
    missing = (
        (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("## What is not there")[2]
    )
    named = set(re.findall(r"`([a-z_]+)`", missing.partition(": 404")[0]))
    assert named >= {"rpc", "map_publish", "shared_poll_publish"}
    assert named & {*METHODS, "batch"} == set()


# ---- tables


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table under `heading`, without its head."""
    _, _, after = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    assert after, f"{name(page)} has no heading {heading}"
    table: list[list[str]] = []
    for line in after.splitlines():
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        elif table or line.startswith("#"):
            break
    assert len(table) > 2, f"{heading} has no table"
    return table[2:]


def is_sent(member: Enum) -> bool:
    """Whether the code outside the table of codes names `member`."""
    wanted = f"{type(member).__name__}.{member.name}"
    if member is Disconnect.CONNECTION_CLOSED:
        return False  # named at the end of a connection whose peer is gone
    return any(
        re.search(rf"\b{re.escape(wanted)}\b", path.read_text(encoding="utf-8"))
        for path in (ROOT / "service").rglob("*.py")
        if path.name != "codes.py"
    )


def yes(value: bool) -> str:
    return "yes" if value else "no"


def test_error_codes_are_those_of_the_code() -> None:
    expected = [
        [str(code.value.code), code.value.message, yes(code.value.temporary), yes(is_sent(code))]
        for code in Error
    ]
    assert [row[:4] for row in rows(PROTOCOL, "### Errors")] == expected


def test_disconnect_codes_are_those_of_the_code() -> None:
    expected = [
        [str(code.value.code), code.value.reason, yes(code.value.terminal), yes(is_sent(code))]
        for code in Disconnect
    ]
    assert [row[:4] for row in rows(PROTOCOL, "### Disconnects")] == expected


def test_unsubscribe_codes_are_those_of_the_code() -> None:
    expected = [
        [str(code.value.code), code.value.reason, yes(is_sent(code))] for code in Unsubscribe
    ]
    assert [row[:3] for row in rows(PROTOCOL, "### Unsubscribes")] == expected


def quantity(text: str) -> int:
    """`64 KiB`, `5,000`."""
    number, _, unit = text.partition(" ")
    return int(number.replace(",", "")) * UNITS[unit]


def told(source: str) -> Any:
    """What the code says for the option or constant that is named first in `source`."""
    named = re.match(r"`([\w.]+)`", source)
    assert named, f"no name in: {source}"
    for option in OPTIONS:
        if option.key == named[1]:
            return option.default
    module, _, constant = named[1].rpartition(".")
    return getattr(importlib.import_module(module), constant)


@pytest.mark.parametrize("row", rows(README, "## Limits"), ids=lambda row: row[0])
def test_limits_are_those_of_the_code(row: list[str]) -> None:
    assert quantity(row[1]) == told(row[2])


# ---- decisions


def test_decisions_are_numbered_without_a_hole_and_listed() -> None:
    records = sorted(DECISIONS.glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    listed = set(
        re.findall(
            r"\]\((\d{4}-[\w-]+\.md)\)", (DECISIONS / "README.md").read_text(encoding="utf-8")
        )
    )
    assert listed == {record.name for record in records}
    for record in records:
        text = record.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(record.name[:4])}. ")
        assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequence"))
