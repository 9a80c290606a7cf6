"""What figures were measured on: the machine, the versions and the day."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Final

import roomcast

__all__ = ["setting"]

LIBRARIES: Final = ("aiohttp", "orjson", "aioboto3", "protobuf")


def setting(short: bool) -> list[str]:
    """Lines for a reader."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    form = "the short form, with fewer rounds" if short else "all rounds"
    system = f"{platform.system()} {_kernel(platform.release())}"
    return [
        f"measured on {day}, {form}",
        f"roomcast {roomcast.__version__}, {libraries}",
        f"{platform.python_implementation()} {platform.python_version()} on {system}",
        f"{os.cpu_count()} cores ({_processor()}), {_memory_gib()} GiB of memory",
    ]


def _kernel(release: str) -> str:
    """The numbers of a release, without what its builder added."""
    found = re.match(r"[\d.]+", release)
    return found[0].rstrip(".") if found else release


def _processor() -> str:
    text = _read("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _memory_gib() -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return round(int(found[1]) / 1024**2) if found else 0


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.exists() else ""
