"""Restores tables from backups, and gives them what a restored table lacks.

DynamoDB restores items and keys into a new table, and no stream, TTL, point-in-time recovery, tags
or protection. Each step here looks first at what is there, so that a second run goes on where the
first one ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from botocore.exceptions import ClientError

from roomcast.aws.errors import CALL_LIMIT_S, error_code, port_errors
from roomcast.aws.schema import TableSchema
from roomcast.ports import PortError, Rejected, Throttled, UnknownOutcome

__all__ = [
    "CALLS_FAILED_MAX",
    "LOOK_S",
    "RESTORE_S_MAX",
    "Found",
    "Moment",
    "NamedBackup",
    "Restoration",
    "Restored",
    "Source",
    "lacking",
]

# AWS says of restores that most take less than an hour, and promises nothing.
RESTORE_S_MAX: Final = 24 * 3600.0
# Between two looks at a table that changes.
LOOK_S: Final = 5.0
# Looks and changes in a row that are not answered, throttled, or come too early for a new table.
CALLS_FAILED_MAX: Final = 12
# Moments are told in whole seconds.
_SAME_MOMENT_S: Final = 1.0
_NO_TABLE: Final = "ResourceNotFoundException"
# A table that was just restored, or changes, takes no other change.
_TOO_EARLY: Final = frozenset(
    {"ContinuousBackupsUnavailableException", "LimitExceededException", "ResourceInUseException"}
)

# Steps, in their order.
_RESTORE: Final = "restore"
_STREAM: Final = "stream"
_TTL: Final = "TTL"
_RECOVERY: Final = "point-in-time recovery"
_TAGS: Final = "tags"
_PROTECTION: Final = "deletion protection"

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Moment:
    """Point-in-time recovery of `table`, which still exists, as it was at `at`."""

    table: str
    at: datetime


@dataclass(frozen=True, slots=True)
class NamedBackup:
    """An on-demand backup, or the one that DynamoDB makes of a table that is deleted."""

    arn: str


Source = Moment | NamedBackup


@dataclass(frozen=True, slots=True)
class Found:
    """What a table is like. `origin`: the ARN of the backup or table that it was restored from,
    "" = it was made otherwise. `view`: what its stream shows, "" = it has none.
    """

    active: bool
    arn: str
    origin: str
    moment: datetime | None
    view: str
    stream_arn: str
    expires_by: str
    recoverable: bool
    is_protected: bool
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restored:
    """A table, and the steps that were taken (with a dry run: that are to be taken)."""

    table: str
    source: str
    steps: tuple[str, ...]
    stream_arn: str


def lacking(
    schema: TableSchema, found: Found | None, tags: Mapping[str, str], *, protect: bool
) -> tuple[str, ...]:
    """The steps from a table as it is to one as the service needs it, in their order.
    `found` None: there is no table yet.
    """
    view = schema.create.get("StreamSpecification", {}).get("StreamViewType", "")
    wanted = {
        _RESTORE: found is None,
        _STREAM: bool(view) and (found is None or found.view != view),
        _TTL: schema.ttl_attribute is not None
        and (found is None or found.expires_by != schema.ttl_attribute),
        _RECOVERY: found is None or not found.recoverable,
        _TAGS: bool(tags) and (found is None or not tags.items() <= found.tags.items()),
        _PROTECTION: protect and (found is None or not found.is_protected),
    }
    return tuple(step for step, is_wanted in wanted.items() if is_wanted)


class Restoration:
    """Restores tables of the client's account. `dynamodb`: a client that retries. `tell` is given
    lines about progress.

    Every method raises PortError: Rejected when AWS refuses, or the tables are not what they should
    be.
    """

    def __init__(
        self,
        dynamodb: Any,
        *,
        protect: bool,
        key_arn: str = "",
        tell: Callable[[str], None] = lambda _line: None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`protect`: against deletion. `key_arn`: of the key that encrypts the new tables, "" = as
        the source.
        """
        self._dynamodb = dynamodb
        self._protect = protect
        self._key_arn = key_arn
        self._tell = tell
        self._sleep = sleep

    async def plan(
        self, schemas: Sequence[tuple[TableSchema, Source]], tags: Mapping[str, str]
    ) -> list[Restored]:
        """What `restore` would do now. It changes nothing."""
        planned = []
        for schema, source in schemas:
            found = await self._found(schema.name)
            origin = await self._checked(schema, source, found)
            steps = lacking(schema, found, tags, protect=self._protect)
            planned.append(_restored(schema, origin, steps, found))
        return planned

    async def restore(
        self, schemas: Sequence[tuple[TableSchema, Source]], tags: Mapping[str, str]
    ) -> list[Restored]:
        """Restores all that is not there yet, side by side, and completes each.

        All are looked at before the first is changed.
        """
        planned = await self.plan(schemas, tags)
        for (schema, source), plan in zip(schemas, planned, strict=True):
            if _RESTORE in plan.steps:
                self._tell(f"{schema.name}: restoring from {plan.source}")
                await self._begin(schema.name, source)
        done = []
        for (schema, source), plan in zip(schemas, planned, strict=True):
            found = await self._active(schema.name)
            # Somebody else may have made a table of that name.
            origin = await self._checked(schema, source, found)
            for step in lacking(schema, found, tags, protect=self._protect):
                self._tell(f"{schema.name}: {step}")
                await self._take(step, schema, found.arn, tags)
                await self._active(schema.name)
            found = await self._complete(schema, tags)
            done.append(_restored(schema, origin, plan.steps, found))
        return done

    async def _complete(self, schema: TableSchema, tags: Mapping[str, str]) -> Found:
        """The table, once it tells of everything that was set: some of it takes a while."""
        for _ in range(CALLS_FAILED_MAX):
            found = await self._active(schema.name)
            missing = lacking(schema, found, tags, protect=self._protect)
            if not missing:
                return found
            await self._sleep(LOOK_S)
        raise UnknownOutcome(f"table {schema.name} does not get its {', '.join(missing)}")

    # ---- what is there

    async def _found(self, name: str) -> Found | None:
        """A table, None = there is none."""
        try:
            async with port_errors(CALL_LIMIT_S):
                table = (await self._dynamodb.describe_table(TableName=name))["Table"]
        except PortError as error:
            if _code(error) == _NO_TABLE:
                return None
            raise
        active = table["TableStatus"] == "ACTIVE"
        summary = table.get("RestoreSummary", {})
        stream = table.get("StreamSpecification", {})
        expires_by, recoverable, tags = "", False, dict[str, str]()
        if active:
            # DynamoDB does not tell these of a table that it still restores.
            expires_by, recoverable, tags = await self._settings(name, table["TableArn"])
        return Found(
            active,
            table["TableArn"],
            summary.get("SourceBackupArn") or summary.get("SourceTableArn", ""),
            summary.get("RestoreDateTime"),
            stream.get("StreamViewType", "") if stream.get("StreamEnabled") else "",
            table.get("LatestStreamArn", ""),
            expires_by,
            recoverable,
            bool(table.get("DeletionProtectionEnabled")),
            tags,
        )

    async def _settings(self, name: str, arn: str) -> tuple[str, bool, dict[str, str]]:
        """What is told apart from the table: TTL's attribute, whether it can be recovered, tags."""
        async with port_errors(CALL_LIMIT_S):
            expiry = (await self._dynamodb.describe_time_to_live(TableName=name))[
                "TimeToLiveDescription"
            ]
            backups = (await self._dynamodb.describe_continuous_backups(TableName=name))[
                "ContinuousBackupsDescription"
            ]
            tags = (await self._dynamodb.list_tags_of_resource(ResourceArn=arn)).get("Tags", ())
        is_on = expiry.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
        recovery = backups.get("PointInTimeRecoveryDescription", {})
        return (
            expiry.get("AttributeName", "") if is_on else "",
            recovery.get("PointInTimeRecoveryStatus") == "ENABLED",
            {tag["Key"]: tag["Value"] for tag in tags},
        )

    async def _checked(self, schema: TableSchema, source: Source, found: Found | None) -> str:
        """The ARN of the source, which can be restored from (or was, if there is a table).
        Raises Rejected.
        """
        if isinstance(source, NamedBackup):
            origin = source.arn
            if found is None:
                await self._check_backup(schema, source)
        else:
            origin = await self._check_moment(source, is_wanted=found is None)
        if found is None:
            return origin
        if origin not in ("", found.origin) or not found.origin:
            told = source.arn if isinstance(source, NamedBackup) else source.table
            raise Rejected(
                f"table {schema.name} is there and was not restored from {told}: "
                "give another prefix"
            )
        if (
            isinstance(source, Moment)
            and found.moment is not None
            and abs((found.moment - source.at).total_seconds()) > _SAME_MOMENT_S
        ):
            raise Rejected(
                f"table {schema.name} was restored to {found.moment.isoformat()}: give that time, "
                "or another prefix"
            )
        view = schema.create.get("StreamSpecification", {}).get("StreamViewType", "")
        if view and found.view not in ("", view):
            raise Rejected(f"the stream of table {schema.name} shows {found.view}, not {view}")
        return found.origin

    async def _check_backup(self, schema: TableSchema, source: NamedBackup) -> None:
        """Raises Rejected for a backup of a table with other keys, or one that is not there."""
        async with port_errors(CALL_LIMIT_S):
            answer = await self._dynamodb.describe_backup(BackupArn=source.arn)
        keys = answer["BackupDescription"]["SourceTableDetails"]["KeySchema"]
        if keys != schema.create["KeySchema"]:
            raise Rejected(f"{source.arn} is no backup of a table such as {schema.name}")

    async def _check_moment(self, source: Moment, *, is_wanted: bool) -> str:
        """The ARN of the table, "" = it is gone, which is an error when it `is_wanted` still.
        Raises Rejected for a moment that it cannot be restored to.
        """
        table = await self._found(source.table)
        if table is None:
            if is_wanted:
                raise Rejected(
                    f"there is no table {source.table}: DynamoDB keeps a backup of one that was "
                    "deleted, which can be restored by its ARN"
                )
            return ""
        if is_wanted:
            async with port_errors(CALL_LIMIT_S):
                answer = await self._dynamodb.describe_continuous_backups(TableName=source.table)
            recovery = answer["ContinuousBackupsDescription"].get(
                "PointInTimeRecoveryDescription", {}
            )
            if recovery.get("PointInTimeRecoveryStatus") != "ENABLED":
                raise Rejected(f"table {source.table} has no point-in-time recovery")
            earliest = recovery.get("EarliestRestorableDateTime", source.at)
            latest = recovery.get("LatestRestorableDateTime", source.at)
            if not earliest <= source.at <= latest:
                raise Rejected(
                    f"table {source.table} can be restored to a time from "
                    f"{earliest.isoformat()} to {latest.isoformat()}"
                )
        return table.arn

    # ---- what is done

    async def _begin(self, name: str, source: Source) -> None:
        # On demand, whatever the source is by now.
        options: dict[str, Any] = {
            "TargetTableName": name,
            "BillingModeOverride": "PAY_PER_REQUEST",
        }
        if self._key_arn:
            options["SSESpecificationOverride"] = {
                "Enabled": True,
                "SSEType": "KMS",
                "KMSMasterKeyId": self._key_arn,
            }
        async with port_errors(CALL_LIMIT_S):
            if isinstance(source, NamedBackup):
                await self._dynamodb.restore_table_from_backup(BackupArn=source.arn, **options)
            else:
                await self._dynamodb.restore_table_to_point_in_time(
                    SourceTableName=source.table, RestoreDateTime=source.at, **options
                )

    async def _active(self, name: str) -> Found:
        """The table, as soon as it can be changed and used."""
        failed = 0
        told_s = 0.0
        looks = int(RESTORE_S_MAX / LOOK_S)
        for look in range(looks):
            try:
                found = await self._found(name)
            except (Throttled, UnknownOutcome):
                failed += 1
                if failed > CALLS_FAILED_MAX:
                    raise
            else:
                failed = 0
                if found is None:
                    raise Rejected(f"table {name} is gone")
                if found.active:
                    return found
            if look * LOOK_S >= told_s:
                self._tell(f"{name}: not ready yet")
                told_s = look * LOOK_S + 60
            await self._sleep(LOOK_S)
        raise UnknownOutcome(f"table {name} did not become ready")

    async def _take(
        self, step: str, schema: TableSchema, arn: str, tags: Mapping[str, str]
    ) -> None:
        """One step of an active table."""
        for attempt in range(CALLS_FAILED_MAX):
            try:
                async with port_errors(CALL_LIMIT_S):
                    await self._call(step, schema, arn, tags)
            except PortError as error:
                is_early = _code(error) in _TOO_EARLY
                is_last = attempt == CALLS_FAILED_MAX - 1
                if is_last or not (is_early or isinstance(error, (Throttled, UnknownOutcome))):
                    raise
                await self._sleep(LOOK_S)
                # A lost answer may have been a yes.
                found = await self._active(schema.name)
                if step not in lacking(schema, found, tags, protect=self._protect):
                    return
            else:
                return

    async def _call(
        self, step: str, schema: TableSchema, arn: str, tags: Mapping[str, str]
    ) -> None:
        name = schema.name
        match step:
            case "stream":
                await self._dynamodb.update_table(
                    TableName=name, StreamSpecification=schema.create["StreamSpecification"]
                )
            case "TTL":
                await self._dynamodb.update_time_to_live(
                    TableName=name,
                    TimeToLiveSpecification={
                        "Enabled": True,
                        "AttributeName": schema.ttl_attribute,
                    },
                )
            case "point-in-time recovery":
                await self._dynamodb.update_continuous_backups(
                    TableName=name,
                    PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
                )
            case "tags":
                await self._dynamodb.tag_resource(
                    ResourceArn=arn,
                    Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
                )
            case "deletion protection":
                await self._dynamodb.update_table(TableName=name, DeletionProtectionEnabled=True)


def _code(error: PortError) -> str:
    """AWS's code of an error, "" = it is not AWS's."""
    return error_code(error.__cause__) if isinstance(error.__cause__, ClientError) else ""


def _restored(
    schema: TableSchema, origin: str, steps: tuple[str, ...], found: Found | None
) -> Restored:
    return Restored(schema.name, origin, steps, found.stream_arn if found is not None else "")
