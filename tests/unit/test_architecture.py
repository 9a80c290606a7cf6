"""What each room of the code may touch, read from its imports.
A breach names the module and the rule.
"""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

from docs.rooms import PAGE, PICTURE, svg, with_table
from tests.rooms import ROOMS, breaches, parse, read, room_of, unused

ROOT: Final = Path(__file__).parents[2]
# A Lambda's zip has the runtime's boto3 and no more.
LAMBDA_REFUSES: Final = (
    *("aiohttp", "aioboto3", "aiobotocore", "google", "orjson", "re2", "structlog"),
)


def test_every_module_keeps_to_its_room() -> None:
    assert [breach for module in read() for breach in breaches(module)] == []


def test_nothing_is_allowed_that_no_module_needs() -> None:
    assert list(unused(read())) == []


def test_no_rooms_need_each_other_in_a_circle() -> None:
    TopologicalSorter({title: rules.rooms for title, rules in ROOMS.items()}).prepare()


def test_no_modules_need_each_other_in_a_circle() -> None:
    names = {module.name for module in read()}
    needs: dict[str, set[str]] = {}
    for module in read():
        imported = {name.removeprefix("roomcast.") for _, name in module.imports}
        # `from roomcast.log import item` names a module, `from roomcast.log.item import Head`
        # one and what is in it.
        needs[module.name] = {
            name if name in names else name.rpartition(".")[0] for name in imported
        } & (names - {module.name})
    TopologicalSorter(needs).prepare()
    assert "client.session" in needs["client.connection"]


def test_the_rooms_are_looked_at() -> None:
    names = {module.name for module in read()}
    assert {"ports", "wire.publication", "gateway.api.server", "stream_lambda.handler"} <= names
    assert {room_of(name) for name in names if name} == set(ROOMS) - {"__version__"}


@pytest.mark.parametrize(
    "module, source, complaint",
    [
        ("client.session", "import json, time", "not pure"),
        ("client.session", "from os import path", "not pure"),
        ("client.session", "def f():\n    import random", "not pure"),
        ("client.session", "from roomcast.ports import Clock", "not pure"),
        ("client.session", "from roomcast.client.peer import Peer", "not pure"),
        ("client.session", "from ..ports import Clock", "absolute"),
        ("client.session", "from roomcast.gateway import writer", "may not"),
        ("client.session", "async def f(): ...", "asynchronous"),
        ("client.session", "import structlog", "no pure module"),
        ("client.session", "import aiohttp", "library"),
        ("wire.commands", "import time", "not pure"),
        ("wire.commands", "from roomcast.log.item import Head", "may not"),
        ("wire.codes", "import structlog", "library"),
        ("ports", "import aiohttp", "library"),
        ("log.channel_log", "from roomcast.delivery.hub import Hub", "may not"),
        ("log.channel_log", "import botocore.exceptions", "library"),
        ("delivery.poller", "from aiohttp import web", "library"),
        ("delivery.poller", "from roomcast.gateway.writer import Writer", "may not"),
        ("delivery.poller", "import os\nos.environ['A']", "environment"),
        ("delivery.poller", "from os import getenv", "environment"),
        ("delivery.poller", "import roomcast.cli.main", "may not"),
        ("gateway.http", "import aioboto3", "library"),
        ("gateway.http", "from roomcast.aws.clients import Aws", "may not"),
        ("aws.queue", "import aiohttp", "library"),
        ("aws.queue", "from roomcast.dev import provision", "may not"),
        ("utils", "", "in no room"),
        ("stream_lambda.handler", "from roomcast.ports import Clock", "may not"),
        ("stream_lambda.handler", "import structlog", "library"),
        ("reaper.reaper", "import structlog", "library"),
        ("reaper.reaper", "from roomcast.aws.estate import SqsEstate", "may not"),
        ("reaper.handler", "from roomcast.node.assembly import assemble", "may not"),
        ("auth.jwks", "import aiohttp", "library"),
    ],
)
def test_a_breach_is_found(module: str, source: str, complaint: str) -> None:
    assert complaint in " ".join(breaches(parse(module, source)))


@pytest.mark.parametrize(
    "module, source",
    [
        ("client.session", "import json\nfrom roomcast.wire.channels import ChannelRules"),
        ("wire.commands", "import orjson"),
        ("wire.protobuf", "import orjson\nfrom google.protobuf.message import Message"),
        ("delivery.poller", "from roomcast.delivery import envelope\nasync def f(): ..."),
        ("gateway.websocket", "from aiohttp import web\nfrom roomcast.node.node import Node"),
        ("aws.queue", "import aioboto3\nfrom botocore.exceptions import ClientError"),
        ("serve.serve", "from roomcast.aws.queue import Queue\nfrom roomcast.dev import demo"),
        ("serve.aws_ports", "import os\nos.environ.get('A')"),
        ("cli.main", "from roomcast import __version__"),
        ("stream_lambda.handler", "import os\nos.environ['A']"),
        ("stream_batch", "import os, boto3\nos.environ['A']"),
        ("stream_lambda.handler", "from roomcast.delivery import envelope"),
    ],
)  # fmt: skip
def test_what_is_allowed_is_no_breach(module: str, source: str) -> None:
    assert list(breaches(parse(module, source))) == []


def test_an_allowance_without_use_is_found() -> None:
    modules = [module for module in read() if module.name != "serve.process"]
    assert "serve: imports nothing of wire" in list(unused(modules))


def test_the_table_of_the_page_is_made_from_the_rules() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run python -m docs.rooms"


def test_the_picture_is_made_from_the_rules() -> None:
    assert PICTURE.read_text(encoding="utf-8") == svg(), "run python -m docs.rooms"


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


def test_an_application_that_publishes_in_transactions_needs_nothing_but_its_own_client() -> None:
    loaded = loaded_by("import roomcast.transactions")
    assert loaded.isdisjoint({*LAMBDA_REFUSES, "boto3", "botocore", "cryptography", "jwt"})


@pytest.mark.parametrize("handler", ["stream_lambda.handler", "roomcast.reaper.handler"])
def test_a_lambda_loads_nothing_that_its_zip_lacks(handler: str) -> None:
    assert loaded_by(f"import {handler}").isdisjoint(LAMBDA_REFUSES)
