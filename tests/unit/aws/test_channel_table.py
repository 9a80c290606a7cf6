"""The check of the tail on the wire, and what the emulator never answers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from botocore.auth import SigV4Auth
from structlog.testing import capture_logs

from roomcast.aws.channel_table import DynamoChannelTable
from roomcast.log.ports import Holders, TailExpired
from roomcast.ports import (
    Contended,
    Malformed,
    PortError,
    Rejected,
    Throttled,
    UnknownOutcome,
)
from roomcast.testing.memory import ManualClock
from tests.contract.items import head, keyed, log_item
from tests.unit.aws.fakes import FakeClient, client_error, faked, reset, say

CONDITION_FAILED = "ConditionalCheckFailedException"
FREE = {"Code": "None"}
TAKEN = {"Code": "ConditionalCheckFailed"}


def table(client: Any, clock: ManualClock | None = None) -> DynamoChannelTable:
    return DynamoChannelTable(client, "channels", "idempotency", clock or ManualClock())


def suspended_while_it_signs(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    sign = SigV4Auth.add_auth

    def suspended(self: SigV4Auth, request: Any) -> None:
        sign(self, request)
        clock.advance(60)

    monkeypatch.setattr(SigV4Auth, "add_auth", suspended)


def valid_until() -> int:
    return ManualClock().now_ms() + 1


@pytest.mark.parametrize(
    "items", ["5", '"x"', "[1]", '[{"channel":1}]', '[{"channel":null}]', "[null]"]
)
async def test_what_is_no_list_of_items_is_no_answer(items: str, lean: bool) -> None:
    async with faked(say(200, f'{{"Items":{items}}}'), lean=lean) as (clients, _):
        with pytest.raises(PortError):
            await table(clients.log).newest("room")
        with pytest.raises(PortError):
            await table(clients.log).read_backward("room", 9, 2)


async def test_nothing_is_sent_when_the_tail_has_expired(lean: bool) -> None:
    clock = ManualClock()
    async with faked(say(200), lean=lean) as (clients, server):
        channels = table(clients.log, clock)
        with pytest.raises(TailExpired):
            await channels.put_item(log_item(1), clock.now_ms())
        assert server.requests == 0
        assert await channels.put_item(log_item(1), clock.now_ms() + 1) is None
        assert server.requests == 1


async def test_the_tail_is_checked_after_signing(
    lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is suspended while it signs must not send."""
    clock = ManualClock()
    async with faked(say(200), lean=lean) as (clients, server):
        channels = table(clients.log, clock)
        suspended_while_it_signs(monkeypatch, clock)
        with pytest.raises(TailExpired):
            await channels.put_item(log_item(1), clock.now_ms() + 59_000)
        assert server.requests == 0


async def test_each_append_has_its_own_tail(lean: bool) -> None:
    clock = ManualClock()
    async with faked(say(200), lean=lean) as (clients, server):
        channels, other = table(clients.log, clock), table(clients.log, ManualClock(clock.ms + 10))
        results = await asyncio.gather(
            channels.put_item(log_item(1), clock.now_ms() + 5),
            other.put_item(log_item(2), clock.now_ms() + 5),
            channels.put_item(log_item(3), clock.now_ms()),
            return_exceptions=True,
        )
        assert server.requests == 1
    assert [type(result) for result in results] == [type(None), TailExpired, TailExpired]


async def test_an_append_is_tried_once(lean: bool) -> None:
    async with faked(reset, lean=lean) as (clients, server):
        with pytest.raises(UnknownOutcome):
            await table(clients.log).put_item(log_item(1), valid_until())
        with pytest.raises(UnknownOutcome):
            await table(clients.log).put_head(head("v1"), None)
        assert server.requests == 2


async def test_the_winner_comes_with_the_refusal() -> None:
    winner = log_item(1, 4, batch="winner")
    client = FakeClient(
        put_item=lambda **_: client_error(CONDITION_FAILED, Item=winner.attributes())
    )
    assert await table(client).put_item(log_item(1), valid_until()) == winner
    assert client.names == ["put_item"]
    assert client.calls[0][1]["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD"


async def test_a_winner_that_is_not_handed_over_is_read() -> None:
    winner = log_item(1, 4, batch="winner")
    client = FakeClient(
        put_item=lambda **_: client_error(CONDITION_FAILED),
        get_item=lambda **_: {"Item": winner.attributes()},
    )
    assert await table(client).put_item(log_item(1), valid_until()) == winner
    assert client.calls[1][1]["ConsistentRead"]


async def test_a_winner_that_is_gone_again_leaves_the_key_to_another_attempt() -> None:
    client = FakeClient(
        put_item=lambda **_: client_error(CONDITION_FAILED), get_item=lambda **_: {}
    )
    with pytest.raises(Throttled):
        await table(client).put_item(log_item(1), valid_until())


async def test_an_item_that_no_node_wrote_is_a_hole_among_others() -> None:
    """A read across a broken item reports a hole.

    It is not refused for as long as the item is there.
    """
    items = [log_item(offset).attributes() for offset in (1, 2, 3)]
    items[1]["last"] = {"S": "two"}

    def query(ScanIndexForward: bool, Limit: int, **_: Any) -> Any:  # noqa: N803  # the SDK's names
        return {"Items": items[:Limit] if ScanIndexForward else items[::-1][:Limit]}

    channels = table(FakeClient(query=query))
    with capture_logs() as logs:
        behind = await channels.read_behind("room", 0, 10)
        before = await channels.read_backward("room", 3, 10)
    assert ([item.offset for item in behind.items], behind.more) == ([1, 3], False)
    assert ([item.offset for item in before.items], before.more) == ([1, 3], False)
    assert [line["event"] for line in logs] == ["log_item_malformed"] * 2


async def test_an_item_that_no_node_wrote_is_refused_where_it_is_all_there_is() -> None:
    broken: Any = {**log_item(1).attributes(), "last": {"S": "one"}}
    client = FakeClient(
        query=lambda **_: {"Items": [broken]},
        get_item=lambda **_: {"Item": {**head("v").attributes(), "floor": {"N": "-1"}}},
        put_item=lambda **_: client_error(CONDITION_FAILED, Item=broken),
    )
    channels = table(client)
    for call in (
        channels.newest("room"),
        channels.head("room"),
        channels.key("room\nk"),
        channels.put_item(log_item(1), valid_until()),
    ):
        with pytest.raises(Malformed):
            await call


# Of a key that is taken.
HOLDER: Final = keyed(7, "k")[1][0]


async def test_a_write_that_meets_a_transaction_is_contended() -> None:
    client = FakeClient(put_item=lambda **_: client_error("TransactionConflictException"))
    with pytest.raises(Contended):
        await table(client).put_item(log_item(1), valid_until())


def canceled(*reasons: dict[str, Any]) -> Any:
    return client_error("TransactionCanceledException", CancellationReasons=list(reasons))


@pytest.mark.parametrize("put", ["put_item", "put_keyed_item"])
async def test_the_tail_of_each_kind_of_append_is_checked_after_signing(
    put: str, lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with faked(say(200), lean=lean) as (clients, server):
        write = getattr(table(clients.log, clock), put)
        append = keyed(1, "k") if put == "put_keyed_item" else (log_item(1),)
        suspended_while_it_signs(monkeypatch, clock)
        with pytest.raises(TailExpired):
            await write(*append, clock.now_ms() + 59_000)
        assert server.requests == 0
        assert await write(*append, clock.now_ms() + 61_000) is None
        assert server.requests == 1


async def test_a_keyed_append_is_one_transaction_whose_token_is_its_batch() -> None:
    client = FakeClient(transact_write_items=lambda **_: {})
    item, keys = keyed(1, "k", "l", batch="b" * 50)
    for _ in range(2):
        assert await table(client).put_keyed_item(item, keys, valid_until()) is None
    [(_, first), (_, second)] = client.calls
    assert first == second
    assert first["ClientRequestToken"] == "b" * 36
    puts = [write["Put"] for write in first["TransactItems"]]
    assert [(put["TableName"], put["Item"]) for put in puts] == [
        ("channels", item.attributes()),
        *(("idempotency", key.attributes()) for key in keys),
    ]
    assert all(put["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD" for put in puts)
    assert all(put["ConditionExpression"].startswith("attribute_not_exists") for put in puts)


async def test_a_keyed_append_is_tried_once() -> None:
    async with faked(reset) as (clients, server):
        with pytest.raises(UnknownOutcome):
            await table(clients.log).put_keyed_item(*keyed(1, "k"), valid_until())
        assert server.requests == 1


@pytest.mark.parametrize(
    "reasons, holder",
    [
        (
            ({**TAKEN, "Item": log_item(1, 4, batch="winner").attributes()}, FREE, FREE),
            Holders(log_item(1, 4, batch="winner")),
        ),
        ((FREE, FREE, {**TAKEN, "Item": HOLDER.attributes()}), Holders(None, (HOLDER,))),
        (
            (
                {**TAKEN, "Item": log_item(1, batch="winner").attributes()},
                {**TAKEN, "Item": HOLDER.attributes()},
                FREE,
            ),
            Holders(log_item(1, batch="winner"), (HOLDER,)),
        ),
        # What is certain of one of them is enough.
        (
            (
                {"Code": "TransactionConflict"},
                {**TAKEN, "Item": HOLDER.attributes()},
                {"Code": "ThrottlingError"},
            ),
            Holders(None, (HOLDER,)),
        ),
    ],
)
async def test_the_holder_comes_with_the_cancellation(reasons: Any, holder: Any) -> None:
    client = FakeClient(transact_write_items=lambda **_: canceled(*reasons))
    assert await table(client).put_keyed_item(*keyed(1, "k", "l"), valid_until()) == holder
    assert client.names == ["transact_write_items"]


@pytest.mark.parametrize(
    "reasons, holder, holders",
    [
        ((TAKEN, FREE), log_item(1, 4), Holders(log_item(1, 4))),
        ((FREE, TAKEN), HOLDER, Holders(None, (HOLDER,))),
    ],
)
async def test_a_holder_that_is_not_handed_over_is_read(
    reasons: Any, holder: Any, holders: Holders
) -> None:
    client = FakeClient(
        transact_write_items=lambda **_: canceled(*reasons),
        get_item=lambda **_: {"Item": holder.attributes()},
    )
    assert await table(client).put_keyed_item(*keyed(1, "k"), valid_until()) == holders
    assert client.calls[1][1]["ConsistentRead"]


@pytest.mark.parametrize("reasons", [(TAKEN, FREE), (FREE, TAKEN)])
async def test_a_holder_that_is_gone_again_leaves_its_place_to_another_attempt(
    reasons: Any,
) -> None:
    client = FakeClient(
        transact_write_items=lambda **_: canceled(*reasons), get_item=lambda **_: {}
    )
    with pytest.raises(Throttled):
        await table(client).put_keyed_item(*keyed(1, "k"), valid_until())


@pytest.mark.parametrize(
    "error, port_error",
    [
        (canceled({"Code": "TransactionConflict"}, FREE), Contended),
        (canceled(FREE, {"Code": "TransactionConflict"}), Contended),
        (canceled(FREE, {"Code": "ThrottlingError"}), Throttled),
        (
            canceled({"Code": "ProvisionedThroughputExceeded"}, {"Code": "TransactionConflict"}),
            Throttled,
        ),
        (canceled({"Code": "TransactionConflict"}, {"Code": "ValidationError"}), Rejected),
        (canceled({"Code": "ItemCollectionSizeLimitExceeded"}, {"Code": None}), Rejected),
        (canceled(FREE, {**TAKEN, "Item": {"key": {"S": "k"}}}), Rejected),
        (canceled({**TAKEN, "Item": {"channel": {"S": "room"}}}, FREE), Rejected),
        (canceled(FREE, FREE), Rejected),
        (canceled(), Rejected),
        # An earlier attempt of the same append may be just being carried out.
        (client_error("TransactionInProgressException"), UnknownOutcome),
        (client_error("IdempotentParameterMismatchException"), Rejected),
        (client_error("ResourceNotFoundException"), Rejected),
        (client_error("ThrottlingException"), Throttled),
        (client_error("InternalServerError", 500), UnknownOutcome),
    ],
)
async def test_what_a_failed_transaction_means(error: Any, port_error: type[Exception]) -> None:
    client = FakeClient(transact_write_items=lambda **_: error)
    with pytest.raises(port_error):
        await table(client).put_keyed_item(*keyed(1, "k"), valid_until())


async def test_a_read_of_which_one_half_fails_raises_its_error() -> None:
    def query(ScanIndexForward: bool, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        return client_error("ThrottlingException") if ScanIndexForward else {"Items": []}

    with pytest.raises(Throttled):
        await table(FakeClient(query=query)).read_forward("room", 5, 10)


async def test_what_spans_the_start_is_found_though_it_was_written_between_the_two_reads() -> None:
    spanning, following = log_item(5, 9), log_item(10)
    backward = iter([[], [spanning.attributes()]])

    def query(ScanIndexForward: bool, **_: Any) -> Any:  # noqa: N803  # the SDK's name
        return {"Items": [following.attributes()] if ScanIndexForward else next(backward)}

    page = await table(FakeClient(query=query)).read_forward("room", 8, 10)
    assert page.items == (spanning, following)
    assert not page.more


async def test_a_table_that_never_ends_is_read_within_a_bound() -> None:
    def query(**_: Any) -> Any:
        return {"Items": [], "LastEvaluatedKey": {"channel": {"S": "room"}, "offset": {"N": "1"}}}

    client = FakeClient(query=query)
    page = await table(client).read_backward("room", 9, 10)
    assert page.items == ()
    assert page.more
    assert len(client.calls) < 10


async def test_a_key_is_read_consistently_and_a_damaged_one_refused() -> None:
    _, [stored] = keyed(1, "k")
    items = [{"Item": stored.attributes()}, {}, {"Item": {"key": {"S": stored.key}}}]
    client = FakeClient(get_item=lambda **_: items.pop(0))
    assert await table(client).key(stored.key) == stored
    [(_, asked)] = client.calls
    assert asked["ConsistentRead"]
    assert (asked["TableName"], asked["Key"]) == ("idempotency", {"key": {"S": stored.key}})
    assert await table(client).key(stored.key) is None
    with pytest.raises(Rejected):
        await table(client).key(stored.key)
