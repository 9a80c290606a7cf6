"""service/roomcast/cli/restore.py: what is asked for, what is told, and how it ends."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final

import pytest

from roomcast.aws import clients as aws
from roomcast.aws import restoring
from roomcast.aws.schema import table_schemas
from roomcast.cli import main as cli
from roomcast.cli.restore import generation_of
from roomcast.config import OPTIONS
from roomcast.system import SystemClock
from tests.fakes.dynamodb_backups import NOW, FakeDynamoDb, refusal

NOW_MS: Final = round(NOW.timestamp() * 1000)
TIME: Final = ["--to-time", "2026-11-30T12:00:00+01:00"]
TO: Final = ["restore", "--to-prefix", "new-"]


@pytest.fixture
def dynamodb(monkeypatch: pytest.MonkeyPatch) -> FakeDynamoDb:
    fake = FakeDynamoDb()
    fake.looks_until_ready = 0
    for schema in table_schemas("roomcast-"):
        fake.add(schema.create)

    @asynccontextmanager
    async def connect(**_arguments: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(tables=fake)

    monkeypatch.setattr(aws, "connect", connect)
    monkeypatch.setattr(restoring, "LOOK_S", 0.001)
    monkeypatch.setattr(SystemClock, "now_ms", lambda _self: NOW_MS)
    return fake


def test_it_says_what_was_done_and_how_to_go_on(
    dynamodb: FakeDynamoDb, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TO, *TIME]) == 0
    out, err = capsys.readouterr()
    assert err == "", "nobody watches"
    assert dynamodb.tables.keys() >= {"new-channels", "new-idempotency"}
    # The others are not worth restoring: the stack of data makes them.
    assert not dynamodb.tables.keys() & {"new-nodes", "new-presence"}
    stream = f"{'arn:aws:dynamodb:eu-west-1:123456789012:table/new-channels'}/stream/"
    assert f"TablePrefix=new- ChannelsStreamArn={stream}" in out
    assert f"LogGeneration={generation_of(NOW_MS)}" in out
    assert "restore, stream, TTL, point-in-time recovery, tags, deletion protection" in out


def test_the_same_as_an_object(dynamodb: FakeDynamoDb, capsys: pytest.CaptureFixture[str]) -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/1"
    assert cli.main([*TO, *TIME, "--json", "--kms-key", key]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dry_run"] is False
    assert [each["table"] for each in told["tables"]] == ["new-channels", "new-idempotency"]
    assert told["parameters"] == {
        "data": {
            "TablePrefix": "new-",
            "ChannelsStreamArn": told["stream_arn"],
            "KmsKeyArn": key,
        },
        "fleet": {"LogGeneration": told["log_generation"]},
    }


def test_a_dry_run_changes_nothing(
    dynamodb: FakeDynamoDb, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TO, *TIME, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("Nothing was changed (--dry-run).\n")
    assert dynamodb.calls == []
    assert cli.main([*TO, *TIME]) == 0
    capsys.readouterr()
    assert cli.main([*TO, *TIME, "--dry-run"]) == 0
    assert "nothing: all is there" in capsys.readouterr().out


def test_named_backups(dynamodb: FakeDynamoDb) -> None:
    arguments = [
        part
        for table in ("channels", "idempotency")
        for part in (f"--{table}-backup", dynamodb.back_up(f"roomcast-{table}"))
    ]
    assert cli.main([*TO, *arguments, "--no-deletion-protection"]) == 0
    operations = [operation for operation, _ in dynamodb.calls]
    assert operations[:2] == ["restore_table_from_backup"] * 2
    assert not dynamodb.tables["new-channels"]["protected"]


def test_a_failure_says_that_it_can_go_on(
    dynamodb: FakeDynamoDb, capsys: pytest.CaptureFixture[str]
) -> None:
    dynamodb.failing["tag_resource"] = deque([refusal("AccessDeniedException", "TagResource")])
    assert cli.main([*TO, *TIME]) == 1
    err = capsys.readouterr().err
    assert err.startswith("roomcast: An error occurred (AccessDeniedException)")
    assert err.endswith("; run it again to go on\n")
    assert cli.main([*TO, *TIME]) == 0


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (TO, "give --to-time, or --channels-backup and --idempotency-backup"),
        ([*TO, "--channels-backup", "arn:aws:dynamodb:::b"], "give --to-time, or"),
        ([*TO, *TIME, "--channels-backup", "arn:aws:dynamodb:::b"], "exclude each other"),
        (["restore", "--to-prefix", "roomcast-", *TIME], "must differ from --from-prefix"),
        ([*TO, "--to-time", "2026-11-30T12:00:00"], "must be a time such as"),
        ([*TO, "--to-time", "noon"], "must be a time such as"),
        (["restore", "--to-prefix", "a b", *TIME], "must be 1 to 200 letters"),
        ([*TO, *TIME, "--kms-key", "key"], "must be an ARN"),
        (["restore", *TIME], "--to-prefix"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    dynamodb: FakeDynamoDb,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(arguments) == 2
    assert complaint in capsys.readouterr().err
    assert dynamodb.calls == []


def test_a_generation_is_one_that_the_option_takes_and_never_the_same_again() -> None:
    (option,) = [each for each in OPTIONS if each.key == "aws.log_generation"]
    generations = [generation_of(NOW_MS + 1000 * second) for second in (0, 1, 36, 10**9)]
    assert all(re.fullmatch(str(option.rules.pattern), each) for each in generations)
    assert len(set(generations)) == len(generations)
    assert int(generations[0], 36) == NOW_MS // 1000
