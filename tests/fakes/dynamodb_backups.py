"""DynamoDB as far as a restore needs it, as AWS documents it: a table that is restored takes a
while, and comes without stream, TTL, point-in-time recovery, tags and protection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from botocore.exceptions import ClientError

__all__ = ["NOW", "FakeDynamoDb", "refusal"]

NOW: Final = datetime(2026, 11, 30, 12, tzinfo=UTC)
_REGION: Final = "arn:aws:dynamodb:eu-west-1:123456789012"


def refusal(code: str, operation: str) -> ClientError:
    status = 500 if code == "InternalServerError" else 400
    return ClientError(
        {
            "Error": {"Code": code, "Message": "told so"},
            "ResponseMetadata": {"HTTPStatusCode": status},
        },
        operation,
    )


class FakeDynamoDb:
    """One account. `tables` and `backups` by name and ARN. `calls`: the changes that were asked
    for. `failing`: by operation, the errors of its next calls; None is a call that goes well.
    """

    # Looks at a new table, or a changed one, before it is ready.
    looks_until_ready = 2

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {}
        self.backups: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.failing: dict[str, deque[Exception | None]] = {}

    def add(self, create: Mapping[str, Any], *, recoverable: bool = True) -> None:
        """A table that has been there for a while."""
        name = create["TableName"]
        self.tables[name] = {
            "looks": 0,
            "create": dict(create),
            "stream": create.get("StreamSpecification", {}),
            "recoverable": recoverable,
            "expires_by": "expires_at",
            "tags": {},
            "protected": False,
        }

    def back_up(self, name: str) -> str:
        """The ARN of a backup of a table."""
        arn = f"{_REGION}:table/{name}/backup/0{len(self.backups)}"
        self.backups[arn] = {"create": self.tables[name]["create"], "source": name}
        return arn

    def _asked(self, operation: str, arguments: Mapping[str, Any], *, changes: bool) -> None:
        if changes:
            self.calls.append((operation, arguments))
        errors = self.failing.get(operation)
        error = errors.popleft() if errors else None
        if error is not None:
            raise error

    def _table(self, name: str, operation: str) -> dict[str, Any]:
        if name not in self.tables:
            raise refusal("ResourceNotFoundException", operation)
        return self.tables[name]

    def _ready(self, name: str, operation: str) -> dict[str, Any]:
        table = self._table(name, operation)
        if table["looks"]:
            raise refusal("ResourceInUseException", operation)
        return table

    # ---- what is there

    async def describe_table(self, **arguments: Any) -> Any:
        self._asked("describe_table", arguments, changes=False)
        name = arguments["TableName"]
        table = self._table(name, "DescribeTable")
        table["looks"], looks = max(table["looks"] - 1, 0), table["looks"]
        status = ("CREATING" if table.get("new") else "UPDATING") if looks else "ACTIVE"
        told = {
            "TableName": name,
            "TableArn": f"{_REGION}:table/{name}",
            "TableStatus": status,
            "DeletionProtectionEnabled": table["protected"],
        }
        if table["stream"]:
            stream = f"{told['TableArn']}/stream/2026-11-30T12:00:00.000"
            told |= {"StreamSpecification": table["stream"], "LatestStreamArn": stream}
        if "origin" in table:
            told["RestoreSummary"] = table["origin"]
        return {"Table": told}

    async def describe_time_to_live(self, **arguments: Any) -> Any:
        self._asked("describe_time_to_live", arguments, changes=False)
        attribute = self._table(arguments["TableName"], "DescribeTimeToLive")["expires_by"]
        told = {"TimeToLiveStatus": "DISABLED"}
        if attribute:
            told = {"TimeToLiveStatus": "ENABLING", "AttributeName": attribute}
        return {"TimeToLiveDescription": told}

    async def describe_continuous_backups(self, **arguments: Any) -> Any:
        self._asked("describe_continuous_backups", arguments, changes=False)
        is_on = self._table(arguments["TableName"], "DescribeContinuousBackups")["recoverable"]
        told: dict[str, Any] = {"PointInTimeRecoveryStatus": "ENABLED" if is_on else "DISABLED"}
        if is_on:
            told["EarliestRestorableDateTime"] = NOW - timedelta(days=35)
            told["LatestRestorableDateTime"] = NOW - timedelta(minutes=5)
        return {"ContinuousBackupsDescription": {"PointInTimeRecoveryDescription": told}}

    async def list_tags_of_resource(self, **arguments: Any) -> Any:
        self._asked("list_tags_of_resource", arguments, changes=False)
        name = arguments["ResourceArn"].rpartition("/")[2]
        tags = self._table(name, "ListTagsOfResource")["tags"]
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    async def describe_backup(self, **arguments: Any) -> Any:
        self._asked("describe_backup", arguments, changes=False)
        if arguments["BackupArn"] not in self.backups:
            raise refusal("BackupNotFoundException", "DescribeBackup")
        keys = self.backups[arguments["BackupArn"]]["create"]["KeySchema"]
        return {"BackupDescription": {"SourceTableDetails": {"KeySchema": keys}}}

    # ---- what changes it

    async def restore_table_from_backup(self, **arguments: Any) -> Any:
        self._asked("restore_table_from_backup", arguments, changes=True)
        backup = self.backups[arguments["BackupArn"]]
        self._restored(
            arguments["TargetTableName"],
            backup["create"],
            {
                "SourceBackupArn": arguments["BackupArn"],
                "SourceTableArn": f"{_REGION}:table/{backup['source']}",
                "RestoreDateTime": NOW,
            },
        )

    async def restore_table_to_point_in_time(self, **arguments: Any) -> Any:
        self._asked("restore_table_to_point_in_time", arguments, changes=True)
        name = arguments["SourceTableName"]
        self._restored(
            arguments["TargetTableName"],
            self._table(name, "RestoreTableToPointInTime")["create"],
            {
                "SourceTableArn": f"{_REGION}:table/{name}",
                "RestoreDateTime": arguments["RestoreDateTime"],
            },
        )

    def _restored(self, name: str, create: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
        if name in self.tables:
            raise refusal("TableAlreadyExistsException", "Restore")
        self.tables[name] = {
            "looks": self.looks_until_ready,
            "new": True,
            "create": dict(create),
            "stream": {},
            "recoverable": False,
            "expires_by": "",
            "tags": {},
            "protected": False,
            "origin": origin,
        }

    async def update_table(self, **arguments: Any) -> Any:
        self._asked("update_table", arguments, changes=True)
        table = self._ready(arguments["TableName"], "UpdateTable")
        if "StreamSpecification" in arguments:
            table["stream"] = arguments["StreamSpecification"]
        if "DeletionProtectionEnabled" in arguments:
            table["protected"] = arguments["DeletionProtectionEnabled"]
        table["looks"], table["new"] = self.looks_until_ready, False

    async def update_time_to_live(self, **arguments: Any) -> Any:
        self._asked("update_time_to_live", arguments, changes=True)
        table = self._ready(arguments["TableName"], "UpdateTimeToLive")
        table["expires_by"] = arguments["TimeToLiveSpecification"]["AttributeName"]

    async def update_continuous_backups(self, **arguments: Any) -> Any:
        self._asked("update_continuous_backups", arguments, changes=True)
        self._ready(arguments["TableName"], "UpdateContinuousBackups")["recoverable"] = True

    async def tag_resource(self, **arguments: Any) -> Any:
        self._asked("tag_resource", arguments, changes=True)
        tags: Sequence[Mapping[str, str]] = arguments["Tags"]
        name = arguments["ResourceArn"].rpartition("/")[2]
        self._table(name, "TagResource")["tags"] |= {tag["Key"]: tag["Value"] for tag in tags}
