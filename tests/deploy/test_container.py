"""The container image by its files, and built and run where a container tool is at work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from typing import Any, Final

import pytest
import yaml
from aiohttp import web

from deploy import build
from roomcast.cli.main import _parser
from roomcast.config import Config
from roomcast.gateway.http import add_health_routes
from tests.deploy.cloudformation import ROOT

CONTAINER: Final = ROOT / "deploy" / "container"
DOCKERFILE: Final = (CONTAINER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: Final = yaml.safe_load((CONTAINER / "compose.yaml").read_text(encoding="utf-8"))
BUILD_S: Final = 600
RUN_S: Final = 50


def stages() -> dict[str, list[tuple[str, str]]]:
    """By name, the instructions of each stage and of those that it begins with."""
    found: dict[str, list[tuple[str, str]]] = {}
    text = re.sub(r"\\\n\s*", "", DOCKERFILE)
    name = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            source, _, name = rest.partition(" AS ")
            found[name] = list(found.get(source, [("FROM", source)]))
        else:
            found[name].append((instruction, rest))
    return found


def last(stage: str, instruction: str) -> str:
    return [rest for name, rest in stages()[stage] if name == instruction][-1]


def test_what_is_built_without_a_target_is_a_node() -> None:
    assert list(stages())[-1] == "node"


@pytest.mark.parametrize("stage", ["node", "dev"])
def test_it_runs_a_command_that_there_is_as_nobody(stage: str) -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last(stage, "USER"))
    assert json.loads(last(stage, "ENTRYPOINT")) == ["roomcast"]
    parsed = _parser().parse_args(json.loads(last(stage, "CMD")))
    assert parsed.host == "0.0.0.0"
    assert f"{parsed.port}" == last(stage, "EXPOSE")
    assert last(stage, "STOPSIGNAL") == "SIGTERM"
    # It may not write what Python would keep.
    assert "PYTHONDONTWRITEBYTECODE=1" in last(stage, "ENV")


def test_it_is_made_of_what_a_release_is_made_of() -> None:
    copied = {
        source
        for instruction, rest in stages()["install"]
        if instruction == "COPY"
        for source in rest.split()[:-1]
    }
    assert copied == {*build._WHEEL_SOURCES, "deploy/constraints.txt"}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored
    for stage in ("install", "install-dev"):
        assert "--constraint constraints.txt" in last(stage, "RUN")
    # What builds it is not in it.
    assert [rest for name, rest in stages()["node"] if name == "COPY"] == [
        "--from=install /opt/roomcast /opt/roomcast"
    ]


def test_its_python_is_the_instances() -> None:
    bases = {rest for stage in stages().values() for name, rest in stage if name == "FROM"}
    assert bases == {f"python:{build.PYTHON_VERSION}-slim"}


def test_its_health_is_what_the_node_answers() -> None:
    check = last("node", "HEALTHCHECK")
    program = json.loads(check.partition(" CMD ")[2])
    compile(program[2], "the check", "exec")
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[a-z/]+)", program[2])
    assert url == (last("node", "EXPOSE"), "/health/live")
    app = web.Application()
    add_health_routes(app)
    assert url[1] in {route.resource.canonical for route in app.router.routes() if route.resource}


def test_compose_lets_nobody_else_in_and_nothing_out() -> None:
    (service,) = COMPOSE["services"].values()
    assert service["build"]["target"] in stages()
    assert (CONTAINER / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8") == DOCKERFILE
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert len(service["ports"]) == _parser().parse_args(["dev"]).instances
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    # Longer than two servers take to say goodbye.
    assert int(service["stop_grace_period"].rstrip("s")) >= Config().node.drain_s


def test_commands_in_the_files_name_the_files() -> None:
    for text in (DOCKERFILE, (CONTAINER / "compose.yaml").read_text(encoding="utf-8")):
        commands = re.findall(r"^#\s+(docker .*)$", text, flags=re.MULTILINE)
        assert commands
        for command in commands:
            words = shlex.split(command)
            assert (ROOT / words[words.index("--file") + 1]).is_file()


def docker(*arguments: str, within_s: float = RUN_S) -> str:
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=within_s
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def works() -> bool:
    """Whether images can be built here."""
    if shutil.which("docker") is None:
        return False
    asked: Any = subprocess.run(["docker", "info"], capture_output=True, timeout=RUN_S)
    return bool(asked.returncode == 0)


def test_it_is_built_and_runs_without_writing() -> None:
    if not works():
        pytest.skip("no container tool is at work here")
    tag = "roomcast-test"
    docker(*("build", "--file", "deploy/container/Dockerfile", "--tag", tag, "."), within_s=BUILD_S)
    try:
        said = docker("run", "--rm", "--read-only", "--cap-drop", "ALL", tag, "--version")
        assert said.startswith("roomcast ")
    finally:
        docker("image", "rm", "--force", tag)
