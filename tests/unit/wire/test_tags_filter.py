"""service/roomcast/wire/tags_filter.py: a filter means what Centrifugo's means, and is bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.wire.tags_filter import (
    CONTAINS_NODES,
    DEPTH_MAX,
    NODES_MAX,
    TEXT_BYTES_MAX,
    InvalidFilter,
    both,
    filter_of,
    number,
    predicate,
    size_of,
)

Node = dict[str, Any]

KEYS: Final = st.sampled_from(["a", "b", "c"])
VALUES: Final = st.sampled_from(
    ["x", "xy", "yx", "é", "1", "01", "1.0", "-1", "+1", "10", "9", "1e1", ".5", "0.5", "1."]
)
TEXT_CMPS: Final = ("eq", "neq", "sw", "ew", "ct")
NUMBER_CMPS: Final = ("gt", "gte", "lt", "lte")


def leaves() -> st.SearchStrategy[Node]:
    one = st.builds(
        lambda cmp, key, val: {"key": key, "cmp": cmp, "val": val},
        st.sampled_from(TEXT_CMPS + NUMBER_CMPS),
        KEYS,
        VALUES,
    )
    many = st.builds(
        lambda cmp, key, vals: {"op": "", "key": key, "cmp": cmp, "vals": vals},
        st.sampled_from(["in", "nin"]),
        KEYS,
        st.lists(VALUES | st.just(""), min_size=1, max_size=4),
    )
    none = st.builds(
        lambda cmp, key: {"key": key, "cmp": cmp}, st.sampled_from(["ex", "nex"]), KEYS
    )
    return one | many | none


NODES: Final = st.recursive(
    leaves(),
    lambda inner: (
        st.builds(
            lambda op, nodes: {"op": op, "nodes": nodes},
            st.sampled_from(["and", "or"]),
            st.lists(inner, min_size=1, max_size=3),
        )
        | inner.map(lambda node: {"op": "not", "nodes": [node]})
    ),
    max_leaves=8,
)
TAGS: Final = st.dictionaries(KEYS, VALUES | st.just(""))


def naive(node: Node, tags: Mapping[str, str]) -> bool:
    """What the protocol says, read aloud."""
    op, cmp = node.get("op", ""), node.get("cmp")
    if op == "and":
        return all(naive(each, tags) for each in node["nodes"])
    if op == "or":
        return any(naive(each, tags) for each in node["nodes"])
    if op == "not":
        return not naive(node["nodes"][0], tags)
    key, val = node["key"], node.get("val", "")
    if cmp in ("in", "nin"):
        return bool((tags.get(key, "") in node["vals"]) == (cmp == "in"))
    if cmp in ("ex", "nex"):
        return bool((key in tags) == (cmp == "ex"))
    if key not in tags:
        return bool(cmp == "neq")
    tag = tags[key]
    if cmp in TEXT_CMPS:
        texts: dict[str, bool] = {
            "eq": tag == val,
            "neq": tag != val,
            "sw": tag[: len(val)] == val,
            "ew": tag[-len(val) :] == val,
            "ct": tag.find(val) >= 0,
        }
        return texts[str(cmp)]
    if not all(re.fullmatch(r"[-+]?\d+(\.\d+)?", each) for each in (tag, val)):
        return False
    one, other = Fraction(tag), Fraction(val)
    return {"gt": one > other, "gte": one >= other, "lt": one < other, "lte": one <= other}[
        str(cmp)
    ]


@given(NODES, st.lists(TAGS, min_size=1, max_size=5))
def test_the_predicate_says_what_the_protocol_does(
    node: Node, publications: list[dict[str, str]]
) -> None:
    passes = predicate(filter_of(node))
    for tags in publications:
        assert passes(tags) == naive(node, tags), tags


@given(NODES)
def test_equal_filters_are_equal_and_their_size_is_known(node: Node) -> None:
    tree = filter_of(node)
    again = filter_of(json.loads(json.dumps(node)))
    assert tree == again
    assert hash(tree) == hash(again)

    def count(each: Node) -> int:
        own = CONTAINS_NODES if each.get("cmp") == "ct" else 1
        return own + sum(map(count, each.get("nodes", [])))

    assert size_of(tree)[0] == count(node)


def test_the_order_of_values_makes_no_difference() -> None:
    one, other = (
        filter_of({"key": "a", "cmp": "in", "vals": vals}) for vals in (["x", "y"], ["y", "x", "y"])
    )
    assert one == other


@pytest.mark.parametrize(
    "node",
    [
        None,
        [],
        "a",
        {},
        {"op": ""},
        {"key": "a", "val": "x"},
        {"key": "a", "cmp": "is", "val": "x"},
        {"key": "a", "cmp": ["eq"], "val": "x"},
        {"key": "a", "cmp": "eq"},
        {"key": "a", "cmp": "eq", "val": ""},
        {"key": "a", "cmp": "eq", "val": 1},
        {"key": "a", "cmp": "eq", "val": "x", "vals": ["x"]},
        {"cmp": "eq", "val": "x"},
        {"key": 1, "cmp": "eq", "val": "x"},
        {"key": 0, "cmp": "ex"},
        {"key": "a", "cmp": "in"},
        {"key": "a", "cmp": "in", "vals": []},
        {"key": "a", "cmp": "in", "vals": "x"},
        {"key": "a", "cmp": "in", "vals": [None]},
        {"key": "a", "cmp": "nin", "val": "x", "vals": ["x"]},
        {"key": "a", "cmp": "ex", "val": "x"},
        {"key": "a", "cmp": "nex", "vals": ["x"]},
        {"op": "xor", "nodes": [{"key": "a", "cmp": "ex"}]},
        {"op": ["and"], "nodes": [{"key": "a", "cmp": "ex"}]},
        {"op": False, "key": "a", "cmp": "ex"},
        {"op": "and"},
        {"op": "or", "nodes": []},
        {"op": "or", "nodes": {}},
        {"op": "not", "nodes": [{"key": "a", "cmp": "ex"}] * 2},
        {"op": "not", "nodes": [{}]},
        {"key": "a", "cmp": "eq", "val": "\ud800"},
    ],
)
def test_what_is_no_filter_is_refused(node: Any) -> None:
    with pytest.raises(InvalidFilter):
        filter_of(node)


@pytest.mark.parametrize(
    "node",
    [
        {"cmp": "ex"},
        {"cmp": "nex", "key": None, "val": None, "vals": None, "nodes": None, "op": None},
        {"key": "a", "cmp": "gt", "val": "no number"},
        # What a node has no use for is passed over, as Centrifugo does.
        {"key": "a", "cmp": "ex", "nodes": [{}]},
        {"op": "not", "key": "a", "cmp": "?", "nodes": [{"key": "a", "cmp": "ex"}]},
    ],
)
def test_what_looks_odd_and_is_one(node: Any) -> None:
    predicate(filter_of(node))({"a": "1"})


def deep(depth: int) -> Node:
    node: Node = {"key": "a", "cmp": "ex"}
    for _ in range(depth - 1):
        node = {"op": "not", "nodes": [node]}
    return node


def test_a_filter_is_bounded() -> None:
    leaf, contains = {"key": "a", "cmp": "ex"}, {"key": "a", "cmp": "ct", "val": "x"}
    assert size_of(filter_of({"op": "or", "nodes": [leaf] * (NODES_MAX - 1)}))[0] == NODES_MAX
    assert predicate(filter_of(deep(DEPTH_MAX)))({"a": ""}) is (DEPTH_MAX % 2 == 1)
    longest = {"key": "a", "cmp": "eq", "val": "é" * ((TEXT_BYTES_MAX - 4) // 2)}
    assert size_of(filter_of(longest))[1] <= TEXT_BYTES_MAX
    for node in (
        {"op": "or", "nodes": [leaf] * NODES_MAX},
        {"op": "or", "nodes": [contains] * (NODES_MAX // CONTAINS_NODES)},
        deep(DEPTH_MAX + 1),
        deep(900),
        longest | {"val": longest["val"] + "é" * 4},
        {"key": "a", "cmp": "in", "vals": [""] * TEXT_BYTES_MAX},
    ):
        with pytest.raises(InvalidFilter):
            filter_of(node)


def test_what_passes_both() -> None:
    one, other = (filter_of({"key": key, "cmp": "ex"}) for key in "ab")
    assert both(None, None) is None
    assert both(one, None) == both(None, one) == both(one, one) == one
    together = both(one, other)
    assert together is not None
    passes = predicate(together)
    assert [passes(tags) for tags in ({"a": ""}, {"b": ""}, {"a": "", "b": ""})] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    "text, value",
    [
        ("1", 1),
        ("-0.50", Decimal("-0.5")),
        ("+7", 7),
        ("0" * 199 + "1", 1),
        # Exactly, where doubles would be equal.
        ("9007199254740993", 9007199254740993),
        ("0.1234567890123456789", Decimal("0.1234567890123456789")),
        ("0.12345678901234567890", None),
        ("0" * 200 + "1", None),
        ("", None),
        ("+", None),
        (".5", None),
        ("5.", None),
        ("1e3", None),
        ("0x10", None),
        (" 1", None),
        ("1\n", None),
        ("1_000", None),
        ("٣", None),
        ("NaN", None),
        ("Infinity", None),
    ],
)
def test_numbers(text: str, value: Decimal | int | None) -> None:
    assert number(text) == value
