"""service/roomcast/serve/cores.py: the cores that may be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roomcast.serve import cores
from roomcast.serve.cores import quota_cores, usable_cores


def machine(home: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Its /proc/self/cgroup and its /sys/fs/cgroup."""
    path = home / "own"
    path.write_text(own)
    root = home / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return path, root


V1 = "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/\n"


@pytest.mark.parametrize(
    "own, files, expected",
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a.slice/b\n", {"a.slice/b/cpu.max": "400000 100000\n"}, 4.0),
        (
            "0::/a.slice/b\n",
            {"a.slice/cpu.max": "200000 100000\n", "a.slice/b/cpu.max": "400000 100000\n"},
            2.0,
        ),
        # As a container sees it: the path is the machine's, and only the root is there.
        ("0::/docker/a\n", {"cpu.max": "100000 50000\n"}, 2.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        (
            V1,
            {
                "cpu/docker/a/cpu.cfs_quota_us": "200000\n",
                "cpu/docker/a/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
    ],
)
def test_quotas(own: str, files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    assert quota_cores(*machine(tmp_path, own, files)) == expected


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    assert quota_cores(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.parametrize("quota, expected", [(None, 4), (8.0, 4), (2.9, 2), (0.5, 1)])
def test_the_fewest_count(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores, "quota_cores", lambda _own, _cgroups: quota)
    assert usable_cores() == expected


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
