"""service/roomcast/bench/run.py, client.py and api.py: loads on nodes over memory, and on a server
that breaks promises.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from roomcast.backoff import Backoff
from roomcast.bench import client as client_module
from roomcast.bench import run as run_module
from roomcast.bench.advice import Declined
from roomcast.bench.plan import Plan
from roomcast.bench.report import report
from roomcast.bench.run import Access, Bench
from roomcast.wire.codes import Closing, Disconnect, DisconnectCode
from tests.unit.bench.faulty import Pushes, faulty, one
from tests.unit.redirecting import redirecting
from tests.unit.served import KEY, Served
from tests.unit.worlds import SECRET, LocalNode, until

pytestmark = pytest.mark.usefixtures("quiet")

PATH = "/connection/websocket"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(client_module, "_BACKOFF", Backoff(0.002, 1.0))
    monkeypatch.setattr(run_module, "_LOOK_S", 0.002)


def plan(url: str, **changes: Any) -> Plan:
    """A quarter of a second, with 100 publications, if nothing else is said."""
    address = url.replace("http", "ws", 1) + ("" if url.endswith(PATH) else PATH)
    chosen = {"clients": 6, "channels": 2, "rate": 400, "duration": 0.25, "ramp": 1000} | changes
    least = Plan([address], os.urandom(4).hex(), publishers=1)
    return replace(least, **{"publishers": chosen["clients"]} | chosen)


def token(**claims: Any) -> Access:
    signed = jwt.encode({"sub": "ann"} | claims, SECRET)
    return Access(lambda _client: signed)


NOBODY = Access(lambda _client: "")


def outcome(bench: Bench, of: Plan) -> dict[str, Any]:
    return report(of, bench.ledger, bench.times, interrupted=bench.interrupted)


async def loaded(of: Plan, access: Access = NOBODY) -> dict[str, Any]:
    bench = Bench(of, access)
    await bench.run()
    return outcome(bench, of)


async def closing(node: LocalNode, why: Closing) -> None:
    for connection in list(node.assembly.node._connections):
        connection.close(why)


async def all_gone(node: LocalNode) -> None:
    await until(lambda: not node.assembly.node._connections)


async def test_a_load(served: Served) -> None:
    of = plan(served.url, subscriptions=2)
    bench = Bench(of, NOBODY)
    assert bench.progress().done == 0
    await bench.run()
    found = outcome(bench, of)
    assert found["reasons"] == []
    assert found["connections"]["connected"] == found["connect_ms"]["count"] == 6
    assert found["publications"]["sent"] == found["publications"]["acknowledged"] == 100
    # Each channel has all six clients.
    assert found["deliveries"] == {
        "expected": 600,
        "received": 600,
        "lost": 0,
        "away": 0,
        "repeated": 0,
        "out_of_order": 0,
        "foreign": 0,
        "rate": found["deliveries"]["rate"],
    }
    assert 0 < found["deliveries"]["rate"] < 2600
    assert found["delivered_ms"]["count"] == 600
    assert 0 < found["acknowledged_ms"]["min"] <= found["acknowledged_ms"]["max"] < 1000
    assert 0.25 <= found["elapsed_s"] < 10
    served.do(all_gone)


async def test_through_the_api(served: Served) -> None:
    of = plan(served.url, apis=[served.url])
    found = await loaded(of, Access(lambda _client: "", key=KEY))
    assert found["reasons"] == []
    assert found["publications"]["acknowledged"] == 100
    assert found["deliveries"]["received"] == 300


@pytest.mark.parametrize("key, told", [("another", "HTTP 401; it wants another key")])
async def test_the_api_refuses(served: Served, key: str, told: str) -> None:
    of = plan(served.url, apis=[served.url])
    with pytest.raises(Declined, match=told):
        await loaded(of, Access(lambda _client: "", key=key))
    served.do(all_gone)


async def test_the_api_is_not_there(served: Served, unused_tcp_port: int) -> None:
    of = plan(served.url, apis=[f"http://127.0.0.1:{unused_tcp_port}"])
    with pytest.raises(Declined, match="connection refused; nobody listens there"):
        await loaded(of)


async def test_who_is_closed_comes_back_and_misses_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for some publications of the API.
    monkeypatch.setattr(client_module, "_BACKOFF", Backoff(0.1, 1.0))
    of = plan(served.url, duration=0.5, apis=[served.url])
    bench = Bench(of, Access(lambda _client: "", key=KEY))

    async def close() -> None:
        await until(lambda: bench.ledger.sent > 50)
        await asyncio.to_thread(served.do, lambda node: closing(node, Disconnect.SHUTDOWN))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(close())
        await bench.run()
    found = outcome(bench, of)
    assert found["reasons"] == []
    assert found["connections"]["reconnects"] == 6
    assert found["connections"]["gone"] == 0
    assert found["connections"]["closes"] == [
        {"reason": "the server closed the connection: shutdown (3001)", "count": 6}
    ]
    deliveries = found["deliveries"]
    assert (deliveries["lost"], deliveries["away"], deliveries["out_of_order"]) == (0, 0, 0)
    assert found["publications"]["acknowledged"] == 200
    assert deliveries["received"] == 600


async def test_who_is_closed_for_good_stays_away(served: Served) -> None:
    of = plan(served.url, wait=0)
    bench = Bench(of, NOBODY)

    async def close() -> None:
        await until(lambda: bench.ledger.sent > 20)
        why = DisconnectCode(4500, "banned")
        await asyncio.to_thread(served.do, lambda node: closing(node, why))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(close())
        await bench.run()
    found = outcome(bench, of)
    assert "6 clients lost the connection and did not come back" in found["reasons"]
    assert found["connections"]["reconnects"] == 0
    assert found["publications"]["not_sent"] > 0
    assert found["deliveries"]["lost"] == 0


async def test_an_unsubscribe_that_asks_for_it_is_followed_by_a_subscribe(served: Served) -> None:
    of = plan(served.url, clients=1, channels=1)
    bench = Bench(of, NOBODY)

    async def lose(node: LocalNode) -> None:
        """Another epoch begins."""
        node.world.items.pop(of.channel_name(0))
        await node.assembly.dispatcher.check_tail(of.channel_name(0))

    async def break_it() -> None:
        await until(lambda: bench.ledger.received > 20)
        await asyncio.to_thread(served.do, lose)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(break_it())
        await bench.run()
    found = outcome(bench, of)
    assert [each["reason"] for each in found["connections"]["closes"]] == [
        "unsubscribed: insufficient state (2500)"
    ]
    assert found["deliveries"]["received"] > 30
    assert found["deliveries"]["lost"] == 0


# ---- refusals


@pytest.mark.parametrize(
    "access, told",
    [
        (NOBODY, r"connect: unauthorized \(101\); take --token"),
        (Access(lambda _client: "x.y.z"), r"invalid token \(3500\); a key under client.token"),
        (token(), r"subscribe: permission denied \(103\); set allow_subscribe_for_client"),
        (
            token(caps=[{"channels": ["*"], "match": "wildcard", "allow": ["sub"]}]),
            r"publish: permission denied \(103\); set allow_publish_for_subscriber",
        ),
    ],
)
async def test_refusals(secured: Served, access: Access, told: str) -> None:
    with pytest.raises(Declined, match=told):
        await loaded(plan(secured.url), access)
    secured.do(all_gone)


async def test_a_namespace_that_is_not_there(served: Served) -> None:
    with pytest.raises(Declined, match=r"unknown channel \(102\); --namespace must be one of"):
        await loaded(plan(served.url, namespace="no"))


async def test_where_a_client_cannot_come_the_others_load(secured: Served) -> None:
    """Only one of them has a token."""
    allow = {"channels": ["*"], "match": "wildcard", "allow": ["sub", "pub"]}
    good = jwt.encode({"sub": "ann", "caps": [allow]}, SECRET)
    access = Access(lambda client: "" if client == 1 else good)
    found = await loaded(plan(secured.url, clients=2, channels=1), access)
    assert found["connections"]["connected"] == 1
    (reason,) = found["reasons"]
    assert reason.startswith("1 of 2 clients could not connect (connect: unauthorized (101)")
    assert found["deliveries"]["received"] == 100


async def test_nobody_is_there(unused_tcp_port: int) -> None:
    with pytest.raises(Declined, match="connection refused; nobody listens there"):
        await loaded(plan(f"http://127.0.0.1:{unused_tcp_port}"))


async def test_an_origin_that_is_refused(served: Served) -> None:
    access = Access(lambda _client: "", origin="http://evil.example")
    with pytest.raises(Declined, match=r"client.allowed_origins .* have http://evil.example"):
        await loaded(plan(served.url), access)


async def test_a_server_that_is_none(served: Served) -> None:
    of = plan(served.url, urls=[served.url.replace("http", "ws", 1) + "/nothing"])
    with pytest.raises(Declined, match="HTTP 404; nothing is at this path"):
        await loaded(of)


async def test_tokens_and_the_key_go_nowhere_else(served: Served) -> None:
    access = Access(lambda _client: "secret", key="secret")
    with redirecting(302) as (url, elsewhere, heard):
        told = f"redirects to {elsewhere}/there: give that address if it is meant"
        with pytest.raises(Declined, match=told):
            await loaded(plan(url), access)
        with pytest.raises(Declined, match=told):
            await loaded(plan(served.url, apis=[url]), Access(NOBODY.token_of, key="secret"))
    assert heard == []
    served.do(all_gone)


@pytest.mark.parametrize("answer", ["[]", "<html>", '{"error": "no"}', '{"error": {"code": "x"}}'])
async def test_an_api_that_is_none(served: Served, answer: str) -> None:
    async def answered(_request: web.Request) -> web.Response:
        return web.Response(text=answer)

    app = web.Application()
    app.router.add_post("/api/publish", answered)
    async with TestServer(app) as other:
        api = str(other.make_url("/")).rstrip("/")
        with pytest.raises(Declined, match=f"{api}/api/publish answers with what is no answer"):
            await loaded(plan(served.url, apis=[api]))


# ---- interrupts


async def interrupted(bench: Bench, when: Callable[[], bool], times: int = 1) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(bench.run())
        await until(when)
        for _ in range(times):
            bench.interrupt()
        await running


async def test_an_interrupt_while_they_connect(served: Served) -> None:
    of = plan(served.url, ramp=1)
    bench = Bench(of, NOBODY)
    await interrupted(bench, lambda: bool(bench.ledger.connected))
    found = outcome(bench, of)
    assert (found["interrupted"], found["ok"]) == ("connecting", True)
    assert 1 <= found["connections"]["connected"] < 6
    assert found["publications"]["sent"] == 0
    assert found["elapsed_s"] < 5
    served.do(all_gone)


async def test_an_interrupt_while_it_publishes_waits_for_what_is_under_way(served: Served) -> None:
    of = plan(served.url, rate=100, duration=60)
    bench = Bench(of, NOBODY)
    await interrupted(bench, lambda: bench.ledger.sent > 20)
    found = outcome(bench, of)
    assert (found["interrupted"], found["reasons"]) == ("publishing", [])
    sent = found["publications"]["sent"]
    assert 20 < sent < 200
    assert found["publications"]["acknowledged"] == sent
    assert found["deliveries"]["received"] == 3 * sent
    served.do(all_gone)


async def test_an_interrupt_while_it_waits_ends_it() -> None:
    async with faulty(lambda _number, _publication: []) as url:
        of = plan(url, clients=1, channels=1, wait=60)
        bench = Bench(of, NOBODY)
        await interrupted(bench, lambda: "waiting for 100 deliveries" in bench.progress().told)
        found = outcome(bench, of)
    # Nobody knows whether they would have come.
    assert (found["interrupted"], found["ok"]) == ("waiting", True)
    assert found["deliveries"]["lost"] == 100


# ---- what must be noticed


def again(number: int, publication: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one(number + 1, publication)] * (2 if number == 7 else 1)


def one_is_lost(number: int, publication: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [] if number == 99 else [one(number + 1, publication)]


def backwards(number: int, publication: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one(200 - number, publication)]


@pytest.mark.parametrize(
    "pushes, reasons",
    [
        (again, ["1 delivery came again"]),
        (
            one_is_lost,
            ["1 of 100 deliveries did not come within 1 s of the last publication"],
        ),
        # All but the first do not follow the one before, and stand before what was sent earlier.
        (backwards, ["199 deliveries out of order"]),
    ],
)
async def test_broken_promises(pushes: Pushes, reasons: list[str]) -> None:
    async with faulty(pushes) as url:
        found = await loaded(plan(url, clients=1, channels=1, wait=1))
    assert found["reasons"] == reasons


async def test_a_server_that_speaks_something_else() -> None:
    async with faulty(lambda _number, _publication: [{"push": "?"}]) as url:
        of = plan(url, clients=1, channels=1, wait=0)
        found = await loaded(of)
    (closed,) = found["connections"]["closes"]
    assert "does not speak the Centrifuge protocol" in closed["reason"]
