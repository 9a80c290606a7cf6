"""batch: replies in the order of the commands, each on its own,
and no more than there is room for.
"""

from __future__ import annotations

import asyncio
import itertools
from io import BytesIO
from typing import Any

import pytest

from roomcast.gateway.api import batch as batch_module
from roomcast.gateway.api.batch import BATCH_BODY_BYTES_MAX, BATCH_COMMANDS_MAX
from roomcast.gateway.api.methods import COMMANDS_A_TURN
from roomcast.gateway.api.publishing import BROADCAST_AT_ONCE
from roomcast.ports import Rejected
from tests.unit.gateway.api.conftest import Caller

NOT_FOUND = {"error": {"code": 104, "message": "method not found"}}


async def batch(caller: Caller, *commands: Any, **more: Any) -> list[Any]:
    answer = await caller.ask("batch", commands=list(commands), **more)
    assert answer.keys() == {"replies"}, answer
    replies = answer["replies"]
    assert isinstance(replies, list)
    return replies


def publish(data: Any, channel: str = "lobby") -> dict[str, Any]:
    return {"publish": {"channel": channel, "data": data}}


@pytest.mark.parametrize("parallel", [False, True])
async def test_each_command_has_its_reply(caller: Caller, parallel: bool) -> None:
    replies = await batch(
        caller,
        publish(1),
        publish(2, "no:where"),
        {"history": {"channel": "other", "limit": 1}},
        {"broadcast": {"channels": ["a", "b"], "data": 1}},
        {"presence": {"channel": "lobby"}},
        {"publish": {"channel": "lobby"}},
        {"info": {}},
        parallel=parallel,
    )
    assert replies[0]["publish"]["offset"] == 1
    assert replies[1] == {"error": {"code": 102, "message": "unknown channel"}}
    assert replies[2]["history"]["publications"] == []
    assert [each["result"]["offset"] for each in replies[3]["broadcast"]["responses"]] == [1, 1]
    assert replies[4]["error"]["code"] == 108
    assert replies[5] == {"error": {"code": 107, "message": "bad request: data is required"}}
    assert replies[6] == {"info": {"nodes": []}}


async def test_commands_are_carried_out_in_order_unless_parallel(caller: Caller) -> None:
    replies = await batch(
        caller, publish(1), {"history": {"channel": "lobby", "limit": 9}}, publish(2), publish(3)
    )
    assert [entry["data"] for entry in caller.stored()] == [1, 2, 3]
    assert len(replies[1]["history"]["publications"]) == 1
    assert [replies[index]["publish"]["offset"] for index in (0, 2, 3)] == [1, 2, 3]


async def test_publications_that_follow_each_other_in_a_channel_share_appends(
    caller: Caller,
) -> None:
    replies = await batch(caller, *(publish(number) for number in range(100)))
    assert [reply["publish"]["offset"] for reply in replies] == list(range(1, 101))
    assert [entry["data"] for entry in caller.stored()] == list(range(100))
    assert len(caller.node.world.stream) < 20, "not an append each"


@pytest.mark.parametrize(
    "command",
    [
        publish(2, "other"),
        {"publish": {"channel": "lobby", "data": 2, "skip_history": True}},
        publish(2, "plain:room"),
        {"broadcast": {"channels": ["lobby"], "data": 2}},
        {"history": {"channel": "lobby"}},
    ],
    ids=["another channel", "not stored", "without history", "broadcast", "read"],
)
async def test_nothing_else_begins_before_a_publication_is_in_the_log(
    caller: Caller, fleet: Any, command: Any
) -> None:
    publisher = caller.node.assembly.node.services.publisher
    held = fleet.traffic.hold("put_item")
    asking = asyncio.create_task(batch(caller, publish(1), command))
    await held.arrived(1)
    calls = sum(fleet.traffic.calls.values())
    for _ in range(50):
        await asyncio.sleep(0)
    assert (held.count, sum(fleet.traffic.calls.values())) == (1, calls)
    assert publisher.signalled == 0
    held.release()
    assert all("error" not in reply for reply in await asking)


async def test_publications_of_a_batch_leave_room_in_their_lane(
    caller: Caller, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "BATCH_TOGETHER_BYTES", 1000)
    appender = caller.node.assembly.node.services.appender
    held = fleet.traffic.hold("put_item")
    commands = [publish("x" * 200)] * 50
    asking = asyncio.create_task(batch(caller, *commands))
    await held.arrived(1)
    for _ in range(50):
        await asyncio.sleep(0)
    assert 1000 <= appender.waiting_bytes < 1500
    held.release()
    replies = await asking
    assert [reply["publish"]["offset"] for reply in replies] == list(range(1, 51))


async def test_a_key_counts_within_a_batch(caller: Caller) -> None:
    keyed = {"publish": {"channel": "lobby", "data": 1, "idempotency_key": "order-1"}}
    first, second, third = await batch(caller, keyed, publish(2), keyed)
    assert third == first != second
    assert [entry["data"] for entry in caller.stored()] == [1, 2]


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_publication_that_fails_is_one_error(caller: Caller, parallel: bool) -> None:
    await caller.publish()
    caller.node.world.fail_next("put_item", Rejected("simulated"))
    replies = await batch(
        caller, publish(1), publish(2, "no:where"), publish(3, "other"), parallel=parallel
    )
    assert [reply.get("error", {}).get("code") for reply in replies] == [100, 102, None]


async def test_a_parallel_batch_is_under_way_at_once_and_not_all_of_it(
    caller: Caller, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "BATCH_AT_ONCE", 3)
    held = fleet.traffic.hold("newest")
    commands = [publish(number, f"c{number}") for number in range(5)]
    asking = asyncio.create_task(batch(caller, *commands, parallel=True))
    await held.arrived(3)
    await asyncio.sleep(0)
    assert held.count == 3
    held.release()
    assert [reply["publish"]["offset"] for reply in await asking] == [1] * 5


async def test_fewer_are_under_way_at_once_of_those_that_are_no_publications(
    caller: Caller, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "BATCH_OTHERS_AT_ONCE", 2)
    held = fleet.traffic.hold("newest")
    reads = [{"history": {"channel": f"c{number}", "limit": 1}} for number in range(5)]
    commands = [*reads, *(publish(number, f"p{number}") for number in range(3))]
    asking = asyncio.create_task(batch(caller, *commands, parallel=True))
    await held.arrived(2)
    await asyncio.sleep(0)
    assert held.count == 2
    held.release()
    replies = await asking
    assert [reply["history"]["publications"] for reply in replies[:5]] == [[]] * 5
    assert [reply["publish"]["offset"] for reply in replies[5:]] == [1] * 3


async def test_what_one_turn_carries_out_is_bounded_over_all_broadcasts_and_requests(
    caller: Caller,
) -> None:
    """However much of it is under way at once: channels without history wait for nothing else."""
    publisher = caller.node.assembly.node.services.publisher
    channels, broadcasts, requests = BROADCAST_AT_ONCE, 4, 2
    counts = [0]

    async def count() -> None:
        while True:
            counts.append(publisher.signalled)
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    command = {"broadcast": {"channels": ["plain:room"] * channels, "data": 1}}
    answers = await asyncio.gather(
        *(batch(caller, *[command] * broadcasts, parallel=True) for _ in range(requests))
    )
    counting.cancel()
    assert all(
        reply["broadcast"]["responses"] == [{"result": {}}] * channels
        for replies in answers
        for reply in replies
    )
    assert publisher.signalled == channels * broadcasts * requests
    turns = [after - before for before, after in itertools.pairwise(counts)]
    assert 0 < max(turns) <= COMMANDS_A_TURN


@pytest.mark.parametrize(
    "command, reply",
    [
        ({}, NOT_FOUND),
        ({"publish": None}, NOT_FOUND),
        ({"batch": {"commands": []}}, NOT_FOUND),
        ({"rpc": {}}, NOT_FOUND),
        (None, {"error": {"code": 107, "message": "bad request: commands[1] must be an object"}}),
        (
            [publish(1)],
            {"error": {"code": 107, "message": "bad request: commands[1] must be an object"}},
        ),
        (
            {"publish": 5},
            {"error": {"code": 107, "message": "bad request: the request must be an object"}},
        ),
    ],
)
async def test_what_is_no_command(caller: Caller, command: Any, reply: Any) -> None:
    replies = await batch(caller, publish(1), command, publish(2))
    assert replies[1] == reply
    assert [replies[index]["publish"]["offset"] for index in (0, 2)] == [1, 2]


@pytest.mark.parametrize(
    "params, message",
    [
        ({}, "commands is required"),
        ({"commands": {}}, "commands must be an array of 0 to 1000 values"),
        (
            {"commands": [{}] * (BATCH_COMMANDS_MAX + 1)},
            "commands must be an array of 0 to 1000 values",
        ),
        ({"commands": [], "parallel": 1}, "parallel must be true or false"),
    ],
)
async def test_what_is_no_batch(caller: Caller, params: dict[str, Any], message: str) -> None:
    assert await caller.refusal("batch", **params) == (107, f"bad request: {message}")


async def test_an_empty_batch(caller: Caller) -> None:
    assert await batch(caller) == []
    assert len(await batch(caller, *[{}] * BATCH_COMMANDS_MAX)) == BATCH_COMMANDS_MAX


async def test_replies_together_are_bounded(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "BATCH_REPLIES_BYTES_MAX", 150)
    replies = await batch(caller, *(publish(number) for number in range(5)))
    done = [reply for reply in replies if "publish" in reply]
    assert 0 < len(done) < 5
    assert len(caller.stored()) == len(done), "what is left is not carried out"
    assert replies[-1]["error"] == {
        "code": 106,
        "message": "limit exceeded: the replies of the batch are too large",
    }


async def test_a_batch_is_bounded_in_bytes(caller: Caller) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"commands":[]}'.ljust(BATCH_BODY_BYTES_MAX)
    assert (await caller.post(data=BytesIO(body), to="batch", headers=headers))[0] == 200
    assert (await caller.post(data=BytesIO(body + b" "), to="batch", headers=headers))[0] == 413


async def test_nothing_begins_behind_what_failed(caller: Caller) -> None:
    not_begun = "too many requests: not begun: a command before it failed"
    wrong = {"publish": {"channel": "lobby"}}
    for first in (publish(1), {"history": {"channel": "lobby"}}):
        replies = await batch(
            caller, first, wrong, publish(2), {"info": {}}, publish(3), stop_at_error=True
        )
        codes = [reply.get("error", {}).get("code") for reply in replies]
        assert codes == [None, 107, 111, 111, 111]
        assert replies[2]["error"]["message"] == not_begun
    history = await caller.result("history", channel="lobby", limit=-1)
    assert [each["data"] for each in history["publications"]] == [1]
    told = await caller.ask("batch", commands=[publish(1)], parallel=True, stop_at_error=True)
    assert told["error"]["code"] == 107
    assert "stop_at_error" in told["error"]["message"]
