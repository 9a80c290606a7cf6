"""Rows as TTL sees them, pages and bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from roomcast.aws.leases import LEASES_MAX, DynamoLeases
from roomcast.fleet.lease_record import Lease, Tombstone
from roomcast.ports import Rejected, Throttled
from tests.unit.aws.fakes import FakeClient, client_error

LEASE = Lease("n1", "roomcast-n1", "live", 1_000, 2_000, 3_999)


async def test_ttl_counts_in_seconds_and_comes_long_after_the_end_of_the_lease() -> None:
    client = FakeClient(put_item=lambda **_: {})
    await DynamoLeases(client, "nodes").put(LEASE)
    item = client.calls[0][1]["Item"]
    assert item["expires_at"] == {"N": str(3 + 24 * 3600)}
    assert item["lease_until"] == {"N": "3999"}


@pytest.mark.parametrize(
    "operation, call, no",
    [
        ("put_item", lambda leases: leases.heartbeat(LEASE), False),
        ("update_item", lambda leases: leases.reap(LEASE, 1), False),
        ("update_item", lambda leases: leases.put_tombstone("n1", 1), None),
        ("delete_item", lambda leases: leases.drop_tombstone(Tombstone("n1", "", 1)), None),
    ],
)
async def test_only_a_failed_condition_is_a_no(
    operation: str, call: Callable[[DynamoLeases], Awaitable[object]], no: object
) -> None:
    answers = iter(
        [client_error("ConditionalCheckFailedException"), client_error("ThrottlingException")]
    )
    leases = DynamoLeases(FakeClient(**{operation: lambda **_: next(answers)}), "nodes")
    assert await call(leases) is no
    with pytest.raises(Throttled):
        await call(leases)


async def test_a_row_of_an_older_release_is_read_as_well_as_it_goes() -> None:
    numbers = {"started_at": "1000", "heartbeat_at": "2000", "lease_until": "3999"}
    row = {name: {"N": value} for name, value in numbers.items()} | {
        "node": {"S": "n1"},
        "queue": {"S": "roomcast-n1"},
        "state": {"S": "live"},
        "unknown": {"S": "of a newer one"},
    }
    leases = await DynamoLeases(FakeClient(scan=lambda **_: {"Items": [row]}), "nodes").all()
    assert leases == [LEASE]


async def test_all_pages_are_read_and_strange_rows_skipped() -> None:
    client = FakeClient(put_item=lambda **_: {})
    await DynamoLeases(client, "nodes").put(LEASE)
    item = client.calls[0][1]["Item"]

    def scan(ExclusiveStartKey: Any = None, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        if ExclusiveStartKey is None:
            return {"Items": [item], "LastEvaluatedKey": {"node": {"S": "n1"}}}
        return {"Items": [{"node": {"S": "stray"}}, {**item, "node": {"S": "n2"}}]}

    leases = await DynamoLeases(FakeClient(scan=scan), "nodes").all()
    assert [lease.node for lease in leases] == ["n1", "n2"]


@pytest.mark.parametrize("name", ["connections", "started_at", "lease_until", "reaped"])
async def test_a_row_with_a_number_that_json_does_not_hold_is_no_lease(name: str) -> None:
    """It would make an internal error of each answer that tells of nodes."""
    client = FakeClient(put_item=lambda **_: {})
    await DynamoLeases(client, "nodes").put(LEASE)
    item = client.calls[0][1]["Item"]
    rows = [{**item, name: {"N": sign + "9" * 38}, "node": {"S": f"n{sign}"}} for sign in ("", "-")]
    leases = await DynamoLeases(
        FakeClient(scan=lambda **_: {"Items": [*rows, item]}), "nodes"
    ).all()
    assert leases == [LEASE]


async def test_a_scan_is_bounded() -> None:
    client = FakeClient(put_item=lambda **_: {})
    await DynamoLeases(client, "nodes").put(LEASE)
    items = [client.calls[0][1]["Item"]] * (LEASES_MAX // 2 + 1)
    endless = {"Items": items, "LastEvaluatedKey": {"node": {"S": "n1"}}}
    with pytest.raises(Rejected):
        await DynamoLeases(FakeClient(scan=lambda **_: endless), "nodes").all()
