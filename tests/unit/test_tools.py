"""The tools are the same wherever they are called: tox.ini has their versions,
pyproject.toml their settings.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
# What `@settings` takes over where a file is imported.
HERE: Final = hypothesis.settings(max_examples=1)


def pinned(environment: str) -> str:
    """The one requirement of a tox environment."""
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    return tox[f"testenv:{environment}"]["deps"].strip()


def hooks() -> dict[str, Any]:
    """What is run before a commit, by id."""
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    return {hook["id"]: hook for each in yaml.safe_load(text)["repos"] for hook in each["hooks"]}


@pytest.mark.parametrize("name", ["lint", "format"])
def test_a_commit_is_looked_at_with_the_version_of_tox(name: str) -> None:
    assert hooks()[name]["additional_dependencies"] == [pinned("lint")]


def test_types_are_checked_with_what_make_installs() -> None:
    assert hooks()["types"]["entry"] == ".venv/bin/mypy"


def test_make_installs_the_versions_of_tox() -> None:
    listed = subprocess.run(
        ["make", "--dry-run", "--always-make", f"PYTHON={sys.executable}", "dev"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    ).stdout
    [install] = re.findall(r"--editable '\.\[dev,test,otel\]' (.*)", listed)
    assert install.split() == [pinned("lint"), pinned("types")]


def test_editors_wrap_where_ruff_does() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    text = (ROOT / ".editorconfig").read_text(encoding="utf-8")
    assert re.findall(r"max_line_length = (\d+)", text) == [str(ruff["line-length"])]


def test_the_bounds_of_hypothesis_are_set_before_a_file_takes_them_over() -> None:
    assert hypothesis.settings.get_current_profile_name() in ("roomcast", "brief", "explore")
    assert HERE.deadline is None
