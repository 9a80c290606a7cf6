"""A restore, rehearsed: published, backed up, restored under another prefix, served again with a
new log generation. Clients are told, and nothing wrong is delivered.

The emulator restores at once and at any moment; how long it takes, and what AWS refuses
meanwhile: tests/unit/aws/test_restoring.py.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from roomcast.aws.schema import (
    channels_table,
    idempotency_table,
    nodes_table,
    presence_table,
    table_schemas,
)
from tests.contract.backends import ROOT
from tests.integration.created import differences
from tests.integration.serving import Aws, Process, deployed, environment
from tests.websocket import WebSocket

BEFORE: Final = "before-"
AFTER: Final = "after-"
ROOM: Final = "room"
COMMAND_S: Final = 60
KEY: Final = "a key of the tests, long enough to be none"
CONFIG: Final = f"""
[client]
insecure = true
[http_api]
key = "{KEY}"
[channel.without_namespace]
history_size = 100
history_ttl = "24h"
force_recovery = true
allow_publish_for_subscriber = true
allow_history_for_subscriber = true
[node]
drain_s = 0
queue_probe_s = 1
canary_interval_s = 1
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(120)]


@asynccontextmanager
async def client(config: Path) -> AsyncIterator[tuple[Process, WebSocket]]:
    """A node, and a client of it that has not subscribed."""
    process = Process(config, "--port", "0")
    try:
        await asyncio.to_thread(process.ready)
        async with aiohttp.ClientSession() as session:
            socket = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
            assert (await socket.ask("connect"))["client"]
            yield process, socket
            await socket.response.close()
        process.signal()
        assert await asyncio.to_thread(process.ended) == 0, process.log
    finally:
        await asyncio.to_thread(process.close)


async def with_key(process: Process, key: str, data: Any) -> Mapping[str, Any]:
    """What a back end is answered that publishes with a key."""
    body = {"channel": ROOM, "data": data, "idempotency_key": key}
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": KEY}) as session,
        session.post(f"{process.url}/api/publish", json=body) as response,
    ):
        result: Mapping[str, Any] = (await response.json())["result"]
        return result


def backups(aws: Aws) -> list[str]:
    """Arguments of `roomcast restore` for backups that are made now."""
    dynamodb = aws.client("dynamodb")
    return [
        part
        for table in ("channels", "idempotency")
        for part in (
            f"--{table}-backup",
            dynamodb.create_backup(TableName=f"{BEFORE}{table}", BackupName=table)["BackupDetails"][
                "BackupArn"
            ],
        )
    ]


def restore(config: Path, *arguments: str) -> Mapping[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "roomcast", "restore", "--config", str(config), "--json"),
            *("--to-prefix", AFTER, *arguments),
        ],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    told: Mapping[str, Any] = json.loads(done.stdout)
    return told


def as_a_stack_of_data(aws: Aws) -> None:
    """Makes what deploy/data.yaml makes beside tables that are there."""
    dynamodb = aws.client("dynamodb")
    for schema in table_schemas(AFTER):
        if schema.name in (nodes_table(AFTER), presence_table(AFTER)):
            dynamodb.create_table(**schema.create)
        else:
            assert_is_complete(dynamodb, schema.name, schema.create)


def assert_is_complete(dynamodb: Any, name: str, create: Mapping[str, Any]) -> None:
    table = dynamodb.describe_table(TableName=name)["Table"]
    # Not told here of a table that was restored.
    wanted = {key: value for key, value in create.items() if key != "BillingMode"}
    assert list(differences(wanted, table)) == []
    assert table["DeletionProtectionEnabled"] is True
    expiry = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert expiry["AttributeName"] == "expires_at"
    recovery = dynamodb.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
    assert recovery["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"
    tags = dynamodb.list_tags_of_resource(ResourceArn=table["TableArn"])["Tags"]
    assert {"Key": "app", "Value": "roomcast"} in tags


async def test_after_a_restore_clients_are_told_and_nothing_wrong_is_delivered(
    tmp_path: Path,
) -> None:
    with deployed(tmp_path, BEFORE) as aws:
        old = aws.config("old", CONFIG)
        async with client(old) as (process, socket):
            await socket.ask("subscribe", channel=ROOM)
            kept = await with_key(process, "kept", "kept")
            arguments = await asyncio.to_thread(backups, aws)
            # What the backup does not have.
            await with_key(process, "lost", "lost")
            assert await socket.ask("publish", channel=ROOM, data="lost too") == {}
            assert await socket.published(ROOM, 3) == ["kept", "lost", "lost too"]
            position = (await socket.ask("history", channel=ROOM, limit=0))["epoch"]
        told = await asyncio.to_thread(restore, old, *arguments)
        assert {each["table"] for each in told["tables"]} == {
            channels_table(AFTER),
            idempotency_table(AFTER),
        }
        as_a_stack_of_data(aws)
        generation = told["parameters"]["fleet"]["LogGeneration"]
        there = replace(aws, prefix=AFTER)
        new = there.config("new", CONFIG, log_generation=generation)
        async with client(new) as (process, socket):
            # It was away, and is told that it cannot go on where it was.
            resumed = await socket.ask(
                "subscribe", channel=ROOM, recover=True, epoch=position, offset=3
            )
            assert not resumed.get("recovered", False)
            assert resumed.get("publications", []) == []
            assert resumed["epoch"].startswith(f"{generation}.")
            # A key of a publication that was restored still counts, and one that was lost does not.
            assert await with_key(process, "kept", "never") == kept
            first = await with_key(process, "lost", "again")
            assert first["epoch"] == resumed["epoch"]
            assert await socket.ask("publish", channel=ROOM, data="new") == {}
            # Only these, each once; the offsets go on, and no one is given a second time.
            assert await socket.published(ROOM, 2) == ["again", "new"]
            history = await socket.ask("history", channel=ROOM, limit=10)
            assert [each["data"] for each in history["publications"]] == ["again", "new"]
        log = there.log(ROOM)
        assert len({(epoch, offset) for epoch, offset, _ in log}) == len(log) == 3
        assert [data for _, _, data in log] == ["kept", "again", "new"]
