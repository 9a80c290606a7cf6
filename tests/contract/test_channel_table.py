"""What every ChannelTable guarantees."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from roomcast.log.idempotency import KeyItem
from roomcast.log.item import ITEM_KEYS_MAX, LogItem
from roomcast.log.ports import ChannelTable, Holders, Page, TailExpired
from roomcast.wire.versions import VERSION_MAX, Version
from tests.contract.backends import Backend
from tests.contract.items import head, keyed, log_item

# More than one page of DynamoDB (1 MB) when each item is this large.
LARGE = "x" * 120_000


@pytest.fixture
def table(backend: Backend) -> ChannelTable:
    return backend.table()


@pytest.fixture
def valid_until(backend: Backend) -> int:
    return backend.clock.now_ms() + 1


async def written(table: ChannelTable, valid_until: int, *items: LogItem) -> Sequence[LogItem]:
    for item in items:
        assert await table.put_item(item, valid_until) is None
    return items


async def keyed_written(
    table: ChannelTable, valid_until: int, offset: int, *keys: str, batch: str
) -> tuple[LogItem, tuple[KeyItem, ...]]:
    append = keyed(offset, *keys, batch=batch)
    assert await table.put_keyed_item(*append, valid_until) is None
    return append


async def test_an_item_is_stored_as_it_was_written(table: ChannelTable, valid_until: int) -> None:
    item = log_item(1, 3, text='"\u2028\U0001f600\x00')
    await written(table, valid_until, item)
    assert await table.newest("room") == item


@pytest.mark.parametrize("version", [Version(1), Version(VERSION_MAX, "é" * 64)], ids=str)
async def test_the_newest_version_comes_with_whatever_tells_the_end(
    table: ChannelTable, valid_until: int, version: Version
) -> None:
    item = replace(log_item(1, batch="first"), newest_version=version)
    assert await table.put_head(replace(head("v1"), newest_version=version), None)
    assert await table.head("room") == replace(head("v1"), newest_version=version)
    await written(table, valid_until, item)
    assert await table.newest("room") == item
    assert (await table.read_behind("room", 0, 10)).items == (item,)
    assert await table.put_item(log_item(1, batch="second"), valid_until) == item
    _, keys = keyed(1, "k", batch="third")
    holders = await table.put_keyed_item(log_item(1, batch="third"), keys, valid_until)
    assert holders is not None
    assert holders.item == item


async def test_the_second_writer_of_a_key_gets_the_winner(
    table: ChannelTable, valid_until: int
) -> None:
    winner = log_item(1, 2, batch="first")
    await written(table, valid_until, winner)
    assert await table.put_item(log_item(1, batch="second"), valid_until) == winner
    assert await table.newest("room") == winner


async def test_the_same_append_again_gets_itself(table: ChannelTable, valid_until: int) -> None:
    item = log_item(1, batch="same")
    await written(table, valid_until, item)
    again = await table.put_item(item, valid_until)
    assert again is not None
    assert again.batch == "same"


async def test_of_concurrent_writers_one_wins(backend: Backend, valid_until: int) -> None:
    items = [log_item(1, batch=f"batch-{number}") for number in range(8)]
    results = await asyncio.gather(*(backend.table().put_item(item, valid_until) for item in items))
    winners = [item for item, result in zip(items, results, strict=True) if result is None]
    assert len(winners) == 1
    assert [result for result in results if result is not None] == winners * 7


async def test_an_append_whose_tail_has_expired_is_not_sent(
    backend: Backend, table: ChannelTable
) -> None:
    now = backend.clock.now_ms()
    for valid_until in (now, now - 1):
        with pytest.raises(TailExpired):
            await table.put_item(log_item(1), valid_until)
    assert await table.newest("room") is None
    assert await table.put_item(log_item(1), now + 1) is None


async def test_the_tail_of_an_append_does_not_bind_a_head(
    backend: Backend, table: ChannelTable
) -> None:
    with pytest.raises(TailExpired):
        await table.put_item(log_item(1), backend.clock.now_ms())
    assert await table.put_head(head("v1"), None)


async def test_an_item_and_its_keys_are_written_together(
    table: ChannelTable, valid_until: int
) -> None:
    item, keys = keyed(1, "k", "l", "m")
    assert await table.put_keyed_item(item, keys, valid_until) is None
    assert await table.newest("room") == item
    assert [await table.key(key.key) for key in keys] == list(keys)


async def test_an_append_carries_as_many_keys_as_a_transaction_has_room_for(
    table: ChannelTable, valid_until: int
) -> None:
    item, keys = keyed(1, *(f"k{number}" for number in range(ITEM_KEYS_MAX)))
    assert await table.put_keyed_item(item, keys, valid_until) is None
    assert await table.key(keys[-1].key) == keys[-1]


async def test_a_key_that_is_taken_tells_what_it_was_used_for(
    table: ChannelTable, valid_until: int
) -> None:
    item, keys = keyed(1, "k", batch="first")
    await table.put_keyed_item(item, keys, valid_until)
    await written(table, valid_until, log_item(2))
    for offset in (3, 2, 1):
        # Whether the offset is free or not.
        holders = await table.put_keyed_item(*keyed(offset, "k", batch="second"), valid_until)
        assert holders is not None
        assert holders.keys == keys
    assert (await table.read_forward("room", 1, 10)).items == (item, log_item(2)), (
        "neither was written"
    )


async def test_all_keys_that_are_taken_are_told(table: ChannelTable, valid_until: int) -> None:
    _, [first] = await keyed_written(table, valid_until, 1, "b", batch="first")
    _, [second] = await keyed_written(table, valid_until, 2, "d", batch="second")
    holders = await table.put_keyed_item(*keyed(3, "a", "b", "c", "d", batch="third"), valid_until)
    assert holders == Holders(None, (first, second))
    assert await table.key("room\na") is None
    assert await table.put_keyed_item(*keyed(3, "a", "c", batch="fourth"), valid_until) is None


async def test_an_offset_that_is_taken_leaves_the_key_free(
    table: ChannelTable, valid_until: int
) -> None:
    [winner] = await written(table, valid_until, log_item(1, 2, batch="first"))
    holders = await table.put_keyed_item(*keyed(1, "k", batch="second"), valid_until)
    assert holders == Holders(winner)
    assert await table.put_keyed_item(*keyed(3, "k", batch="third"), valid_until) is None


async def test_the_same_keyed_append_again_gets_itself(
    table: ChannelTable, valid_until: int
) -> None:
    item, keys = await keyed_written(table, valid_until, 1, "k", "l", batch="same")
    again = await table.put_keyed_item(item, keys, valid_until)
    # DynamoDB says once more that it was written, if it is asked soon.
    if again is not None:
        assert {holder.batch for holder in (again.item, *again.keys) if holder is not None} == {
            "same"
        }
    assert (await table.read_forward("room", 1, 10)).items == (item,)


async def test_a_key_that_has_expired_counts_until_it_is_deleted(
    table: ChannelTable, valid_until: int
) -> None:
    item, [key] = keyed(1, "k", batch="first")
    expired = replace(key, expires_at=1)
    await table.put_keyed_item(item, [expired], valid_until)
    holders = await table.put_keyed_item(*keyed(2, "k", batch="second"), valid_until)
    assert holders == Holders(None, (expired,))


async def test_a_key_can_be_looked_up(table: ChannelTable, valid_until: int) -> None:
    item, [key] = keyed(1, "k")
    assert await table.key(key.key) is None
    await table.put_keyed_item(item, [key], valid_until)
    assert await table.key(key.key) == key
    assert await table.key("another") is None


async def test_each_channel_and_each_key_is_its_own(table: ChannelTable, valid_until: int) -> None:
    for offset, key, channel in (
        (1, "k", "room"),
        (2, "K", "room"),
        (3, "k ", "room"),
        (1, "k", "roomk"),
    ):
        assert await table.put_keyed_item(*keyed(offset, key, channel=channel), valid_until) is None


async def test_of_concurrent_writers_with_one_key_one_wins(
    backend: Backend, valid_until: int
) -> None:
    attempts = [keyed(offset, "k", batch=f"batch-{offset}") for offset in range(1, 9)]
    plain = [log_item(offset, batch="plain") for offset in range(101, 109)]
    keyed_results, plain_results = await asyncio.gather(
        asyncio.gather(
            *(backend.table().put_keyed_item(*attempt, valid_until) for attempt in attempts)
        ),
        asyncio.gather(*(backend.table().put_item(item, valid_until) for item in plain)),
    )
    [winner] = [
        attempt for attempt, result in zip(attempts, keyed_results, strict=True) if result is None
    ]
    assert [result.keys for result in keyed_results if result is not None] == [winner[1]] * 7
    assert plain_results == [None] * 8
    # Transactions that failed took nothing of the others' back.
    assert (await backend.table().read_forward("room", 1, 20)).items == (winner[0], *plain)


async def test_what_is_behind_an_offset_is_read_in_its_order(
    table: ChannelTable, valid_until: int
) -> None:
    items = await written(
        table, valid_until, log_item(1, 2), log_item(3), log_item(4, 9), log_item(10)
    )
    assert await table.read_behind("room", 2, 10) == Page(tuple(items[1:]), False)
    assert await table.read_behind("room", 2, 2) == Page(tuple(items[1:3]), True)
    assert await table.read_behind("room", 10, 10) == Page((), False)
    assert await table.read_behind("another", 0, 10) == Page((), False)


async def test_a_keyed_append_whose_tail_has_expired_is_not_sent(
    backend: Backend, table: ChannelTable
) -> None:
    now = backend.clock.now_ms()
    for valid_until in (now, now - 1):
        with pytest.raises(TailExpired):
            await table.put_keyed_item(*keyed(1, "k"), valid_until)
    assert await table.newest("room") is None
    assert await table.put_keyed_item(*keyed(1, "k"), now + 1) is None


async def test_a_head_is_written_on_condition_of_the_version_read(table: ChannelTable) -> None:
    assert await table.head("room") is None
    assert not await table.put_head(head("v2"), "v1")
    assert await table.put_head(head("v1"), None)
    assert not await table.put_head(head("v2"), None)
    assert not await table.put_head(head("v2"), "v0")
    assert await table.head("room") == head("v1")
    successor = head("v2", epoch="e2", floor=7, trim=5)
    assert await table.put_head(successor, "v1")
    assert await table.head("room") == successor


async def test_newest_is_the_head_only_without_log_items(
    table: ChannelTable, valid_until: int
) -> None:
    assert await table.newest("room") is None
    await table.put_head(head("v1"), None)
    assert await table.newest("room") == head("v1")
    first, second = await written(table, valid_until, log_item(1, 9), log_item(10))
    assert await table.newest("room") == second
    assert first != second


async def test_a_channel_is_its_own(table: ChannelTable, valid_until: int) -> None:
    await written(table, valid_until, log_item(1, channel="room"), log_item(1, channel="room2"))
    await table.put_head(head("v1", channel="room2"), None)
    assert await table.head("room") is None
    assert (await table.read_forward("room2", 1, 10)).items == (log_item(1, channel="room2"),)


@pytest.mark.parametrize(
    "from_offset, items_max, offsets, more",
    [
        (1, 10, [1, 4, 5, 8], False),
        (0, 10, [1, 4, 5, 8], False),
        (2, 10, [1, 4, 5, 8], False),
        (3, 2, [1, 4], True),
        (4, 10, [4, 5, 8], False),
        (5, 2, [5, 8], False),
        (7, 1, [5], True),
        (7, 2, [5, 8], False),
        (8, 1, [8], False),
        (9, 1, [8], False),
        (10, 5, [], False),
        (1000, 5, [], False),
        (1, 4, [1, 4, 5, 8], False),
        (1, 3, [1, 4, 5], True),
    ],
)
async def test_reading_forward(
    table: ChannelTable,
    valid_until: int,
    from_offset: int,
    items_max: int,
    offsets: list[int],
    more: bool,
) -> None:
    await table.put_head(head("v1"), None)
    items = await written(
        table, valid_until, log_item(1, 3), log_item(4), log_item(5, 7), log_item(8, 9)
    )
    page = await table.read_forward("room", from_offset, items_max)
    assert page == Page(tuple(item for item in items if item.offset in offsets), more)


@pytest.mark.parametrize(
    "to_offset, items_max, offsets, more",
    [
        (9, 10, [1, 4, 5, 8], False),
        (8, 2, [5, 8], True),
        (7, 10, [1, 4, 5], False),
        (7, 1, [5], True),
        (4, 2, [1, 4], False),
        (1, 1, [1], False),
        (0, 1, [], False),
        (1000, 4, [1, 4, 5, 8], False),
    ],
)
async def test_reading_backward(
    table: ChannelTable,
    valid_until: int,
    to_offset: int,
    items_max: int,
    offsets: list[int],
    more: bool,
) -> None:
    await table.put_head(head("v1"), None)
    items = await written(
        table, valid_until, log_item(1, 3), log_item(4), log_item(5, 7), log_item(8, 9)
    )
    page = await table.read_backward("room", to_offset, items_max)
    assert page == Page(tuple(item for item in items if item.offset in offsets), more)


async def test_an_empty_log_reads_as_nothing(table: ChannelTable) -> None:
    await table.put_head(head("v1"), None)
    assert await table.read_forward("room", 1, 5) == Page((), False)
    assert await table.read_backward("room", 5, 5) == Page((), False)


async def test_a_read_of_several_pages(table: ChannelTable, valid_until: int) -> None:
    await table.put_head(head("v1"), None)
    items = await written(
        table, valid_until, *(log_item(offset, text=LARGE) for offset in range(1, 21))
    )
    assert await table.read_forward("room", 1, 20) == Page(tuple(items), False)
    assert await table.read_forward("room", 2, 18) == Page(tuple(items[1:19]), True)
    assert await table.read_backward("room", 20, 20) == Page(tuple(items), False)
    assert await table.read_backward("room", 20, 19) == Page(tuple(items[1:]), True)
