"""service/roomcast/aws/restoring.py: tables are restored once, and get all that they lack."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import pytest

from roomcast.aws.restoring import (
    CALLS_FAILED_MAX,
    Moment,
    NamedBackup,
    Restoration,
    Source,
    lacking,
)
from roomcast.aws.schema import TableSchema, table_schemas
from roomcast.ports import PortError, Rejected
from tests.fakes.dynamodb_backups import NOW, FakeDynamoDb, refusal

AT: Final = NOW - timedelta(hours=1)
TAGS: Final = {"app": "roomcast"}
OLD: Final = [each for each in table_schemas("old-") if each.name.endswith(("ls", "cy"))]
NEW: Final = [each for each in table_schemas("new-") if each.name.endswith(("ls", "cy"))]
MOMENTS: Final[list[tuple[TableSchema, Source]]] = [
    (new, Moment(old.name, AT)) for old, new in zip(OLD, NEW, strict=True)
]
OF_CHANNELS: Final = (
    "restore", "stream", "TTL", "point-in-time recovery", "tags", "deletion protection",
)  # fmt: skip


@pytest.fixture
def dynamodb() -> FakeDynamoDb:
    fake = FakeDynamoDb()
    for schema in OLD:
        fake.add(schema.create)
    return fake


def restoration(dynamodb: FakeDynamoDb, *, protect: bool = True, key: str = "") -> Restoration:
    async def at_once(_seconds: float) -> None:
        pass

    return Restoration(dynamodb, protect=protect, key_arn=key, sleep=at_once)


def changes(dynamodb: FakeDynamoDb) -> list[str]:
    return [operation for operation, _ in dynamodb.calls]


async def test_restored_tables_get_what_they_lack(dynamodb: FakeDynamoDb) -> None:
    channels, idempotency = await restoration(dynamodb).restore(MOMENTS, TAGS)
    assert (channels.table, channels.steps) == ("new-channels", OF_CHANNELS)
    assert idempotency.steps == tuple(step for step in OF_CHANNELS if step != "stream")
    assert channels.stream_arn.partition("/stream/")[0].endswith(":table/new-channels")
    assert idempotency.stream_arn == ""
    for schema in NEW:
        table = dynamodb.tables[schema.name]
        assert table["stream"] == schema.create.get("StreamSpecification", {})
        assert (table["expires_by"], table["tags"]) == (schema.ttl_attribute, TAGS)
        assert (table["recoverable"], table["protected"]) == (True, True)
    # Both restores go on at the same time: they take as long as they take.
    assert changes(dynamodb)[:2] == ["restore_table_to_point_in_time"] * 2
    for _, asked in dynamodb.calls[:2]:
        assert (asked["RestoreDateTime"], asked["BillingModeOverride"]) == (AT, "PAY_PER_REQUEST")
        assert "SSESpecificationOverride" not in asked


async def test_a_second_run_changes_nothing(dynamodb: FakeDynamoDb) -> None:
    first = await restoration(dynamodb).restore(MOMENTS, TAGS)
    dynamodb.calls.clear()
    again = await restoration(dynamodb).restore(MOMENTS, TAGS)
    assert dynamodb.calls == []
    assert [each.steps for each in again] == [(), ()]
    assert [each.stream_arn for each in again] == [each.stream_arn for each in first]


@pytest.mark.parametrize(
    "operation",
    ["update_table", "update_time_to_live", "update_continuous_backups", "tag_resource"],
)
async def test_a_run_that_was_interrupted_goes_on_where_it_was(
    dynamodb: FakeDynamoDb, operation: str
) -> None:
    dynamodb.failing[operation] = deque([refusal("AccessDeniedException", operation)])
    with pytest.raises(Rejected):
        await restoration(dynamodb).restore(MOMENTS, TAGS)
    await restoration(dynamodb).restore(MOMENTS, TAGS)
    assert changes(dynamodb).count("restore_table_to_point_in_time") == 2
    for schema in NEW:
        assert dynamodb.tables[schema.name]["protected"]


@pytest.mark.parametrize(
    "code", ["ThrottlingException", "InternalServerError", "ContinuousBackupsUnavailableException"]
)
async def test_what_passes_is_tried_again(dynamodb: FakeDynamoDb, code: str) -> None:
    """Point-in-time recovery is not to be had at once for a new table."""
    errors: Sequence[Exception | None] = [refusal(code, "UpdateContinuousBackups")] * 3
    dynamodb.failing["update_continuous_backups"] = deque(errors)
    await restoration(dynamodb).restore(MOMENTS, TAGS)
    assert changes(dynamodb).count("update_continuous_backups") == 2 + 3


async def test_looks_that_fail_are_bounded(dynamodb: FakeDynamoDb) -> None:
    passes: list[Exception | None] = [None] * 4
    error = refusal("InternalServerError", "DescribeTable")
    dynamodb.failing["describe_table"] = deque(passes + [error] * CALLS_FAILED_MAX)
    await restoration(dynamodb).restore(MOMENTS, TAGS)
    dynamodb.tables.pop("new-channels")
    dynamodb.failing["describe_table"] = deque(passes + [error] * (CALLS_FAILED_MAX + 1))
    with pytest.raises(PortError):
        await restoration(dynamodb).restore(MOMENTS, TAGS)


async def test_a_dry_run_says_what_a_run_does_and_changes_nothing(dynamodb: FakeDynamoDb) -> None:
    planned = await restoration(dynamodb).plan(MOMENTS, TAGS)
    assert dynamodb.calls == []
    done = await restoration(dynamodb).restore(MOMENTS, TAGS)
    assert [each.steps for each in planned] == [each.steps for each in done]


async def test_named_backups_are_restored_also_when_the_tables_are_gone(
    dynamodb: FakeDynamoDb,
) -> None:
    backups: list[tuple[TableSchema, Source]] = [
        (new, NamedBackup(dynamodb.back_up(old.name))) for old, new in zip(OLD, NEW, strict=True)
    ]
    for schema in OLD:
        dynamodb.tables.pop(schema.name)
    done = await restoration(dynamodb).restore(backups, TAGS)
    assert [each.steps[0] for each in done] == ["restore", "restore"]
    again = await restoration(dynamodb).restore(backups, TAGS)
    assert [each.steps for each in again] == [(), ()]


async def test_a_key_encrypts_the_new_tables(dynamodb: FakeDynamoDb) -> None:
    await restoration(dynamodb, key="arn:key").restore(MOMENTS, TAGS)
    for _, asked in dynamodb.calls[:2]:
        wanted = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": "arn:key"}
        assert asked["SSESpecificationOverride"] == wanted


async def test_protection_may_be_left_out(dynamodb: FakeDynamoDb) -> None:
    done = await restoration(dynamodb, protect=False).restore(MOMENTS, TAGS)
    assert not any("deletion protection" in each.steps for each in done)
    assert not dynamodb.tables["new-channels"]["protected"]


async def refused(dynamodb: FakeDynamoDb, wanted: Sequence[tuple[TableSchema, Source]]) -> str:
    """Why it is refused; nothing was changed."""
    dynamodb.calls.clear()
    with pytest.raises(Rejected) as raised:
        await restoration(dynamodb).restore(wanted, TAGS)
    assert dynamodb.calls == []
    return str(raised.value)


async def test_tables_that_were_not_restored_are_left_alone(dynamodb: FakeDynamoDb) -> None:
    dynamodb.add(NEW[1].create)
    told = await refused(dynamodb, MOMENTS)
    named = "table new-idempotency is there and was not restored from old-idempotency"
    assert told.startswith(named)
    # Whatever has become of the old one.
    dynamodb.tables.pop("old-idempotency")
    assert (await refused(dynamodb, MOMENTS)).startswith(named)


async def test_tables_of_another_moment_or_backup_do_not_go_with_it(
    dynamodb: FakeDynamoDb,
) -> None:
    await restoration(dynamodb).restore(MOMENTS, TAGS)
    later: list[tuple[TableSchema, Source]] = [
        (new, Moment(old.name, AT + timedelta(minutes=1)))
        for old, new in zip(OLD, NEW, strict=True)
    ]
    assert f"was restored to {AT.isoformat()}" in await refused(dynamodb, later)
    backup = dynamodb.back_up("old-channels")
    assert "was not restored from" in await refused(dynamodb, [(NEW[0], NamedBackup(backup))])


async def test_sources_that_cannot_be_restored_from_are_told(dynamodb: FakeDynamoDb) -> None:
    early: Source = Moment("old-channels", NOW - timedelta(days=40))
    assert "can be restored to a time from" in await refused(dynamodb, [(NEW[0], early)])
    assert "there is no table" in await refused(dynamodb, [(NEW[0], Moment("never", AT))])
    dynamodb.tables["old-channels"]["recoverable"] = False
    told = await refused(dynamodb, [(NEW[0], Moment("old-channels", AT))])
    assert told == "table old-channels has no point-in-time recovery"
    other = dynamodb.back_up("old-idempotency")
    assert "is no backup of a table" in await refused(dynamodb, [(NEW[0], NamedBackup(other))])
    assert "BackupNotFound" in await refused(dynamodb, [(NEW[0], NamedBackup("arn:none"))])


async def test_a_stream_that_shows_something_else_is_told(dynamodb: FakeDynamoDb) -> None:
    await restoration(dynamodb).restore(MOMENTS, TAGS)
    stream = {"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"}
    dynamodb.tables["new-channels"]["stream"] = stream
    assert "shows KEYS_ONLY, not NEW_IMAGE" in await refused(dynamodb, MOMENTS)


def test_a_table_that_does_not_expire_needs_no_ttl() -> None:
    (presence,) = [each for each in table_schemas("") if each.ttl_attribute is None]
    assert "TTL" not in lacking(presence, None, TAGS, protect=True)
