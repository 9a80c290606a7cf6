"""Decides which publications are stale: the channel's log has a newer version.

Theory of operation. An application that publishes whole states may give each one a version. A
channel's log remembers the newest: each item carries it on from the item before, and so does the
channel's head. So whoever knows the end of the log knows the newest version as well, and an append
that lost a race is decided anew, by the item that won. What is stale is not appended. The rule is
Centrifugo's.
"""

from __future__ import annotations

from collections.abc import Iterable

from roomcast.wire.versions import Version

__all__ = ["fresh", "is_stale"]


def is_stale(version: Version | None, newest: Version | None) -> bool:
    """Whether a publication of `version` comes too late for a channel whose newest is `newest`.

    None = it has none, or the channel has none. A version of another epoch than the newest one's
    is never stale.
    """
    if version is None or newest is None or version.number > newest.number:
        return False
    return version.epoch in ("", newest.epoch)


def fresh(
    versions: Iterable[Version | None], newest: Version | None
) -> tuple[list[bool], Version | None]:
    """Which publications of one append are not stale, and the newest version behind them.

    `versions`: theirs, in their order. `newest`: the channel's before them.
    """
    kept: list[bool] = []
    for version in versions:
        kept.append(not is_stale(version, newest))
        if kept[-1] and version is not None:
            newest = version
    return kept, newest
