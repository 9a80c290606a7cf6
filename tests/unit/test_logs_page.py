"""docs/logs.md against the code: every event is in the page, and no other."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.rooms import SOURCE

PAGE: Final = Path(__file__).parents[2] / "docs" / "logs.md"
LEVELS: Final = {
    "debug": "debug", "info": "info", "warning": "warning", "error": "error",
    "exception": "error", "critical": "critical",
}  # fmt: skip
# Events whose names are put together, or handed on: by module and what stands there in the code.
# The texts must be in the module as they are here.
MADE: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("ec2.lifecycle", "f'{what}_failed'"): (
        "instance_metadata", "launch_hook", "lifecycle_heartbeat", "terminate_hook",
    ),
    ("ec2.lifecycle", "f'{what}_works_again'"): (
        "instance_metadata", "launch_hook", "lifecycle_heartbeat",
    ),
    ("serve.process", "event"): ("queue_not_deleted", "not_finished", "lease_not_dropped"),
    ("fleet.order_post", "event"): ("order_not_sent", "order_not_mailed"),
    ("observe.logs", "_LIBRARY_EVENT"): ("library_log",),
}  # fmt: skip
# Those of cli.serve are named where they are found out.
CONCERNS: Final = (
    "insecure_mode",
    "nobody_can_connect",
    "hook_in_the_clear",
    "any_page_is_its_visitor",
)
ROW: Final = re.compile(r"\| `(\w+)` \| (\w+) \| ([\w., ]+?) \| (.+?) \| (.+?) \|")

Told = tuple[str, frozenset[str]]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The level and the event of each line that `_log`, or a logger made on the spot, writes."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        logger, method = node.func.value, node.func.attr
        is_ours = (isinstance(logger, ast.Name) and logger.id == "_log") or (
            ast.unparse(logger) == "structlog.get_logger()"
        )
        if is_ours and method == "log":
            yield "warning", node.args[1]
        elif is_ours and method in LEVELS:
            yield LEVELS[method], node.args[0]


@functools.cache
def in_code() -> Mapping[str, Told]:
    """Level and modules of each event."""
    levels: dict[str, set[str]] = defaultdict(set)
    modules: dict[str, set[str]] = defaultdict(set)
    for path in sorted((SOURCE / "roomcast").rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE / "roomcast").with_suffix("").parts)
        source = path.read_text(encoding="utf-8")
        for level, event in calls(ast.parse(source)):
            for name in names(module, event, source):
                levels[name].add(level)
                modules[name].add(module)
    levels["lines_left_out"].add("warning")
    modules["lines_left_out"].add("observe.logs")
    assert [name for name, found in levels.items() if len(found) > 1] == [], "one level each"
    return {name: (found.pop(), frozenset(modules[name])) for name, found in levels.items()}


def names(module: str, event: ast.expr, source: str) -> tuple[str, ...]:
    if isinstance(event, ast.Constant):
        assert isinstance(event.value, str)
        assert re.fullmatch("[a-z_]+", event.value), f"{module}: {event.value!r} is no name"
        return (event.value,)
    told = ast.unparse(event)
    if module == "cli.serve":
        return CONCERNS
    parts = MADE.get((module, told))
    assert parts, f"{module}: which events is {told}? MADE in this test must say so"
    for part in parts:
        assert f'"{part}"' in source, f"{module} has no {part!r} any more"
    ending = re.fullmatch(r"f'\{what\}(\w+)'", told)
    return tuple(part + (ending[1] if ending else "") for part in parts)


def in_page() -> dict[str, Told]:
    text = PAGE.read_text(encoding="utf-8")
    rows = [ROW.fullmatch(line) for line in text.splitlines() if line.startswith("| `")]
    assert all(rows), "each row has five cells, the first a name"
    found = {row[1]: (row[2], frozenset(row[3].split(", "))) for row in rows if row is not None}
    assert len(found) == len(rows), "each event has one row"
    return found


def test_the_page_has_every_event_and_no_other() -> None:
    told, wanted = in_page(), in_code()
    assert len(wanted) > 100
    missing, too_many = wanted.keys() - told.keys(), told.keys() - wanted.keys()
    assert not missing, f"a row in docs/logs.md for each of {sorted(missing)}"
    assert not too_many, f"no code logs {sorted(too_many)} any more"


def test_each_row_says_the_level_and_the_modules() -> None:
    told, wanted = in_page(), in_code()
    assert {name: told[name] for name in told if name in wanted} == {
        name: wanted[name] for name in wanted if name in told
    }


def test_the_events_that_are_handed_on_are_there() -> None:
    source = (SOURCE / "roomcast" / "cli" / "start.py").read_text(encoding="utf-8")
    assert [name for name in CONCERNS if f'"{name}"' not in source] == []
