"""Keeps the filters of a node's subscribers: equal ones are one object, made once.

So a filter that a thousand subscribers have takes the memory of one, and a publication is tested
once for all of them (sieve.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Final

from roomcast.wire.encoding import Sent, tags_of
from roomcast.wire.tags_filter import Filter, predicate, size_of

__all__ = ["FILTERS_BYTES_MAX", "TagsFilter", "TagsFilters"]

# Memory that all different filters of a node take. Beyond it, nobody gets one that is not there.
FILTERS_BYTES_MAX: Final = 64 * 1024 * 1024
# What a node takes in memory, approximately: its functions, and twice its place in the tree. And
# what each byte of a text does: most texts are short.
_NODE_BYTES: Final = 800
_TEXT_FACTOR: Final = 16


class TagsFilter:
    """One filter, compared by identity. `passes`: whether a publication with such tags does.

    `nodes`: what a test costs at most. `weight`: bytes of memory, approximately.
    """

    __slots__ = ("__weakref__", "nodes", "passes", "weight")

    def __init__(self, tree: Filter) -> None:
        self.nodes, text_bytes = size_of(tree)
        self.weight = self.nodes * _NODE_BYTES + text_bytes * _TEXT_FACTOR
        self.passes = predicate(tree)

    def of(self, published: Iterable[Sent]) -> tuple[Sent, ...]:
        """Those of `published` that pass."""
        passes = self.passes
        return tuple(sent for sent in published if passes(tags_of(sent)))


class TagsFilters:
    """The filters of a node, each as long as somebody has it."""

    def __init__(self, bytes_max: int = FILTERS_BYTES_MAX) -> None:
        self._filters: weakref.WeakValueDictionary[Filter, TagsFilter] = (
            weakref.WeakValueDictionary()
        )
        self._bytes_max = bytes_max
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._filters)

    @property
    def has_room(self) -> bool:
        """Whether the filters that there are, the newest included, are not too many."""
        return self.bytes <= self._bytes_max

    def shared(self, tree: Filter) -> TagsFilter:
        """The filter of `tree`: the one that is there, or a new one."""
        if (found := self._filters.get(tree)) is None:
            found = self._filters[tree] = TagsFilter(tree)
            self.bytes += found.weight
            weakref.finalize(found, self._gone, found.weight).atexit = False
        return found

    def _gone(self, weight: int) -> None:
        self.bytes -= weight
