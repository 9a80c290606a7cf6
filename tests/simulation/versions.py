"""Publications of back ends with versions: which of them may be in the log, and what is told of
those that are not.

A back end hands them to any node, as the server API does: in order or not, several of them with
the same version, and again after an unknown outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from roomcast.log.item import Head, LogItem
from roomcast.log.versions import is_stale
from roomcast.wire.publication import StreamPosition
from roomcast.wire.versions import Version

__all__ = ["RETRIED_WITHIN_S", "Versions"]

Place = tuple[str, str, int]

# The part of runs in which versions begin anew now and then, and that of publications there which
# do.
RENUMBERED: Final = 0.3
ANEW: Final = 0.1
# For how long a back end tries again: the epoch of the log cannot end meanwhile, nor its memory of
# versions.
RETRIED_WITHIN_S: Final = 1800.0


@dataclass(slots=True)
class Versions:
    """What back ends published, and what they were told.

    `random`: its own, so that runs without versions stay what they are.
    """

    random: Random
    published: dict[str, Version] = field(default_factory=dict)
    told: dict[str, Place] = field(default_factory=dict)
    is_renumbered: bool = False
    stale: int = 0
    _newest: dict[str, Version] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.is_renumbered = self.random.random() < RENUMBERED

    def next(self, channel: str) -> tuple[str, Version]:
        """The content and the version of one more: mostly newer than all before."""
        newest = self._newest.get(channel, Version(0, "a" if self.is_renumbered else ""))
        if self.is_renumbered and self.random.random() < ANEW:
            newest = Version(0, self.random.choice("abc"))
        number = max(1, newest.number + self.random.choice((1, 1, 1, 2, 0, 0, -1, -5)))
        version = Version(number, newest.epoch)
        if number > newest.number:
            self._newest[channel] = version
        content = f"state-{len(self.published)}"
        self.published[content] = version
        return content, version

    def answered(self, channel: str, content: str, position: StreamPosition) -> None:
        """It is in the log, or stale."""
        self.told[content] = (channel, position.epoch, position.offset)

    def judge(
        self,
        stream: Iterable[LogItem],
        heads: Iterable[Head],
        contents: Mapping[str, Sequence[str]],
    ) -> Iterator[str]:
        """What is wrong. `stream`, `heads`: all there ever were, in the order of writing.
        `contents`: of each item, by its batch.
        """
        newest_at: dict[Place, Version | None] = {}
        found: dict[str, Place] = {}
        heads = list(heads)
        newest: dict[tuple[str, str], Version | None] = {}
        for head in heads:
            # The first head of an epoch begins it, with what is known of the one before.
            if (head.channel, head.epoch) not in newest:
                newest[head.channel, head.epoch] = head.newest_version
                newest_at[head.channel, head.epoch, head.floor] = head.newest_version
        for item in stream:
            log = (item.channel, item.epoch)
            for offset, content in enumerate(contents[item.batch], item.offset):
                version = self.published.get(content)
                if is_stale(version, newest.get(log)):
                    yield f"{content} ({version}) is in {log} at {offset}, behind {newest[log]}"
                newest[log] = version or newest.get(log)
                newest_at[*log, offset] = newest[log]
                found[content] = (*log, offset)
            newest_at[*log, item.last] = newest.get(log)
            if item.newest_version != newest.get(log):
                yield f"{log} {item.offset} carries {item.newest_version}, not {newest.get(log)}"
        for head in heads:
            known = newest_at.get((head.channel, head.epoch, head.floor), head.newest_version)
            if head.newest_version != known:
                yield f"a head of {head.channel} carries {head.newest_version}, not {known}"
        for content, place in self.told.items():
            if content in found:
                if found[content] != place:
                    yield f"{content} is at {found[content]}, and was said to be at {place}"
                continue
            self.stale += 1
            version = self.published[content]
            if not is_stale(version, newest_at.get(place)):
                yield (
                    f"{content} ({version}) was left out at {place}, where the newest is "
                    f"{newest_at.get(place)}"
                )
