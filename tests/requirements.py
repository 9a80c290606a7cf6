"""What a test may need that is not everywhere: a browser, Node.js with packages, Terraform, and the
extra `otel`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

__all__ = [
    "CDK_DIRECTORY",
    "JS_DIRECTORY",
    "KNOWN",
    "Missing",
    "find_browser",
    "find_node",
    "find_opentelemetry",
    "find_terraform",
    "obtain",
    "required",
]

JS_DIRECTORY: Final = Path(__file__).parent / "acceptance" / "js"
CDK_DIRECTORY: Final = Path(__file__).parents[1] / "deploy" / "cdk"
# The names that ROOMCAST_REQUIRE may list.
KNOWN: Final = frozenset({"browser", "node", "otel", "terraform"})
_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")


class Missing(Exception):
    """A requirement is not there; the text says what would help."""


def find_browser(environ: Mapping[str, str] = os.environ) -> str:
    """The path of a Chromium: ROOMCAST_CHROMIUM, else one that is on the PATH. Raises Missing."""
    named = environ.get("ROOMCAST_CHROMIUM")
    if named:
        if shutil.which(named) is None:
            raise Missing(f"ROOMCAST_CHROMIUM names no program: {named}")
        return named
    for name in _BROWSERS:
        if path := shutil.which(name, path=environ.get("PATH")):
            return path
    raise Missing("no Chromium on the PATH (install one, or name it in ROOMCAST_CHROMIUM)")


def find_node(environ: Mapping[str, str] = os.environ, js_directory: Path = JS_DIRECTORY) -> str:
    """The path of Node.js, once the packages of `js_directory` are installed, those for
    development as well. Raises Missing.
    """
    path = shutil.which("node", path=environ.get("PATH"))
    if path is None:
        raise Missing("no Node.js on the PATH")
    asked = json.loads((js_directory / "package.json").read_text())
    packages = asked.get("dependencies", {}) | asked.get("devDependencies", {})
    for name, version in packages.items():
        manifest = js_directory / "node_modules" / name / "package.json"
        # One under another name is called npm:NAME@VERSION.
        wanted = version.rpartition("@")[2]
        if not manifest.is_file() or json.loads(manifest.read_text())["version"] != wanted:
            raise Missing(f"the npm package {name} {version} is not installed (make js)")
    return path


def find_terraform(environ: Mapping[str, str] = os.environ) -> str:
    """The path of Terraform, which nothing here installs. Raises Missing."""
    path = shutil.which("terraform", path=environ.get("PATH"))
    if path is None:
        raise Missing("no Terraform on the PATH")
    return path


def find_opentelemetry() -> str:
    """Where OpenTelemetry's SDK and its exporter are installed. Raises Missing."""
    try:
        import opentelemetry.exporter.otlp.proto.http as exporter
        import opentelemetry.sdk.trace as sdk
    except ImportError as error:
        raise Missing(f"the extra otel is not installed (make dev): {error}") from error
    assert exporter.__file__
    return str(sdk.__file__)


def required(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """What ROOMCAST_REQUIRE lists, with commas. Raises ValueError for a name that means nothing."""
    names = frozenset(
        filter(None, (name.strip() for name in environ.get("ROOMCAST_REQUIRE", "").split(",")))
    )
    if unknown := names - KNOWN:
        raise ValueError(
            f"ROOMCAST_REQUIRE: unknown {', '.join(sorted(unknown))}; known: "
            f"{', '.join(sorted(KNOWN))}"
        )
    return names


def obtain(
    name: str,
    find: Callable[[], str],
    environ: Mapping[str, str] = os.environ,
    *,
    module: bool = False,
) -> str:
    """What `find` finds. Without it, skips the running test;
    fails it when ROOMCAST_REQUIRE lists `name`.

    `module`: a whole file of tests needs it, and is being imported.
    """
    try:
        return find()
    except Missing as missing:
        if name in required(environ):
            pytest.fail(f"ROOMCAST_REQUIRE demands {name}: {missing}", pytrace=False)
        pytest.skip(f"needs {name}: {missing}", allow_module_level=module)
