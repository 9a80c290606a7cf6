"""SIGTERM under load: what a node took is answered before it closes,
and what it did not answer it did not do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from random import Random
from typing import Final

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.chaos.proxy import Fault, FaultProxy
from tests.integration.serving import Aws, Process, deployed
from tests.websocket import WebSocket

PREFIX: Final = "drain-"
CLIENTS: Final = 8
# More than a client can send before the node is gone.
PUBLICATIONS_MAX: Final = 2000
# Each of a client's publications waits for so many before it.
UNDER_WAY: Final = 20
# What each write takes: two of them are well within what a node waits for answers.
SLOW_S: Final = (0.3, 0.6)
DEADLINE_S: Final = 30.0
SHUTDOWN: Final = 3001
KEY: Final = "a key of the tests"

CONFIG: Final = f"""
[client]
insecure = true
publish_rate_limit = 0
[channel.without_namespace]
history_size = 1000
history_ttl = "300s"
[http_api]
key = "{KEY}"
[node]
drain_s = 0
"""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with deployed(tmp_path_factory.mktemp("drain"), PREFIX) as aws:
        yield aws


class Publisher:
    """Publishes on and on, UNDER_WAY at a time, until the node closes,
    and remembers what was answered.
    """

    def __init__(self, name: str, socket: WebSocket) -> None:
        self._name = name
        self._socket = socket
        self._commands: dict[int, str] = {}
        self.sent: set[str] = set()
        self.answered: set[str] = set()
        self.closed_with: int | None = None

    async def run(self) -> None:
        await self._socket.ask("connect")
        reading = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not reading.done() and len(self.sent) < PUBLICATIONS_MAX:
                    if len(self.sent) - len(self.answered) < UNDER_WAY:
                        await self._publish()
                    else:
                        await asyncio.sleep(0.001)
                await reading
        finally:
            reading.cancel()

    async def _publish(self) -> None:
        data = f"{self._name} {len(self.sent)}"
        self.sent.add(data)
        [command_id] = await self._socket.say({"publish": {"channel": "room", "data": data}})
        self._commands[command_id] = data

    async def _read(self) -> None:
        response = self._socket.response
        while True:
            message = await response.receive()
            if message.type is not WSMsgType.TEXT:
                self.closed_with = response.close_code
                return
            for line in message.data.split("\n"):
                reply = json.loads(line)
                if "publish" in reply:
                    self.answered.add(self._commands[reply["id"]])
                assert "error" not in reply, reply


async def test_what_is_under_way_is_answered_and_the_rest_was_not_done(aws: Aws) -> None:
    async with (
        FaultProxy(aws.endpoint, Random(3), slow_s=SLOW_S) as proxy,
        aiohttp.ClientSession() as session,
    ):
        process = Process(aws.config("drain", CONFIG, endpoint_url=proxy.url), "--port", "0")
        try:
            await asyncio.to_thread(process.ready)
            url = f"{process.url}/connection/websocket"
            publishers = [
                Publisher(f"p{index}", WebSocket(await session.ws_connect(url)))
                for index in range(CLIENTS)
            ]
            # From here on there is always much under way.
            proxy.plan("dynamodb.PutItem", Fault.SLOW, 10_000)
            work = [asyncio.create_task(each.run()) for each in publishers]
            api = asyncio.create_task(_through_the_api(session, process))
            while not all(each.answered for each in publishers):  # noqa: ASYNC110  # each changes with a frame
                await asyncio.sleep(0.01)
            before = {each: set(each.answered) for each in publishers}
            process.signal()
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*work)
                through_the_api = await api
            assert await asyncio.to_thread(process.ended) == 0, process.log
        finally:
            await asyncio.to_thread(process.close)

    assert "Traceback" not in process.log
    logged = [data for _, _, data in aws.log("room")]
    assert len(logged) == len(set(logged))
    answered = {data for each in publishers for data in each.answered} | through_the_api
    assert set(logged) == answered, "answered, or not done"
    for each in publishers:
        assert each.closed_with == SHUTDOWN
        assert each.answered > before[each], "some of it after the signal"
    assert aws.left_of(process.node) == []


async def test_a_request_that_is_under_way_is_answered_though_no_client_is_there(aws: Aws) -> None:
    """Nobody else makes the end of the node wait."""
    async with (
        FaultProxy(aws.endpoint, Random(3), slow_s=(1.5, 1.5)) as proxy,
        aiohttp.ClientSession() as session,
    ):
        process = Process(aws.config("alone", CONFIG, endpoint_url=proxy.url), "--port", "0")
        try:
            await asyncio.to_thread(process.ready)
            assert (await _published(session, process, "before"))["offset"] == 1
            proxy.plan("dynamodb.PutItem", Fault.SLOW, 10_000)
            under_way = asyncio.create_task(_published(session, process, "under way"))
            async with asyncio.timeout(DEADLINE_S):
                while "roomcast_append_waiting_bytes 0.0" in await _metrics(session, process):
                    pass
            process.signal()
            async with asyncio.timeout(DEADLINE_S):
                assert (await under_way)["offset"] == 2
            assert await asyncio.to_thread(process.ended) == 0, process.log
        finally:
            await asyncio.to_thread(process.close)
    assert "Traceback" not in process.log
    assert [data for _, _, data in aws.log("alone")] == ["before", "under way"]


async def _metrics(session: aiohttp.ClientSession, process: Process) -> str:
    async with session.get(f"{process.url}/metrics") as response:
        return await response.text()


async def _published(
    session: aiohttp.ClientSession, process: Process, data: str
) -> dict[str, object]:
    """The result of a publication of a back end."""
    async with session.post(
        f"{process.url}/api/publish",
        json={"channel": "alone", "data": data},
        headers={"X-API-Key": KEY},
    ) as response:
        assert response.status == 200
        answer = await response.json()
    assert isinstance(answer["result"], dict)
    return answer["result"]


async def _through_the_api(session: aiohttp.ClientSession, process: Process) -> set[str]:
    """Publish as a back end does, one after the other, until nobody listens. What was answered."""
    answered: set[str] = set()
    for number in range(PUBLICATIONS_MAX):
        data = f"api {number}"
        try:
            async with session.post(
                f"{process.url}/api/publish",
                json={"channel": "room", "data": data},
                headers={"X-API-Key": KEY},
            ) as response:
                assert response.status == 200
                assert "result" in await response.json()
        except aiohttp.ClientConnectionError:
            return answered
        answered.add(data)
    return answered
