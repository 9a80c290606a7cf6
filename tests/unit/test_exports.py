"""Every module says what it exports, and has what it says."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = (ROOT / "service" / "roomcast", ROOT / "stream_lambda")
PATHS: Final = [
    path.relative_to(source.parent) for source in SOURCES for path in sorted(source.rglob("*.py"))
]


def located(path: Path) -> Path:
    return next(source.parent / path for source in SOURCES if (source.parent / path).exists())


def declared(source: str) -> list[str] | None:
    """The literal `__all__` of a module's text, or None."""
    for statement in ast.parse(source).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value)
            ):
                return [str(name) for name in ast.literal_eval(value)]
    return None


def exports_nothing(source: str) -> bool:
    """Is there nothing but a docstring and dunder constants?"""
    return all(
        isinstance(statement, ast.Expr)
        or (
            isinstance(statement, ast.Assign)
            and all(
                isinstance(target, ast.Name) and target.id.startswith("__")
                for target in statement.targets
            )
        )
        for statement in ast.parse(source).body
    )


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_module_has_what_it_exports(path: Path) -> None:
    source = located(path).read_text(encoding="utf-8")
    names = declared(source)
    if path.name == "__init__.py" and exports_nothing(source):
        return
    assert names is not None, f"{path} has no __all__"
    if path.name == "__main__.py":
        return  # importing it may be running it
    assert len(set(names)) == len(names)
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_module_begins_with_its_duty(path: Path) -> None:
    assert ast.get_docstring(ast.parse(located(path).read_text(encoding="utf-8")))


def test_a_missing_list_is_found() -> None:
    assert declared("x = 1") is None
    assert declared("__all__ = ['x']\nx = 1") == ["x"]
    assert declared("__all__: list[str] = []") == []
    assert exports_nothing('"""Doc."""\n__version__ = "1"')
    assert not exports_nothing("def f(): ...")
