"""Orders of the server API for clients of another instance, while AWS fails the one that is
asked.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import aiohttp
import pytest

from roomcast.cli import main as cli
from tests.chaos.proxy import Fault, FaultProxy, Phase
from tests.integration.serving import Aws, Process, deployed, pump, serving
from tests.websocket import DEADLINE_S, WebSocket

PREFIX: Final = "orders-"
LEASE_S: Final = 4.0
SHUTDOWN: Final = 3001
BANNED: Final = {"code": 4500, "reason": "banned"}

CONFIG: Final = f"""
[client]
insecure = true
[node]
drain_s = 0
lease_ttl_s = {LEASE_S}
heartbeat_s = 0.5
canary_interval_s = 120
"""

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("orders"), PREFIX) as aws, pump(aws):
        yield aws


@dataclass(frozen=True, slots=True)
class World:
    """`here` is asked, and reaches AWS through `proxy`; clients are at `there`."""

    proxy: FaultProxy
    here: Process
    there: Process
    session: aiohttp.ClientSession

    async def give(self, method: str, **asked: Any) -> dict[str, Any]:
        async with self.session.post(
            f"{self.here.url}/api/{method}", json=asked, headers={"X-API-Key": "any"}
        ) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[WebSocket, str]]:
        """A client, and its id."""
        async with self.session.ws_connect(f"{self.there.url}/connection/websocket") as response:
            client = WebSocket(response)
            yield client, (await client.ask("connect"))["client"]

    async def refuse(self, *services: str) -> None:
        await self.proxy.enter(Phase("refused", {Fault.DENIED: 1.0}, services=frozenset(services)))


@pytest.fixture
async def world(aws: Aws) -> AsyncIterator[World]:
    async with (
        FaultProxy(aws.endpoint, Random(1)) as proxy,
        aiohttp.ClientSession() as session,
        AsyncExitStack() as stack,
    ):
        configs = (
            aws.config("here", CONFIG, endpoint_url=proxy.url),
            aws.config("there", CONFIG),
        )
        here, there = (stack.enter_context(serving(config)) for config in configs)
        for process in (here, there):
            await asyncio.to_thread(process.ready)
        yield World(proxy, here, there, session)
        await proxy.calm_down()


async def closed(client: WebSocket) -> int | None:
    """The code with which the server closes."""
    while not client.response.closed:
        await client.response.receive(DEADLINE_S)
    return client.response.close_code


def refreshes(client: WebSocket) -> list[int]:
    return [
        line["push"]["refresh"]["ttl"] for line in client.lines if "refresh" in line.get("push", {})
    ]


async def test_an_order_for_a_client_arrives_whatever_the_topic_does(world: World) -> None:
    async with world.client() as (client, ident):
        await world.refuse("sns")
        assert await world.give("disconnect", client=ident, disconnect=BANNED) == {"result": {}}
        assert await closed(client) == BANNED["code"]
    assert world.proxy.calls["sqs.SendMessage"] == 1
    # For a user it is the topic that brings it.
    answer = await world.give("disconnect", user="ann")
    assert answer["error"]["code"] == 100


async def test_an_order_that_no_queue_takes_arrives_through_the_topic(world: World) -> None:
    async with world.client() as (client, ident):
        world.proxy.plan("sqs.SendMessage", Fault.DENIED, 1)
        assert await world.give("disconnect", client=ident, disconnect=BANNED) == {"result": {}}
        assert await closed(client) == BANNED["code"]
    assert world.proxy.injected[Fault.DENIED] == 1


async def test_an_order_that_goes_nowhere_is_an_error(world: World) -> None:
    async with world.client() as (client, ident):
        await world.refuse("sns", "sqs")
        answer = await world.give("refresh", client=ident)
        assert answer["error"] == {
            "code": 100,
            "message": "internal server error: the order may not have reached everybody",
        }
        await world.proxy.calm_down()
        assert await world.give("disconnect", client=ident, disconnect=BANNED) == {"result": {}}
        assert await closed(client) == BANNED["code"]
        assert refreshes(client) == []


async def test_an_order_whose_answer_was_lost_is_carried_out_once(world: World) -> None:
    later_s = 3_000_000_000
    async with world.client() as (client, ident):
        world.proxy.plan("sqs.SendMessage", Fault.RESET_AFTER, 1)
        for number in range(2):
            asked = {"client": ident, "expire_at": later_s + 1_000_000 * number}
            assert await world.give("refresh", **asked) == {"result": {}}
        await client.until(lambda: len(set(refreshes(client))) == 2)
        # What was under way has come before the answer: there is no such method.
        assert await client.ask("rpc", method="nothing") == 108
        assert len(refreshes(client)) == 2
    assert world.proxy.calls["sqs.SendMessage"] == 3


async def test_clients_of_a_node_that_was_killed_are_gone_and_that_is_no_error(
    aws: Aws, world: World
) -> None:
    async with world.client() as (_, ident):
        world.there.signal(signal.SIGKILL)
        await asyncio.to_thread(world.there.ended)
    assert await world.give("disconnect", client=ident) == {"result": {}}
    assert world.proxy.calls["sqs.SendMessage"] == 1, "its lease has not ended"
    aws.client("sqs").delete_queue(QueueUrl=aws.queues_of(world.there.node)[0])
    assert await world.give("disconnect", client=ident) == {"result": {}}


async def test_a_node_that_is_told_to_drain_ends_in_order(
    aws: Aws, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    node, asked = world.there.node, ("--url", world.here.url, "--key", "any")
    async with world.client() as (client, _):
        code = asyncio.create_task(asyncio.to_thread(cli.main, ["drain", node, *asked]))
        assert await closed(client) == SHUTDOWN
        assert await asyncio.to_thread(world.there.ended) == 0
    assert aws.left_of(node) == []
    assert await code == 0
    assert capsys.readouterr() == (f"{node} has ended; it had 1 connection.\n", "")
    ordered = world.there.said("drain_ordered")
    assert ordered["by"] == world.here.node
    # And when it is gone, that is said.
    assert await asyncio.to_thread(cli.main, ["drain", node, *asked]) == 1
    assert "node must be the id of a node that lives" in capsys.readouterr().err
