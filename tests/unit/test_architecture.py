"""What each room of the code may touch, read from its imports. A breach names the module and the rule."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("service", "stream_lambda")

BOTO: Final = frozenset({"aioboto3", "aiobotocore", "boto3", "botocore"})
# What a pure function cannot use: clocks, chance, the machine, the loop, logs.
IMPURE: Final = frozenset(
    {
        "asyncio", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
        "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Room:
    """What the modules of one room may import; None = anything. Names are prefixes: `service.core` covers its modules."""

    project: frozenset[str] | None
    third_party: frozenset[str] | None
    stdlib_refused: frozenset[str] = frozenset()
    environ: bool = False
    pure: bool = False


def room(project: str, third_party: str = "", *, environ: bool = False) -> Room:
    """A Room from two lists of words; project names are relative to `service`."""
    names = frozenset(f"service.{name}" for name in project.split())
    return Room(names, frozenset(third_party.split()), environ=environ)


CORE: Final = Room(frozenset({"service.core"}), frozenset(), stdlib_refused=IMPURE, pure=True)
CODEC: Final = Room(frozenset({"service.core"}), frozenset({"orjson"}), stdlib_refused=IMPURE, pure=True)
PROTOBUF: Final = replace(CODEC, third_party=frozenset({"google", "orjson"}))
# Where everything is put together. No other row names these rooms: nobody else imports them.
ANYTHING: Final = Room(None, None, environ=True)

# The longest prefix decides. A module that no row covers is a breach: say which room it is in.
ROOMS: Final = {
    "service.core": CORE,
    "service.core.forms": CODEC,
    "service.core.protocol": CODEC,
    "service.core.protobuf": PROTOBUF,
    "service.core.protobuf_schema": PROTOBUF,
    "service.ports": room("core"),
    "service.system": room("core ports"),
    "service.config": room("core", environ=True),
    "service.telemetry": room("core ports", "orjson structlog"),
    "service.hooks": room("core"),
    # Imports whatever the application names, by its name.
    "service.hook_calls": room("core config hooks", "orjson structlog"),
    "service.token_keys": room("", "cryptography jwt orjson"),
    "service.jwks": room("core ports token_keys", "structlog"),
    "service.jwks_endpoint": room("jwks", "aiohttp"),
    "service.auth": room("core config jwks token_keys", "cryptography jwt orjson structlog"),
    "service.log": room("core ports log telemetry", "structlog"),
    "service.delivery": room("core ports log delivery telemetry", "structlog"),
    "service.concurrency": room(""),
    "service.descriptors": room(""),
    "service.presence": room("core ports telemetry concurrency presence_reads", "structlog"),
    "service.presence_reads": room("core ports"),
    "service.publisher": room("core ports log delivery"),
    "service.roster": room("core"),
    "service.orders": room("core ports log delivery roster", "structlog"),
    "service.census": room("core ports", "structlog"),
    "service.client": room(
        "core ports log delivery presence publisher roster orders concurrency client hook_calls", "structlog"
    ),
    "service.node": room(
        "core ports log delivery presence client orders census auth config telemetry", "structlog"
    ),
    "service.lease": room("core ports telemetry", "structlog"),
    "service.lifecycle": room("core ports", "structlog"),
    "service.tries": room("ports", "structlog"),
    "service.isolation": room("core ports log delivery lease"),
    "service.metrics": room("assembly core node", "prometheus_client"),
    "service.reporter": room("core ports", "structlog"),
    "service.assembly": room(
        "core ports log delivery presence publisher roster orders census client node lease auth config "
        "telemetry hooks hook_calls",
        "structlog",
    ),
    "service.keys": room("core ports log delivery presence client node auth config telemetry", "aiohttp"),
    "service.gateway": room(
        "core ports log delivery presence orders census client node keys gateway auth config telemetry "
        "concurrency",
        "aiohttp orjson structlog",
    ),
    "service.adapters": room(
        "core ports adapters config telemetry", "aioboto3 aiobotocore botocore structlog"
    ),
    # Not of the SDK, which reads nothing of what is asked here: a small HTTP service on the machine itself.
    "service.adapters.instance_metadata": room("core ports", "aiohttp structlog"),
    # What a Lambda needs of them besides the clients.
    "service.adapters.errors": room("ports", "botocore"),
    "service.reaper": room("core ports reaper concurrency"),
    "service.reaper.over_aws": room("core ports reaper adapters"),
    "service.reaper.handler": room("core ports reaper adapters system", "boto3 botocore", environ=True),
    "service.app": ANYTHING,
    "service.aws_ports": ANYTHING,
    "service.doctor": ANYTHING,
    "service.cli": ANYTHING,
    "service.commands": ANYTHING,
    "service.__main__": ANYTHING,
    "service.dev": ANYTHING,
    # Its environment is all the configuration that a Lambda gets.
    "stream_lambda": Room(
        frozenset({"service.core", "stream_lambda"}), frozenset({"boto3", "botocore"}), environ=True
    ),
}
# A Lambda's zip has the runtime's boto3 and no more.
LAMBDA_REFUSES: Final = ("aiohttp", "aioboto3", "aiobotocore", "google", "orjson", "structlog")


def covers(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def room_of(module: str) -> Room | None:
    """The Room of `module`; the packages themselves (their __init__) import nothing."""
    if module == "service":
        return room("")
    prefixes = [prefix for prefix in ROOMS if covers(prefix, module)]
    return ROOMS[max(prefixes, key=len)] if prefixes else None


def imported(module: str, is_package: bool, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, those inside functions and TYPE_CHECKING included."""
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            for alias in part.names:
                yield part.lineno, alias.name
        elif isinstance(part, ast.ImportFrom):
            base = part.module or ""
            if part.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                parents = package[: len(package) - (part.level - 1)]
                base = ".".join([*parents, *filter(None, [part.module])])
            if base in PACKAGES or base in {
                f"service.{name}"
                for name in ("core", "client", "dev", "gateway", "adapters", "reaper", "commands")
            }:
                # `from service import cli` imports a module, `from service.core import protocol` as well.
                for alias in part.names:
                    yield part.lineno, f"{base}.{alias.name}"
            else:
                yield part.lineno, base


def breaches(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What `source`, the text of `module`, does that its room must not."""
    rules = room_of(module)
    if rules is None:
        return [f"{module}: in no room; add it to ROOMS"]
    found: list[str] = []
    tree = ast.parse(source)
    for line, name in imported(module, is_package, tree):
        root = name.partition(".")[0]
        where = f"{module}:{line}: imports {name}"
        if root in PACKAGES:
            allowed = rules.project is None or any(covers(prefix, name) for prefix in rules.project)
            if not allowed and name != "service.__version__":
                found.append(f"{where}, which its room may not")
        elif root in sys.stdlib_module_names:
            if root in rules.stdlib_refused:
                found.append(f"{where}, which is not pure")
        elif rules.third_party is not None and root not in rules.third_party:
            found.append(f"{where}, a library that its room may not use")
    for part in ast.walk(tree):
        line = getattr(part, "lineno", 0)
        if rules.pure and isinstance(part, (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)):
            found.append(f"{module}:{line}: is asynchronous")
        if not rules.environ and reads_environment(part):
            found.append(f"{module}:{line}: reads the environment")
    return found


def reads_environment(part: ast.AST) -> bool:
    """Is `part` os.environ, os.getenv, or an import of either?"""
    names = {"environ", "environb", "getenv", "getenvb"}
    if isinstance(part, ast.Attribute):
        return part.attr in names and isinstance(part.value, ast.Name) and part.value.id == "os"
    return (
        isinstance(part, ast.ImportFrom) and part.module == "os" and any(n.name in names for n in part.names)
    )


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES: Final = dict(modules())


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_room(module: str) -> None:
    path = MODULES[module]
    assert breaches(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py") == []


def test_the_parts_of_a_client_depend_on_each_other_one_way() -> None:
    parts = {
        module: {
            name
            for _, name in imported(module, False, ast.parse(path.read_text(encoding="utf-8")))
            if covers("service.client", name)
        }
        for module, path in MODULES.items()
        if covers("service.client", module)
    }
    order = list(TopologicalSorter(parts).static_order())
    assert order[-1] == "service.client.connection"


def test_the_rooms_are_looked_at() -> None:
    assert {"service", "service.ports", "service.core.publication", "stream_lambda"} <= set(MODULES)


@pytest.mark.parametrize(
    "module, source, complaint",
    [
        ("service.core.session", "import orjson", "orjson"),
        ("service.core.session", "import json, time", "not pure"),
        ("service.core.session", "from os import path", "not pure"),
        ("service.core.session", "def f():\n    import random", "not pure"),
        ("service.core.session", "from service.ports import Clock", "may not"),
        ("service.core.session", "from ..ports import Clock", "may not"),
        ("service.core.session", "from service import ports", "may not"),
        ("service.core.session", "async def f(): ...", "asynchronous"),
        ("service.core.session", "import structlog", "library"),
        ("service.core.protocol", "import time", "not pure"),
        ("service.core.protocol", "from google.protobuf.message import Message", "library"),
        ("service.core.protobuf", "import time", "not pure"),
        ("service.ports", "import aiohttp", "library"),
        ("service.log.channel_log", "from service.delivery.hub import Hub", "may not"),
        ("service.log.channel_log", "import botocore.exceptions", "library"),
        ("service.delivery.hub", "from aiohttp import web", "library"),
        ("service.delivery.hub", "from service.gateway.writer import Writer", "may not"),
        ("service.delivery.hub", "import os\nos.environ['A']", "environment"),
        ("service.delivery.hub", "from os import getenv", "environment"),
        ("service.delivery.hub", "import service.cli", "may not"),
        ("service.gateway.http", "import aioboto3", "library"),
        ("service.gateway.http", "from service.adapters.aws import Aws", "may not"),
        ("service.delivery.hub", "import orjson", "library"),
        ("service.adapters.queue", "import aiohttp", "library"),
        ("service.adapters.queue", "from service.dev import provision", "may not"),
        ("service", "import service.ports", "may not"),
        ("service.utils", "", "in no room"),
        ("stream_lambda.handler", "from service.ports import Clock", "may not"),
        ("stream_lambda.handler", "import structlog", "library"),
        ("service.adapters.errors", "import aiobotocore", "library"),
        ("service.reaper.reaper", "import structlog", "library"),
        ("service.reaper.reaper", "from service.adapters.estate import SqsEstate", "may not"),
        ("service.reaper.handler", "from service.assembly import assemble", "may not"),
        ("service.lease", "from service.reaper import reaper", "may not"),
    ],
)
def test_a_breach_is_found(module: str, source: str, complaint: str) -> None:
    found = breaches(module, source)
    assert found
    assert complaint in " ".join(found)


@pytest.mark.parametrize(
    "module, source",
    [
        ("service.core.session", "import json\nfrom service.core.channels import ChannelRules"),
        ("service.core.session", "from . import channels\nfrom .publication import Json"),
        ("service.core.protocol", "import orjson"),
        ("service.core.protobuf", "import orjson\nfrom google.protobuf.message import Message"),
        (
            "service.delivery.hub",
            "import asyncio\nfrom service.core.envelope import parse\nasync def f(): ...",
        ),
        ("service.gateway.websocket", "from aiohttp import web\nfrom service.node import Node"),
        ("service.adapters.queue", "import aioboto3\nfrom botocore.exceptions import ClientError"),
        ("service.app", "from service.adapters.queue import Queue\nfrom service.dev import provision"),
        ("service.config", "import os\nos.environ.get('A')"),
        ("service.cli", "from service import __version__"),
        (
            "stream_lambda.handler",
            "import os\nimport boto3\nfrom service.core import envelope\nos.environ['A']",
        ),
    ],
)
def test_what_is_allowed_is_no_breach(module: str, source: str) -> None:
    assert breaches(module, source) == []


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `statement`."""
    script = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return set(done.stdout.split())


def test_the_probe_sees_what_is_loaded() -> None:
    assert "structlog" in loaded_by("import structlog")


@pytest.mark.parametrize("handler", ["stream_lambda.handler", "service.reaper.handler"])
def test_a_lambda_loads_nothing_that_its_zip_lacks(handler: str) -> None:
    assert loaded_by(f"import {handler}").isdisjoint(LAMBDA_REFUSES)
