"""Measures the shape of the code from its syntax: `python -m benchmarks.shape [FOLDER …]`.

Without folders it reads service/ and stream_lambda/. The figures serve to compare two versions of
the code, and say nothing by themselves. docs/decisions/0050-the-house.md uses them as one sign
among others.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["CodeShape", "Constructor", "Function", "main", "measured"]

ROOT: Final = Path(__file__).parents[1]
FOLDERS: Final = (ROOT / "service", ROOT / "stream_lambda")
FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
CALLABLE: Final = re.compile(r"\bCallable\b")


@dataclass(frozen=True, slots=True, order=True)
class Function:
    """One function. `lines`: from `def` to the end, with docstring and comments, without
    decorators.

    `name`: with file and class.
    """

    lines: int
    name: str


@dataclass(frozen=True, slots=True, order=True)
class Constructor:
    """One constructor. `parameters`: those of `__init__` without `self`, or a dataclass's init
    fields.

    `callables`: the number of these that are annotated as a Callable, directly or by an alias in
    the same file. `is_data`: a dataclass without an `__init__` of its own.
    """

    parameters: int
    callables: int
    name: str
    is_data: bool


@dataclass(slots=True)
class CodeShape:
    """The figures. `late`: attributes set on an object of another file after its construction.

    Attributes of `self`, and those of a class in the same file, do not count. Neither do `+=` and
    the like.
    """

    files: int
    lines: int
    functions: list[Function]
    constructors: list[Constructor]
    late: list[str]


def measured(sources: Iterable[tuple[str, str]]) -> CodeShape:
    """The shape of `sources`: file names and texts."""
    shape = CodeShape(0, 0, [], [], [])
    for file, text in sources:
        tree = ast.parse(text)
        shape.files += 1
        shape.lines += len(text.splitlines())
        aliases = set(_callable_aliases(tree))
        for owner, part in _parts(tree, ""):
            name = f"{file}::{owner}{part.name}"
            if isinstance(part, FUNCTIONS):
                shape.functions.append(Function(_lines(part), name))
            else:
                own = _own_constructor(part)
                taken = _fields(part) if own is None else _parameters(own)
                called = sum(_is_callable(each, aliases) for each in taken)
                if taken:
                    shape.constructors.append(Constructor(len(taken), called, name, own is None))
        shape.late += [f"{file}:{line}: {target}" for line, target in _late(tree)]
    return shape


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _parts(
    tree: ast.AST, owner: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Every function and class within `tree`, with the names of the enclosing ones."""
    for part in ast.iter_child_nodes(tree):
        if isinstance(part, (*FUNCTIONS, ast.ClassDef)):
            yield owner, part
            yield from _parts(part, f"{owner}{part.name}.")
        else:
            yield from _parts(part, owner)


def _own_constructor(part: ast.ClassDef) -> ast.FunctionDef | None:
    found = (each for each in part.body if isinstance(each, ast.FunctionDef))
    return next((each for each in found if each.name == "__init__"), None)


def _parameters(constructor: ast.FunctionDef) -> list[str]:
    """The annotations of the parameters, "" for a parameter without one."""
    given = constructor.args
    several = [each for each in (given.vararg, given.kwarg) if each is not None]
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *several]
    return [_text(each.annotation) for each in every[1:]]


def _fields(part: ast.ClassDef) -> list[str]:
    """The annotations of a dataclass's init fields. None for another class."""
    if not any("dataclass" in ast.unparse(each) for each in part.decorator_list):
        return []
    return [
        _text(inner.annotation)
        for inner in part.body
        if isinstance(inner, ast.AnnAssign)
        and not _text(inner.annotation).startswith("ClassVar")
        and "init=False" not in (ast.unparse(inner.value) if inner.value else "")
    ]


def _text(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation)


def _callable_aliases(tree: ast.Module) -> Iterator[str]:
    """Names of the file for a type of callable: `Send = Callable[[bytes], None]`."""
    for part in tree.body:
        match part:
            case (
                ast.Assign(targets=[ast.Name(name)], value=value)
                | ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value)
            ) if CALLABLE.match(ast.unparse(value)):
                yield name


def _is_callable(annotation: str, aliases: set[str]) -> bool:
    words = set(re.findall(r"\w+", annotation))
    return "Callable" in words or not words.isdisjoint(aliases)


def _late(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each `other.attribute = …` whose attribute no class of the file has."""
    known = {
        name
        for part in ast.walk(tree)
        if isinstance(part, ast.ClassDef)
        for name in _attributes(part)
    }
    for part in ast.walk(tree):
        match part:
            case ast.Assign():
                targets = part.targets
            case ast.AnnAssign():
                targets = [part.target]
            case _:
                continue
        for target in targets:
            for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                if (
                    isinstance(each, ast.Attribute)
                    and not _is_self(each.value)
                    and each.attr not in known
                ):
                    yield each.lineno, ast.unparse(each)


def _attributes(part: ast.ClassDef) -> Iterator[str]:
    """The attributes that the body of a class, or a method by `self`, sets."""
    for inner in ast.walk(part):
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            yield inner.target.id
        if (
            isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and _is_self(inner.value)
        ):
            yield inner.attr


def _is_self(owner: ast.expr) -> bool:
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def _sources(folders: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Each file once, without symbolic links to folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if not any(each.is_symlink() for each in (path, *path.parents)):
                yield str(path.relative_to(folder.parent)), path.read_text(encoding="utf-8")


def _report(shape: CodeShape, longest: int) -> Iterator[str]:
    yield f"{shape.files} files, {shape.lines} lines"
    yield f"longest function: {max(shape.functions).lines} lines"
    yield from _top(((each.lines, each.name) for each in shape.functions), longest)
    for title, is_data in (("constructor", False), ("dataclass", True)):
        own = [each for each in shape.constructors if each.is_data is is_data]
        taken = [each.parameters for each in own]
        yield f"{title} parameters: {sum(taken)} in {len(own)}, {max(taken)} at most"
        yield from _top(((each.parameters, each.name) for each in own), longest)
        called = [(each.callables, each.name) for each in own if each.callables]
        yield f"callables among them: {sum(count for count, _ in called)} in {len(called)}"
        yield from _top(called, longest)
    yield f"attributes set on objects of another file: {len(shape.late)}"
    yield from (f"       {each}" for each in shape.late)


def _top(counted: Iterable[tuple[int, str]], longest: int) -> Iterator[str]:
    """The greatest first."""
    for count, name in sorted(counted, reverse=True)[:longest]:
        yield f"  {count:4} {name}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shape", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=FOLDERS, metavar="FOLDER")
    parser.add_argument("--longest", type=int, default=5, help="how many of each to name (5)")
    given = parser.parse_args()
    shape = measured(_sources(each.resolve() for each in given.folders))
    sys.stdout.writelines(f"{line}\n" for line in _report(shape, given.longest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
