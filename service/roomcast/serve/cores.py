"""Counts the cores that this process may use, by its affinity and the quotas of its cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["quota_cores", "usable_cores"]

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """At least 1. Part of a core does not count."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        cores = os.cpu_count() or 1
    quota = quota_cores(_OWN, _CGROUPS)
    return cores if quota is None else max(1, min(cores, int(quota)))


def quota_cores(own: Path, cgroups: Path) -> float | None:
    """The smallest CPU quota of a cgroup and of those around it, in cores. None = there is none.

    `own`: a file such as /proc/self/cgroup. `cgroups`: the directory that the cgroups are in.
    """
    return min(_quotas(own, cgroups), default=None)


def _quotas(own: Path, cgroups: Path) -> Iterator[float]:
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            for directory in _around(cgroups, path):
                yield from _quota(*_text(directory / "cpu.max").split())
        elif "cpu" in controllers.split(","):  # version 1
            for directory in _around(cgroups / "cpu", path):
                limit = _text(directory / "cpu.cfs_quota_us").split()
                period = _text(directory / "cpu.cfs_period_us").split()
                yield from _quota(*limit, *period)


def _around(root: Path, path: str) -> Iterator[Path]:
    """The directory of a cgroup, and those of all around it.

    Within a container, the path may be one of the machine's, which is not there.
    """
    directory = root / path.lstrip("/")
    yield directory
    for outer in directory.parents:
        if not outer.is_relative_to(root):
            return
        yield outer


def _quota(limit: str = "max", period: str = "") -> Iterator[float]:
    """The quota in cores; nothing for "max", -1 and what is not there."""
    if limit.isdigit() and period.isdigit() and int(period):
        yield int(limit) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
