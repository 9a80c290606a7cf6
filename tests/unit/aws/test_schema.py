"""The tables as data."""

from __future__ import annotations

from roomcast.aws.schema import (
    channels_table,
    idempotency_table,
    nodes_table,
    presence_table,
    table_schemas,
)


def test_the_tables() -> None:
    schemas = {schema.name: schema for schema in table_schemas("p-")}
    names = {
        name("p-") for name in (channels_table, nodes_table, presence_table, idempotency_table)
    }
    assert set(schemas) == names
    keys = {
        name: [(key["AttributeName"], key["KeyType"]) for key in schema.create["KeySchema"]]
        for name, schema in schemas.items()
    }
    assert keys == {
        "p-channels": [("channel", "HASH"), ("offset", "RANGE")],
        "p-nodes": [("node", "HASH")],
        "p-presence": [("key", "HASH"), ("member", "RANGE")],
        "p-idempotency": [("key", "HASH")],
    }
    assert schemas["p-channels"].create["StreamSpecification"]["StreamViewType"] == "NEW_IMAGE"
    assert {name: schema.ttl_attribute for name, schema in schemas.items()} == {
        "p-channels": "expires_at",
        "p-nodes": "expires_at",
        "p-presence": None,
        "p-idempotency": "expires_at",
    }
