"""Reads filters of publications by their tags, and makes a predicate of each.

A filter is a tree, FilterNode in the Centrifuge protocol. A leaf compares the value of one tag; a
branch joins others by "and", "or" and "not". The names, what makes a filter invalid, and what each
comparison does without its tag are Centrifugo's (docs/payloads.md).

A filter comes from clients, so it is bounded while it is read, before anything is built from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Final

from roomcast.frozen import frozen
from roomcast.wire.publication import Json

__all__ = [
    "CONTAINS_NODES",
    "DEPTH_MAX",
    "NODES_MAX",
    "TEXT_BYTES_MAX",
    "Branch",
    "Filter",
    "InvalidFilter",
    "Leaf",
    "Predicate",
    "both",
    "filter_of",
    "number",
    "predicate",
    "size_of",
]

# Nodes of one filter, leaves included. A publication is tested against each: some 10 µs.
NODES_MAX: Final = 128
# As so many counts "ct", which looks through all of a tag: 0.2 ms if that is a publication's most.
CONTAINS_NODES: Final = 8
# Nodes within each other. A test calls as deep.
DEPTH_MAX: Final = 16
# Bytes of all keys and values of one filter, and one more for each: room for a thousand tickers.
TEXT_BYTES_MAX: Final = 16 * 1024

# A number as Centrifugo reads it: no exponent, no point without digits on both of its sides, up to
# 19 digits behind it, 200 characters at most.
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]{1,19})?")
_NUMBER_CHARS_MAX: Final = 200
# A publication's number is compared by many filters.
_NUMBERS_KEPT: Final = 1024

Tags = Mapping[str, str]
# Whether a publication with these tags passes.
Predicate = Callable[[Tags], bool]


class InvalidFilter(ValueError):
    """It is no filter, or larger than one may be: error 107."""


@frozen
class Leaf:
    """A comparison. `values`: one, none, or for "in" and "nin" any number, sorted."""

    cmp: str
    key: str
    values: tuple[str, ...]


@frozen
class Branch:
    """`op`: "and", "or", or "not", which has one node."""

    op: str
    nodes: tuple[Filter, ...]


Filter = Leaf | Branch


# ---- reading


class _Room:
    """What is left of a filter's bounds while it is read."""

    __slots__ = ("bytes", "nodes")

    def __init__(self) -> None:
        self.nodes, self.bytes = NODES_MAX, TEXT_BYTES_MAX

    def take_nodes(self, count: int) -> None:
        self.nodes -= count
        if self.nodes < 0:
            raise InvalidFilter(f"more than {NODES_MAX} nodes")

    def text(self, found: object) -> str:
        """`found`, which must be a text and fit in."""
        if not isinstance(found, str):
            raise InvalidFilter("a key or value is not a string")
        self.bytes -= 1 + (len(found) if found.isascii() else len(found.encode()))
        if self.bytes < 0:
            raise InvalidFilter(f"more than {TEXT_BYTES_MAX} bytes of keys and values")
        return found

    def member(self, node: Mapping[str, object], name: str) -> str:
        found = node.get(name)
        return "" if found is None else self.text(found)


def filter_of(node: Json) -> Filter:
    """The filter in the JSON object `node`. Null counts as absent. Raises InvalidFilter.

    Filters that differ only in the order of the values of "in" and "nin" are equal.
    """
    try:
        return _read(node, _Room(), DEPTH_MAX)
    except UnicodeEncodeError as error:
        raise InvalidFilter("a key or value is not valid Unicode") from error


def _read(node: object, room: _Room, depth: int) -> Filter:
    if depth == 0:
        raise InvalidFilter(f"nodes more than {DEPTH_MAX} times within each other")
    if not isinstance(node, dict):
        raise InvalidFilter("a node is not an object")
    room.take_nodes(1)
    op = node.get("op")
    if op in (None, ""):
        return _leaf(node, room)
    if op not in ("and", "or", "not"):
        raise InvalidFilter("an op that is not known")
    nodes = _list(node, "nodes")
    if not nodes or (op == "not" and len(nodes) != 1):
        raise InvalidFilter(f"a number of nodes that {op!r} cannot have")
    return Branch(op, tuple(_read(each, room, depth - 1) for each in nodes))


def _leaf(node: Mapping[str, object], room: _Room) -> Leaf:
    cmp = node.get("cmp")
    kind = _VALUES_OF.get(cmp) if isinstance(cmp, str) else None
    if kind is None:
        raise InvalidFilter("a cmp that is not known")
    key, value = room.member(node, "key"), room.member(node, "val")
    found = _list(node, "vals")
    if len(found) > room.bytes:
        raise InvalidFilter(f"more than {TEXT_BYTES_MAX} bytes of keys and values")
    values = [room.text(each) for each in found]
    if (bool(value), bool(values)) != kind:
        raise InvalidFilter("val and vals do not go with the cmp")
    if not key and cmp not in _WITHOUT_KEY:
        raise InvalidFilter("a comparison without key")
    assert isinstance(cmp, str), "its kind was found"
    room.take_nodes(_nodes_of(cmp) - 1)
    return Leaf(cmp, key, (value,) if value else tuple(sorted(set(values))))


def _nodes_of(cmp: str) -> int:
    return CONTAINS_NODES if cmp == "ct" else 1


def _list(node: Mapping[str, object], name: str) -> Sequence[object]:
    found = node.get(name)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise InvalidFilter(f"{name} are not a list")
    return found


def both(one: Filter | None, other: Filter | None) -> Filter | None:
    """What passes both. None: all does."""
    if one is None or other is None:
        return one or other
    return one if one == other else Branch("and", (one, other))


def size_of(of: Filter) -> tuple[int, int]:
    """Its nodes ("ct" counts as several), and the bytes of its keys and values (one more for
    each).
    """
    if isinstance(of, Leaf):
        return _nodes_of(of.cmp), sum(1 + len(each.encode()) for each in (of.key, *of.values))
    sizes = [size_of(each) for each in of.nodes]
    return 1 + sum(nodes for nodes, _ in sizes), sum(size for _, size in sizes)


# ---- testing


def predicate(of: Filter) -> Predicate:
    """The test of a publication's tags, made once for all publications. It does not raise."""
    if isinstance(of, Leaf):
        return _COMPARISONS[of.cmp](of.key, of.values)
    tests = tuple(predicate(each) for each in of.nodes)
    if of.op == "not":
        [inner] = tests
        return lambda tags: not inner(tags)
    if of.op == "and":
        return _all_of(tests)
    return _any_of(tests)


def _all_of(tests: tuple[Predicate, ...]) -> Predicate:
    def passes(tags: Tags) -> bool:
        # A loop, because `all` over a generator takes three times as long.
        for test in tests:  # noqa: SIM110
            if not test(tags):
                return False
        return True

    return passes


def _any_of(tests: tuple[Predicate, ...]) -> Predicate:
    def passes(tags: Tags) -> bool:
        for test in tests:  # noqa: SIM110
            if test(tags):
                return True
        return False

    return passes


def number(text: str) -> Decimal | None:
    """The number in `text`, exactly. None: there is none."""
    return _number(text) if len(text) <= _NUMBER_CHARS_MAX else None


@lru_cache(_NUMBERS_KEPT)
def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _equal(key: str, values: tuple[str, ...]) -> Predicate:
    [wanted] = values
    return lambda tags: tags.get(key) == wanted


def _not_equal(key: str, values: tuple[str, ...]) -> Predicate:
    [wanted] = values
    return lambda tags: tags.get(key) != wanted


def _in(key: str, values: tuple[str, ...]) -> Predicate:
    wanted = frozenset(values)
    # An absent tag counts as an empty one, here and in the next.
    return lambda tags: tags.get(key, "") in wanted


def _not_in(key: str, values: tuple[str, ...]) -> Predicate:
    wanted = frozenset(values)
    return lambda tags: tags.get(key, "") not in wanted


def _exists(key: str, _: tuple[str, ...]) -> Predicate:
    return lambda tags: key in tags


def _not_exists(key: str, _: tuple[str, ...]) -> Predicate:
    return lambda tags: key not in tags


def _text_test(test: Callable[[str, str], bool]) -> Callable[[str, tuple[str, ...]], Predicate]:
    """A test of the tag's text, which fails without the tag: no value of a leaf is empty."""

    def made(key: str, values: tuple[str, ...]) -> Predicate:
        [wanted] = values
        return lambda tags: test(tags.get(key, ""), wanted)

    return made


def _number_test(
    test: Callable[[Decimal, Decimal], bool],
) -> Callable[[str, tuple[str, ...]], Predicate]:
    """A test of numbers, which fails without a number on either side."""

    def made(key: str, values: tuple[str, ...]) -> Predicate:
        [wanted] = values
        bound = number(wanted)
        if bound is None:
            return lambda _: False

        def passes(tags: Tags) -> bool:
            found = number(tags.get(key, ""))
            return found is not None and test(found, bound)

        return passes

    return made


_COMPARISONS: Final[Mapping[str, Callable[[str, tuple[str, ...]], Predicate]]] = {
    "eq": _equal,
    "neq": _not_equal,
    "in": _in,
    "nin": _not_in,
    "ex": _exists,
    "nex": _not_exists,
    "sw": _text_test(str.startswith),
    "ew": _text_test(str.endswith),
    "ct": _text_test(str.__contains__),
    "gt": _number_test(Decimal.__gt__),
    "gte": _number_test(Decimal.__ge__),
    "lt": _number_test(Decimal.__lt__),
    "lte": _number_test(Decimal.__le__),
}
_WITHOUT_KEY: Final = frozenset({"ex", "nex"})
# Whether each takes a `val`, and whether it takes `vals`.
_VALUES_OF: Final[Mapping[str, tuple[bool, bool]]] = {
    cmp: (cmp not in ("in", "nin", "ex", "nex"), cmp in ("in", "nin")) for cmp in _COMPARISONS
}
