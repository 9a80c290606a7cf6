"""The listing of a node, bounds, and damaged entries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.adapters.presence import MEMBERS_MAX, DynamoPresence
from service.core.publication import ClientInfo
from service.ports import Member, PortError, Refused, UnknownOutcome
from tests.unit.adapters.fakes import FakeClient, client_error


class Rows(FakeClient):
    """A table's keys, as writes leave them; each write takes a turn of the loop."""

    def __init__(self) -> None:
        super().__init__(put_item=self._put, delete_item=self._delete)
        self.keys: set[tuple[str, str]] = set()
        self.failures: list[Exception] = []

    def _put(self, Item: Any, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        if self.failures:
            return self.failures.pop()
        self.keys.add((Item["key"]["S"], Item["member"]["S"]))
        return {}

    def _delete(self, Key: Any, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        self.keys.discard((Key["key"]["S"], Key["member"]["S"]))
        return {}


def member(client: str) -> Member:
    return Member("n1", ClientInfo("ann", client))


async def test_the_node_is_listed_as_long_as_it_has_members() -> None:
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    await presence.add("room", member("c1"))
    assert rows.keys == {("node#n1", "room"), ("channel#room", "n1#c1")}
    assert rows.calls[0][1]["Item"]["key"] == {"S": "node#n1"}, "listed before there is anything to clean up"
    await presence.add("room", member("c2"))
    await presence.add("other", member("c1"))
    assert len(rows.calls) == 5, "the second member costs one write"
    await presence.remove("room", member("c1"))
    assert ("node#n1", "room") in rows.keys
    await presence.remove("room", member("c2"))
    assert rows.keys == {("node#n1", "other"), ("channel#other", "n1#c1")}


async def test_a_listing_that_failed_is_written_the_next_time() -> None:
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    rows.failures = [client_error("InternalServerError", 500)]
    with pytest.raises(UnknownOutcome):
        await presence.add("room", member("c1"))
    await presence.add("room", member("c1"))
    assert rows.keys == {("node#n1", "room"), ("channel#room", "n1#c1")}


async def test_coming_and_going_at_once_keeps_the_listing() -> None:
    rows = Rows()
    presence = DynamoPresence(rows, "presence")
    for number in range(20):
        await presence.add("room", member(f"c{number}"))
        await asyncio.gather(
            presence.remove("room", member(f"c{number}")), presence.add("room", member(f"d{number}"))
        )
        assert ("node#n1", "room") in rows.keys
        await presence.remove("room", member(f"d{number}"))
        assert rows.keys == set()


@pytest.mark.parametrize("page_size, error", [(MEMBERS_MAX // 2, None), (MEMBERS_MAX // 2 + 1, Refused)])
async def test_reading_is_bounded(page_size: int, error: type[PortError] | None) -> None:
    item = {"member": {"S": "n1#c1"}, "info": {"S": '{"user":"u","client":"c1"}'}}

    def query(ExclusiveStartKey: Any = None, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        more = {} if ExclusiveStartKey else {"LastEvaluatedKey": {"key": {"S": "k"}}}
        return {"Items": [item] * page_size, **more}

    presence = DynamoPresence(FakeClient(query=query), "presence")
    if error is None:
        assert len(await presence.members("room")) == MEMBERS_MAX
    else:
        with pytest.raises(error):
            await presence.members("room")


async def test_a_damaged_entry_does_not_hide_the_others() -> None:
    items = [
        {"member": {"S": "n1#c1"}, "info": {"S": "{"}},
        {"member": {"S": "n1#c2"}},
        {"member": {"S": "stray"}, "info": {"S": '{"user":"u","client":"c"}'}},
        {"member": {"S": "n1#c3"}, "info": {"S": '{"user":"u","client":7}'}},
        {"member": {"S": "n1#c4"}, "info": {"S": '{"user":"ann","client":"c4"}'}},
    ]
    presence = DynamoPresence(FakeClient(query=lambda **_: {"Items": items}), "presence")
    assert list(await presence.members("room")) == [member("c4")]
