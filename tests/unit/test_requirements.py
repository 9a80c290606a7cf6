"""A missing browser or Node.js skips, unless it is demanded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.requirements import (
    CDK_DIRECTORY,
    JS_DIRECTORY,
    Missing,
    find_browser,
    find_node,
    find_terraform,
    obtain,
    required,
)


def program(directory: Path, name: str) -> str:
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def absent() -> str:
    raise Missing("nowhere")


def test_what_is_missing_skips_with_its_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match="needs browser: nowhere"):
        obtain("browser", absent, {"ROOMCAST_REQUIRE": "node"})


def test_what_is_missing_fails_when_it_is_demanded() -> None:
    with pytest.raises(pytest.fail.Exception, match="demands browser: nowhere"):
        obtain("browser", absent, {"ROOMCAST_REQUIRE": "node, browser"})


def test_what_is_there_is_handed_out() -> None:
    assert obtain("node", lambda: "/there", {}) == "/there"


def test_required_names() -> None:
    assert required({}) == frozenset()
    assert required({"ROOMCAST_REQUIRE": "browser,node"}) == {"browser", "node"}
    with pytest.raises(ValueError, match="unknown chrome"):
        required({"ROOMCAST_REQUIRE": "chrome"})


def test_browser_by_name_and_by_path(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        find_browser({"PATH": str(tmp_path)})
    path = program(tmp_path, "chromium-browser")
    assert find_browser({"PATH": str(tmp_path)}) == path
    assert find_browser({"PATH": "", "ROOMCAST_CHROMIUM": path}) == path
    with pytest.raises(Missing, match="names no program"):
        find_browser({"PATH": str(tmp_path), "ROOMCAST_CHROMIUM": str(tmp_path / "absent")})


def test_node_needs_the_pinned_packages(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    (tmp_path / "package.json").write_text(json.dumps({"dependencies": {"ws": "8.0.1"}}))
    with pytest.raises(Missing, match="no Node"):
        find_node(environ, tmp_path)
    path = program(tmp_path, "node")
    with pytest.raises(Missing, match=r"ws 8\.0\.1"):
        find_node(environ, tmp_path)
    package = tmp_path / "node_modules" / "ws"
    package.mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": "8.0.0"}))
    with pytest.raises(Missing, match=r"ws 8\.0\.1"):
        find_node(environ, tmp_path)
    (package / "package.json").write_text(json.dumps({"version": "8.0.1"}))
    assert find_node(environ, tmp_path) == path


def test_packages_for_development_are_needed_as_well(tmp_path: Path) -> None:
    program(tmp_path, "node")
    (tmp_path / "package.json").write_text(json.dumps({"devDependencies": {"constructs": "1.0.0"}}))
    with pytest.raises(Missing, match=r"constructs 1\.0\.0"):
        find_node({"PATH": str(tmp_path)}, tmp_path)


def test_terraform_by_path(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no Terraform"):
        find_terraform({"PATH": str(tmp_path)})
    path = program(tmp_path, "terraform")
    assert find_terraform({"PATH": str(tmp_path)}) == path


def test_packages_of_the_cdk_are_pinned_by_hash_and_by_no_address() -> None:
    asked = json.loads((CDK_DIRECTORY / "package.json").read_text())["devDependencies"]
    locked = json.loads((CDK_DIRECTORY / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in asked} == asked
    for place, package in locked.items():
        assert "resolved" not in package, place
        # Those of a bundle have the hash of what bundles them.
        assert not place or "integrity" in package or package["inBundle"]


def test_npm_packages_are_pinned() -> None:
    versions = json.loads((JS_DIRECTORY / "package.json").read_text())["dependencies"]
    assert set(versions) >= {"centrifuge", "ws"}
    # One under another name is called npm:NAME@VERSION.
    pinned = [version.rpartition("@")[2] for version in versions.values()]
    assert all(version.replace(".", "").isdigit() for version in pinned), versions
