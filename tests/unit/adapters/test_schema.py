"""The tables as data."""

from __future__ import annotations

from service.adapters.schema import channels_table, nodes_table, presence_table, table_schemas


def test_the_tables() -> None:
    schemas = {schema.name: schema for schema in table_schemas("p-")}
    assert set(schemas) == {channels_table("p-"), nodes_table("p-"), presence_table("p-")}
    keys = {
        name: [(key["AttributeName"], key["KeyType"]) for key in schema.create["KeySchema"]]
        for name, schema in schemas.items()
    }
    assert keys == {
        "p-channels": [("channel", "HASH"), ("offset", "RANGE")],
        "p-nodes": [("node", "HASH")],
        "p-presence": [("key", "HASH"), ("member", "RANGE")],
    }
    assert schemas["p-channels"].create["StreamSpecification"]["StreamViewType"] == "NEW_IMAGE"
    assert [schema.ttl_attribute for schema in schemas.values()] == ["expires_at", "expires_at", None]
