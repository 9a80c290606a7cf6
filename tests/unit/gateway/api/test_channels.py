"""history, presence and channels: what there is, and what is refused; info: the nodes that live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from roomcast.fleet.lease_record import Lease
from roomcast.fleet.node_info import Counted
from roomcast.ports import Rejected, Throttled
from roomcast.presence.ports import TooManyMembers
from roomcast.wire.codes import Error
from tests.unit.gateway.api.conftest import Caller, Serve
from tests.unit.worlds import until

CHANNEL = "lobby"


async def filled(caller: Caller, count: int = 3) -> str:
    """`count` publications in CHANNEL; its epoch."""
    for number in range(1, count + 1):
        answer = await caller.result(
            "publish", channel=CHANNEL, data=number, tags={"n": str(number)}
        )
    return str(answer["epoch"])


def offsets(history: Mapping[str, Any]) -> list[int]:
    return [publication["offset"] for publication in history["publications"]]


# ---- history


async def test_history_is_told_as_clients_get_it(caller: Caller) -> None:
    epoch = await filled(caller)
    history = await caller.result("history", channel=CHANNEL, limit=10)
    assert (history["epoch"], history["offset"], offsets(history)) == (epoch, 3, [1, 2, 3])
    first = history["publications"][0]
    assert first == {"data": 1, "offset": 1, "tags": {"n": "1"}, "time": first["time"]}


@pytest.mark.parametrize(
    "params, expected",
    [
        ({}, []),
        ({"limit": 0}, []),
        ({"limit": 2}, [1, 2]),
        ({"limit": -1}, [1, 2, 3]),
        ({"limit": -1, "reverse": True}, [3, 2, 1]),
        ({"limit": 10, "since": {"offset": 1}}, [2, 3]),
        ({"limit": 10, "since": {"offset": 3}, "reverse": True}, [2, 1]),
        ({"limit": 2**31 - 1, "since": None, "reverse": False}, [1, 2, 3]),
    ],
)
async def test_what_of_the_history_is_wanted(
    caller: Caller, params: dict[str, Any], expected: list[int]
) -> None:
    await filled(caller)
    history = await caller.result("history", channel=CHANNEL, **params)
    assert (offsets(history), history["offset"]) == (expected, 3)


async def test_a_part_of_the_history_by_time(caller: Caller) -> None:
    await filled(caller)
    clock = caller.node.clock
    clock.advance(60)
    since_ms = clock.now_ms()
    await caller.publish()
    asked = {"channel": CHANNEL, "limit": -1}
    after = await caller.result("history", since_time=since_ms, **asked)
    assert (offsets(after), after["offset"], after["since_offset"]) == ([4], 4, 3)
    assert "until_offset" not in after
    before = await caller.result("history", until_time=since_ms, reverse=True, **asked)
    assert (offsets(before), before["offset"], before["until_offset"]) == ([3, 2, 1], 4, 3)
    both = await caller.result("history", since_time=0, until_time=2**53 - 1, **asked)
    assert (offsets(both), both["since_offset"], both["until_offset"]) == ([1, 2, 3, 4], 0, 4)


async def test_an_answer_is_bounded_as_a_clients_is(serve: Serve) -> None:
    caller = await serve(history_max_publication_limit=2)
    await filled(caller)
    for limit in (-1, 3):
        assert offsets(await caller.result("history", channel=CHANNEL, limit=limit)) == [1, 2]


@pytest.mark.parametrize(
    "params, expected",
    [
        ({"channel": "no:where"}, (102, "unknown channel")),
        ({"channel": "plain:x"}, (108, "not available: the channel has no history")),
        ({}, (107, "bad request: channel is required")),
        (
            {"channel": CHANNEL, "limit": 2**31},
            (107, "bad request: limit must be a whole number from -2147483648 to 2147483647"),
        ),
        ({"channel": CHANNEL, "since": 5}, (107, "bad request: since must be an object")),
        (
            {"channel": CHANNEL, "since": {"offset": "1"}},
            (107, "bad request: since.offset must be a whole number from 0 to 9007199254740991"),
        ),
        (
            {"channel": CHANNEL, "limit": 1, "reverse": True, "since": {}},
            (107, "bad request: since.offset must be above 0 with reverse: nothing is before it"),
        ),
        (
            {"channel": CHANNEL, "limit": 1, "until_time": -1},
            (107, "bad request: until_time must be a whole number from 0 to 9007199254740991"),
        ),
        (
            {"channel": CHANNEL, "limit": 1, "since_time": 1.5},
            (107, "bad request: since_time must be a whole number from 0 to 9007199254740991"),
        ),
        (
            {"channel": CHANNEL, "limit": 1, "since": {"epoch": "another"}},
            (112, "unrecoverable position"),
        ),
    ],
)
async def test_history_that_is_not_to_be_had(
    caller: Caller, params: dict[str, Any], expected: tuple[int, str]
) -> None:
    await filled(caller)
    assert await caller.refusal("history", **params) == expected


async def test_what_is_removed_is_hidden_on_every_node_at_once(serve: Serve) -> None:
    here, there = await serve(), await serve(name="b")
    async with here.node.running(), there.node.running():
        epoch = await filled(here)
        since = {"recover": True, "epoch": epoch, "offset": 1}
        first = await there.node.client()
        assert len((await first.subscribe(CHANNEL, **since))["publications"]) == 2
        assert await here.result("history_remove", channel=CHANNEL) == {}
        history = await there.result("history", channel=CHANNEL, limit=10)
        assert history == {"publications": [], "epoch": epoch, "offset": 3}
        await until(lambda: there.node.assembly.dispatcher.channels[CHANNEL].trim.offset == 3)
        second = await there.node.client()
        assert "recovered" not in await second.subscribe(CHANNEL, **since)
        assert (await here.publish())["result"]["offset"] == 4
        assert offsets(await here.result("history", channel=CHANNEL, limit=10)) == [4]
        for client in (first, second):
            there.node.assembly.node.closed(client.connection)


async def test_nothing_to_remove(caller: Caller) -> None:
    assert await caller.refusal("history_remove", channel="plain:x") == (
        108,
        "not available: the channel has no history",
    )
    assert await caller.refusal("history_remove", channel="no:where") == (102, "unknown channel")
    assert await caller.refusal("history_remove") == (107, "bad request: channel is required")
    assert await caller.result("history_remove", channel="never used") == {}


# ---- presence


async def test_presence(caller: Caller) -> None:
    assert await caller.result("presence", channel="all:x") == {"presence": {}}
    caller.node.clock.advance(2)
    clients = [await caller.node.client() for _ in range(2)]
    for client in clients:
        await client.subscribe("all:x")
    members = (await caller.result("presence", channel="all:x"))["presence"]
    assert members == {client.id: {"user": "", "client": client.id} for client in clients}
    assert await caller.result("presence_stats", channel="all:x") == {
        "num_clients": 2,
        "num_users": 1,
    }


@pytest.mark.parametrize("method", ["presence", "presence_stats"])
async def test_presence_that_is_not_to_be_had(caller: Caller, method: str) -> None:
    assert await caller.refusal(method, channel="plain:x") == (
        108,
        "not available: the channel has no presence",
    )
    assert await caller.refusal(method, channel="no:where") == (102, "unknown channel")
    assert await caller.refusal(method, channel=None) == (107, "bad request: channel is required")


async def test_more_members_than_can_be_read(caller: Caller) -> None:
    caller.node.world.fail_next("members", TooManyMembers("of the test"))
    for method in ("presence", "presence_stats"):
        assert await caller.refusal(method, channel="all:x") == (
            106,
            "limit exceeded: the channel has too many members",
        )


# ---- channels and info


async def test_channels_of_all_nodes(serve: Serve) -> None:
    here, there = await serve(), await serve(name="b")
    async with here.node.running(), there.node.running():
        clients = [(each, await each.node.client()) for each in (here, here, there)]
        for _, client in clients:
            await client.subscribe("all:x")
        await clients[2][1].subscribe("plain:y")
        here.node.world.leases |= {
            name: Lease(name, "", "live", 0, 0, here.node.clock.now_ms() + 60_000) for name in "ab"
        }
        for caller in (here, there):
            assert await caller.result("channels") == {
                "channels": {"all:x": {"num_clients": 3}, "plain:y": {"num_clients": 1}},
                "partial": False,
            }
        assert (await here.result("channels", pattern="pl*"))["channels"].keys() == {"plain:y"}
        for caller, client in clients:
            caller.node.assembly.node.closed(client.connection)


async def test_channels_may_be_incomplete_or_too_much(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counted | None = Counted({"c": 1}, whole=False)

    async def channels(pattern: str) -> Counted | None:
        return counted

    monkeypatch.setattr(caller.node.assembly.node.node_info, "channels", channels)
    assert await caller.result("channels") == {
        "channels": {"c": {"num_clients": 1}},
        "partial": True,
    }
    counted = None
    assert await caller.refusal("channels") == (111, "too many requests")
    assert await caller.refusal("channels", pattern=5) == (
        107,
        "bad request: pattern must be a string of at most 255 characters",
    )


async def test_info_lists_the_nodes_that_live(caller: Caller) -> None:
    now = caller.node.clock.now_ms()
    caller.node.world.leases = {
        "b-1": Lease(
            "b-1",
            "q",
            "live",
            now - 61_500,
            now,
            now + 1,
            version="1.2.3",
            instance="i-1",
            connections=5,
            channels=4,
            users=3,
        ),
        "a": Lease("a", "q", "live", now - 1000, now, now + 1),
        "dead": Lease("dead", "q", "live", now - 100, now, now - 1),
    }
    assert await caller.result("info") == {
        "nodes": [
            {
                "uid": "b-1",
                "name": "i-1",
                "version": "1.2.3",
                "num_clients": 5,
                "num_users": 3,
                "num_channels": 4,
                "uptime": 61,
            },
            {
                "uid": "a",
                "name": "a",
                "version": "",
                "num_clients": 0,
                "num_users": 0,
                "num_channels": 0,
                "uptime": 1,
            },
        ]
    }


# ---- when AWS does not answer


@pytest.mark.parametrize(
    "method, call",
    [
        ("history", "newest"),
        ("history_remove", "newest"),
        ("presence", "members"),
        ("presence_stats", "members"),
        ("channels", "all"),
        ("info", "all"),
    ],
)
async def test_a_table_that_does_not_answer_is_an_error_of_ours(
    caller: Caller, method: str, call: str
) -> None:
    params = {} if method in ("channels", "info") else {"channel": "all:x"}
    caller.node.world.fail_next(call, Rejected("simulated"))
    code, message = await caller.refusal(method, **params)
    assert (code, message) == (Error.INTERNAL.value.code, "internal server error")
    # What presence was read a moment ago, or could not be, is what is told.
    caller.node.clock.advance(2)
    assert "result" in await caller.ask(method, **params)


async def test_a_head_that_cannot_be_written_hides_nothing(caller: Caller) -> None:
    await filled(caller)
    caller.node.clock.advance(1000)
    caller.node.world.fail_next("put_head", Throttled("simulated"))
    assert await caller.result("history_remove", channel=CHANNEL) == {}
