"""Defines the DynamoDB tables as data: names, keys, stream and TTL.

Production creates the same tables from deploy/data.yaml: a change here needs the same change there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "TTL_ATTRIBUTE",
    "TableSchema",
    "channels_table",
    "idempotency_table",
    "nodes_table",
    "presence_table",
    "table_schemas",
]

# Holds seconds since 1970, in the tables with TTL.
TTL_ATTRIBUTE: Final = "expires_at"


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table: the arguments of CreateTable, and the attribute of UpdateTimeToLive.

    Without that attribute the rows do not expire.
    """

    create: dict[str, Any]
    ttl_attribute: str | None

    @property
    def name(self) -> str:
        return str(self.create["TableName"])


def channels_table(prefix: str) -> str:
    """The name of the table of log items and heads."""
    return f"{prefix}channels"


def idempotency_table(prefix: str) -> str:
    """The name of the table of idempotency keys."""
    return f"{prefix}idempotency"


def nodes_table(prefix: str) -> str:
    """The name of the table of leases."""
    return f"{prefix}nodes"


def presence_table(prefix: str) -> str:
    """The name of the table of presence entries."""
    return f"{prefix}presence"


def table_schemas(prefix: str) -> tuple[TableSchema, ...]:
    """Every table whose name begins with `prefix`, billed on demand."""
    return (
        # The broadcast reads the stream: it needs the new item, and only that.
        TableSchema(
            _create(channels_table(prefix), channel="S", offset="N")
            | {"StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}},
            TTL_ATTRIBUTE,
        ),
        TableSchema(_create(nodes_table(prefix), node="S"), TTL_ATTRIBUTE),
        # Events tell of what is gone as well.
        TableSchema(
            _create(presence_table(prefix), key="S", member="S")
            | {
                "StreamSpecification": {
                    "StreamEnabled": True,
                    "StreamViewType": "NEW_AND_OLD_IMAGES",
                }
            },
            None,
        ),
        TableSchema(_create(idempotency_table(prefix), key="S"), TTL_ATTRIBUTE),
    )


def _create(name: str, **keys: str) -> dict[str, Any]:
    """`keys`: the partition key, then the sort key if there is one, each with its type."""
    return {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": key, "AttributeType": kind} for key, kind in keys.items()
        ],
        "KeySchema": [
            {"AttributeName": key, "KeyType": role}
            for key, role in zip(keys, ("HASH", "RANGE"), strict=False)
        ],
    }
