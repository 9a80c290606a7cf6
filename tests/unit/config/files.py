"""A configuration file, and how one that is wrong is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from roomcast.config import ConfigError, load

__all__ = ["refusal", "write"]


def write(directory: Path, text: str) -> Path:
    """`text` as a file in `directory`."""
    path = directory / "roomcast.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, environ: dict[str, str] | None = None) -> str:
    """The one line with which this file, or environment, is refused."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    message = str(caught.value)
    assert "\n" not in message
    return message
