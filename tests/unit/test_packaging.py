"""The installed distribution: what it needs, what it carries, what it starts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

import roomcast

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "service"
# Ours, by the names that imports have.
OWN: Final = ("roomcast", "stream_lambda")
# Comes with another one, in a version which that one pins; or goes by another name.
BROUGHT_BY: Final = {
    "aiobotocore": "aioboto3",
    "boto3": "aioboto3",
    "botocore": "aioboto3",
    "google": "protobuf",
    "jwt": "pyjwt",
    "prometheus_client": "prometheus-client",
    "re2": "google-re2",
    "werkzeug": "moto",
    "yarl": "aiohttp",
}
# Of an extra: the command that needs it says so, and nothing else imports it.
OPTIONAL: Final = {"shtab"}


@pytest.fixture(scope="module")
def distribution() -> metadata.Distribution:
    # A build leaves metadata beside the source as well, which tell nothing of what is installed.
    installed = [
        each for each in metadata.distributions(name="roomcast") if each.read_text("RECORD")
    ]
    if not installed:
        pytest.skip("roomcast is not installed here (tox installs it)")
    return installed[0]


def requirements(distribution: metadata.Distribution, extra: str | None) -> set[str]:
    """Names, in small letters, of what the distribution, or one of its extras, requires."""
    names: set[str] = set()
    for line in distribution.requires or []:
        name = re.match(r"[\w-]+", line)
        assert name
        marker = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if (marker.group(1) if marker else None) == extra:
            names.add(name.group().lower())
    return names


def libraries(directory: str, *, without: Sequence[str] = ()) -> set[str]:
    """Top-level names of the libraries that the modules under `directory` import."""
    names: set[str] = set()
    for path in (ROOT / directory).rglob("*.py"):
        if any(path.is_relative_to(ROOT / each) for each in without):
            continue
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in part.names}
            elif isinstance(part, ast.ImportFrom) and part.module and not part.level:
                names.add(part.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - set(OWN)


def test_version_is_the_package_s(distribution: metadata.Distribution) -> None:
    assert distribution.version == roomcast.__version__
    assert distribution.metadata["Requires-Python"] == ">=3.11"


def test_every_library_is_declared(distribution: metadata.Distribution) -> None:
    declared = requirements(distribution, None)
    others = ("service/roomcast/dev", "service/roomcast/observe/otel.py")
    used = {BROUGHT_BY.get(name, name) for name in libraries("service", without=others)}
    assert used - OPTIONAL <= declared
    assert used >= OPTIONAL
    dev = {BROUGHT_BY.get(name, name) for name in libraries("service/roomcast/dev")}
    assert dev <= declared | requirements(distribution, "dev")


def test_traces_are_an_extra() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    assert "opentelemetry" in extras["otel"]
    assert "opentelemetry" not in config["options"]["install_requires"] + extras["dev"]


def test_command_is_the_command_line(distribution: metadata.Distribution) -> None:
    (command,) = (entry for entry in distribution.entry_points if entry.group == "console_scripts")
    assert (command.name, command.value) == ("roomcast", "roomcast.__main__:run")


def test_command_answers(distribution: metadata.Distribution) -> None:
    command = Path(sys.executable).with_name("roomcast")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dev" in done.stdout


def test_wheel_carries_every_file_under_one_name(distribution: metadata.Distribution) -> None:
    carried = {str(path) for path in distribution.files or []}
    if not any(path.startswith("roomcast/") for path in carried):
        pytest.skip("roomcast is installed as a link to this directory")
    needed = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*")
        if path.is_file() and not {"__pycache__", "roomcast.egg-info"} & set(path.parts)
    }
    # A link, which `rglob` does not follow.
    needed |= {
        f"roomcast/stream_lambda/{path.name}" for path in (ROOT / "stream_lambda").glob("*.py")
    }
    assert needed - carried == set()
    names = {path.partition("/")[0] for path in carried if not path.startswith("..")}
    assert {each for each in names if not each.endswith(".dist-info")} == {"roomcast"}
