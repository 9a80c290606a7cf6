"""Decides which publications `roomcast tail` shows."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roomcast.cli.arguments import text

__all__ = ["Filter", "field_value", "pattern", "tag"]


@dataclass(frozen=True, slots=True)
class Filter:
    """All that is given must fit. `patterns`: in the data's JSON text, or in the base64 of bytes.
    `fields`: by their paths in the data, such as "order.status".
    """

    patterns: tuple[re.Pattern[str], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    fields: tuple[tuple[str, Any], ...] = ()
    user: str | None = None

    def passes(self, publication: Mapping[str, Any]) -> bool:
        """Whether it is shown. Raises LookupError, TypeError or AttributeError for what is none."""
        data, tags = publication.get("data"), publication.get("tags") or {}
        if "b64data" in publication:
            data = publication["b64data"]
        if self.user is not None and (publication.get("info") or {}).get("user") != self.user:
            return False
        if any(tags.get(name) != value for name, value in self.tags):
            return False
        if not all(_has(data, path, value) for path, value in self.fields):
            return False
        if not self.patterns:
            return True
        written = json.dumps(data, ensure_ascii=False)
        return all(each.search(written) for each in self.patterns)


def _has(data: Any, path: str, wanted: Any) -> bool:
    """Whether what is at `path` in `data` is `wanted`. Numbers are places in lists."""
    for name in path.split("."):
        if isinstance(data, dict) and name in data:
            data = data[name]
        elif isinstance(data, list) and name.isascii() and name.isdigit() and int(name) < len(data):
            data = data[int(name)]
        else:
            return False
    # In Python, True is 1.
    return (type(data) is type(wanted) and data == wanted) or _is_number(data, wanted)


def _is_number(data: Any, wanted: Any) -> bool:
    numbers = (data, wanted)
    return all(type(each) in (int, float) for each in numbers) and bool(data == wanted)


def pattern(found: str) -> re.Pattern[str]:
    """The type of a regular expression."""
    try:
        return re.compile(text(found))
    except (re.error, RecursionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"must be a regular expression: {error}") from None


def tag(found: str) -> tuple[str, str]:
    """The type of NAME=VALUE."""
    name, is_there, value = text(found).partition("=")
    if not (name and is_there):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE; found {found!r}")
    return name, value


def field_value(found: str) -> tuple[str, Any]:
    """The type of PATH=VALUE. A value that is no JSON is a text."""
    path, value = tag(found)
    try:
        return path, json.loads(value)
    except (ValueError, RecursionError):
        return path, value
