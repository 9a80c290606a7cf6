"""Which publications of a run have which tag, and what a client's filter lets through: by a model
that has nothing in common with the code.
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Mapping
from random import Random
from typing import Any, Final

from roomcast.hooks import PublishEvent, PublishReply
from roomcast.hooks.calls import Hooks
from tests.simulation.checker import PADDING

__all__ = ["KINDS", "Wanted", "filter_of", "hooks", "kind_of", "wanted"]

KINDS: Final = ("a", "b", "c")

# The kinds that a client wants of a channel; None = it has no filter.
Wanted = frozenset[str] | None


def kind_of(content: str) -> str:
    """The kind of a publication, which its content decides."""
    return KINDS[crc32(content.encode()) % len(KINDS)]


def wanted(random: Random) -> Wanted:
    """From all without a filter to very little."""
    if random.random() < 0.25:
        return None
    return frozenset(random.sample(KINDS, random.choice((0, 1, 1, 2))))


def filter_of(kinds: frozenset[str]) -> Mapping[str, Any]:
    """In one of several spellings."""
    others = sorted(set(KINDS) - kinds)
    if len(kinds) == 1:
        [kind] = kinds
        return {"key": "kind", "cmp": "eq", "val": kind}
    if not kinds:
        return {"op": "not", "nodes": [{"key": "kind", "cmp": "ex"}]}
    return {
        "op": "and",
        "nodes": [{"key": "kind", "cmp": "neq", "val": other} for other in others],
    }


async def _tag(event: PublishEvent) -> PublishReply:
    return PublishReply(tags={"kind": kind_of(event.data.rstrip(PADDING))})


def hooks() -> Hooks:
    """Those of a node, which give each publication its tag."""
    return Hooks(publish=_tag)
