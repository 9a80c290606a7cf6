"""service/roomcast/cli/filters.py: which publications are shown."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

import pytest

from roomcast.cli.filters import Filter, field_value, pattern, tag

PAID: Final[dict[str, Any]] = {
    "data": {"status": "paid", "items": [{"id": 7}], "gift": True, "note": "für Ann"},
    "tags": {"shop": "7", "kind": "order"},
    "info": {"user": "ann", "client": "c"},
}


def where(*texts: str) -> Filter:
    return Filter(fields=tuple(map(field_value, texts)))


def test_without_a_filter_all_is_shown() -> None:
    assert Filter().passes(PAID)
    assert Filter().passes({"data": None})


@pytest.mark.parametrize(
    "texts, passes",
    [
        (["status=paid"], True),
        (['status="paid"'], True),
        (["status=open"], False),
        (["items.0.id=7"], True),
        (["items.0.id=7.0"], True),
        (['items.0.id="7"'], False),
        (["items.1.id=7"], False),
        (["items.x.id=7"], False),
        (["gift=true"], True),
        (["gift=1"], False),
        (["missing=null"], False),
        (["status=paid", "gift=false"], False),
        (["status.more=paid"], False),
        (['items=[{"id":7}]'], True),
    ],
)
def test_fields(texts: list[str], *, passes: bool) -> None:
    assert where(*texts).passes(PAID) is passes


@pytest.mark.parametrize("data", [None, 5, "text", []])
def test_data_without_fields(data: Any) -> None:
    assert not where("a=1").passes({"data": data})


@pytest.mark.parametrize(
    "tags, passes",
    [((("shop", "7"),), True), ((("shop", "8"),), False), ((("shop", "7"), ("x", "")), False)],
)
def test_tags(tags: tuple[tuple[str, str], ...], *, passes: bool) -> None:
    assert Filter(tags=tags).passes(PAID) is passes


def test_users() -> None:
    assert Filter(user="ann").passes(PAID)
    assert not Filter(user="bob").passes(PAID)
    assert not Filter(user="ann").passes({"data": 1})


@pytest.mark.parametrize(
    "patterns, passes",
    [(["für"], True), (['"id": 7'], True), (["paid", "open"], False), (["^.{3}status"], False)],
)
def test_patterns_are_looked_for_in_the_json_that_is_shown(
    patterns: list[str], *, passes: bool
) -> None:
    assert Filter(patterns=tuple(map(re.compile, patterns))).passes(PAID) is passes


@pytest.mark.parametrize(
    "kind, found",
    [
        (tag, "shop"),
        (tag, "=7"),
        (field_value, "status"),
        (pattern, "("),
    ],
)
def test_what_is_none(kind: Any, found: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be"):
        kind(found)
