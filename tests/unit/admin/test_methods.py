"""What the page asks: of the node that serves it, and of the others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from roomcast.admin import methods as methods_module
from roomcast.admin.methods import MEMBERS_MAX, PAYLOAD_CHARS_MAX
from roomcast.auth.verifier import sign_connection, sign_subscription
from roomcast.fleet.draining import Draining
from roomcast.fleet.lease_record import Lease
from roomcast.ports import Throttled
from tests.unit.admin.conftest import At, Open
from tests.unit.binary import binary
from tests.unit.worlds import SECRET, Fleet, until

LATER_MS = 10**15


@pytest.fixture
async def two(at: Open) -> tuple[At, At]:
    """The pages of two nodes that hear each other, and whose leases are there."""
    fleet = Fleet()
    pages = (
        await at(fleet=fleet, write=True),
        await at(fleet=fleet, name="b", write=True),
    )
    for name, page in zip("ab", pages, strict=True):
        queue = page.node.queue_names[-1]
        fleet.world.leases[name] = Lease(name, queue, "live", 1, 1, LATER_MS, version="0.1.0")
    return pages


async def test_the_fleet_is_told_with_who_did_not_answer(
    two: tuple[At, At], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    here.node.world.leases["c"] = Lease("c", "q-c", "live", 2, 1, LATER_MS, connections=7)
    here.node.world.leases["d"] = Lease("d", "q-d", "live", 2, 1, 1)
    monkeypatch.setattr("roomcast.fleet.inquiries.REPORTS_WAIT_S", 0.2)
    await there.node.client()
    await here.login()
    fleet = await here.answer(await here.connected(), "fleet")
    assert fleet["own"] == "a"
    told = {node["node"]: node for node in fleet["nodes"]}
    assert told["b"]["figures"]["connections"] == 1
    assert told["b"]["version"] == "0.1.0"
    assert told["c"]["figures"] is None
    assert told["c"]["connections"] == 7
    assert [node["node"] for node in fleet["dead"]] == ["d"]


async def test_a_channel_is_looked_at_on_all_nodes(two: tuple[At, At]) -> None:
    here, there = two
    for _ in range(2):
        await (await there.node.client()).subscribe("all:room")
    await here.login()
    socket = await here.connected()
    channel = await here.answer(socket, "channel", channel="all:room")
    assert {each["node"]: each["subscribers"] for each in channel["subscribers"]} == {
        "a": 0,
        "b": 2,
    }
    assert channel["silent"] == []
    assert channel["history"]
    assert (await here.answer(socket, "presence", channel="all:room"))["num_clients"] == 2
    busiest = await here.answer(socket, "busiest")
    assert [report["channels"] for report in busiest["reports"] if report["channels"]] == [
        [["all:room", 0.0, 2]]
    ]
    for method in ("channel", "history", "presence"):
        reply = await here.ask(socket, method, {"channel": "unknown:x"})
        assert reply["error"]["code"] in (102, 108)
        assert (await here.ask(socket, method, {"channel": "é"}))["error"]["code"] == 107


async def test_payloads_and_lists_of_members_are_cut(
    two: tuple[At, At], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = two
    monkeypatch.setattr(methods_module, "MEMBERS_MAX", 1)
    assert MEMBERS_MAX > 1
    client = await here.node.client()
    await client.subscribe("all:room")
    await (await here.node.client()).subscribe("all:room")
    await client.publish("all:room", "x" * (PAYLOAD_CHARS_MAX + 100))
    await here.login()
    socket = await here.connected()
    members = await here.answer(socket, "presence", channel="all:room")
    assert (members["num_clients"], len(members["members"])) == (2, 1)
    [kept] = (await here.answer(socket, "history", channel="all:room"))["publications"]
    assert len(kept["text"]) == PAYLOAD_CHARS_MAX
    assert kept["chars"] == PAYLOAD_CHARS_MAX + 102
    assert kept["client"] == client.connection.client


async def test_bytes_are_shown_as_base64(two: tuple[At, At]) -> None:
    here, _ = two
    await (await binary(here.node)).publish("bin:room", b"\xff\x00")
    await here.login()
    socket = await here.connected()
    [kept] = (await here.answer(socket, "history", channel="bin:room"))["publications"]
    assert (kept["text"], kept["chars"]) == ("base64 /wA=", 11)


async def test_of_what_clients_published_and_are_little_is_read_in_one_turn(
    two: tuple[At, At], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each payload, and each info, may be many kilobytes of arrays."""
    here, _ = two
    turn, read = 0, Counter[tuple[str, int]]()

    def counted(name: str) -> None:
        real = getattr(methods_module, name)

        def count(*arguments: Any) -> Any:
            read[name, turn] += 1
            return real(*arguments)

        monkeypatch.setattr(methods_module, name, count)

    async def go_by() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    counted("_publication")
    counted("_cut")
    monkeypatch.setattr(methods_module, "_MEMBERS_A_TURN", 1)
    clients = [await here.node.client() for _ in range(4)]
    for client in clients:
        await client.subscribe("all:room")
        await client.publish("all:room", [[]])
    await here.login()
    socket = await here.connected()
    going_by = asyncio.create_task(go_by())
    await here.answer(socket, "presence", channel="all:room")
    await here.answer(socket, "history", channel="all:room")
    going_by.cancel()
    assert (read.total(), max(read.values())) == (8, 1)


async def test_clients_are_found_and_disconnected_on_another_node(two: tuple[At, At]) -> None:
    here, there = two
    token = sign_connection("ann", SECRET, 600, now_s=there.clock.now_ms() // 1000)
    client = await there.node.client(token=token)
    await here.login()
    socket = await here.connected()
    found = await here.answer(socket, "clients", user="ann")
    assert [(node["node"], node["count"]) for node in found["nodes"]] == [("b", 1)]
    assert found["nodes"][0]["clients"][0]["client"] == client.connection.client
    assert await here.answer(socket, "disconnect", user="ann") == {}
    await until(lambda: client.socket.closed_with)


async def test_a_token_is_judged_and_not_counted(two: tuple[At, At]) -> None:
    here, _ = two
    await here.login()
    socket = await here.connected()
    now_s = here.clock.now_ms() // 1000
    good = sign_connection("ann", SECRET, 600, now_s=now_s)
    told = await here.answer(socket, "check_token", token=f" {good} ")
    assert (told["valid"], told["kind"], told["user"]) == (True, "connection", "ann")
    one = sign_subscription("ann", "room", SECRET, 600, now_s=now_s)
    told = await here.answer(socket, "check_token", token=one)
    assert (told["kind"], told["channel"]) == ("subscription", "room")
    late = sign_connection("ann", SECRET, 600, now_s=int(time.time()) - 10**9)
    for wrong in (good[:-3] + "AAA", late, "", "a.b.c"):
        assert not (await here.answer(socket, "check_token", token=wrong))["valid"]
    counters = here.node.assembly.node.services.counters
    assert not any(counters.token_failures.values())


async def test_a_node_is_drained_by_its_id(
    two: tuple[At, At], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    ended: list[str] = []
    draining: Draining = there.node.assembly.node.draining
    monkeypatch.setattr(draining, "_end", lambda: ended.append("b"))
    await here.login()
    socket = await here.connected()
    assert await here.answer(socket, "drain", node="b") == {"num_clients": 0, "here": False}
    assert ended == ["b"]
    assert (await here.ask(socket, "drain", {"node": "nobody"}))["error"]["code"] == 107


async def test_a_dry_run_is_begun_and_asked_about(at: Open) -> None:
    async def run(tell: Callable[[str], None]) -> Mapping[str, Any]:
        tell("looking")
        none: dict[str, Any] = dict.fromkeys(("nodes", "queues", "subscriptions", "failures"), ())
        return {"live": 2, "failed": 0, **none}

    page = await at(dry_run=run)
    await page.login()
    socket = await page.connected()
    assert (await page.answer(socket, "reap"))["running"]
    async with asyncio.timeout(20):
        while (state := await page.answer(socket, "reap_state"))["running"]:
            pass
    assert state["report"]["live"] == 2
    without = await at()
    await without.login()
    assert (await without.ask(await without.connected(), "reap"))["error"]["code"] == 104


async def test_what_takes_too_long_or_fails_is_told_in_words(
    two: tuple[At, At], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = two
    await here.login()
    socket = await here.connected()
    nodes = here.node.assembly.node.node_info

    async def throttled() -> None:
        raise Throttled("the table is busy")

    monkeypatch.setattr(nodes, "nodes_and_dead", throttled)
    error = (await here.ask(socket, "fleet"))["error"]
    assert error["code"] == 100
    assert "the table is busy" in error["message"]

    async def hangs() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(nodes, "nodes_and_dead", hangs)
    monkeypatch.setattr(methods_module, "CALL_S", 0.05)
    assert "not done in time" in (await here.ask(socket, "fleet"))["error"]["message"]
