"""POST /api/publish over a node in memory: who may call, what is refused, and one publication a key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final
from unittest.mock import ANY

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.memory import ManualClock
from service.connection import SLEPT_S
from service.core.codes import Error
from service.core.idempotency import COMMIT_WITHIN_MS, UNREAD_WITHIN_MS
from service.delivery.broadcaster import SIGNAL_BYTES_MAX
from service.gateway import api as api_module
from service.gateway.api import (
    AWAKE_CHECK_S,
    BODY_ROOM_BYTES,
    UNREAD_S,
    Api,
    Publish,
    Watch,
    read_publish,
)
from service.keys import NODE
from service.ports import Refused, Throttled, UnknownOutcome
from tests.unit.worlds import Fleet, LocalNode, until

CHANNEL: Final = "lobby"
KEY: Final = "a key of this test"
SIZE_LIMIT: Final = 4096

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Connect = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]


class Caller:
    """A back end that calls."""

    def __init__(
        self,
        node: LocalNode,
        client: TestClient[web.Request, web.Application],
        handled: list[web.Request],
        app: web.Application,
    ) -> None:
        self.node = node
        # Requests whose handlers have begun.
        self.handled = handled
        self.watch = app[api_module._WATCH]
        assert client.port is not None
        self.address = client.host, client.port
        self._client = client

    async def post(self, body: Any = None, *, key: str | None = KEY, **options: Any) -> tuple[int, Any]:
        headers = {"X-API-Key": key} if key is not None else {}
        if not options:
            options = {"json": body}
        headers |= options.pop("headers", {})
        async with self._client.post("/api/publish", headers=headers, **options) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    async def publish(self, **params: Any) -> dict[str, Any]:
        status, body = await self.post({"channel": CHANNEL, "data": {"text": "hi"}} | params)
        assert status == 200
        assert isinstance(body, dict)
        return body

    def stored(self) -> list[Any]:
        return [entry for item in self.node.world.stream for entry in json.loads(item.pubs)]


@pytest.fixture
async def serve(aiohttp_client: Connect) -> Callable[..., Awaitable[Caller]]:
    async def serve(*, key: str = KEY, insecure: bool = False, size_limit: int = SIZE_LIMIT) -> Caller:
        node = Fleet().node()
        handled: list[web.Request] = []

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = asyncio.ensure_future(handler(request))
            # A turn later: the handler has looked at the clock, and waits for the body.
            await asyncio.sleep(0)
            handled.append(request)
            return await answer

        app = web.Application(middlewares=[note])
        app[NODE] = node.assembly.node
        Api(key=key, insecure=insecure, message_size_limit=size_limit).add_routes(app)
        return Caller(node, await aiohttp_client(app), handled, app)

    return serve


@pytest.fixture
async def caller(serve: Callable[..., Awaitable[Caller]]) -> Caller:
    return await serve()


async def test_a_publication_is_in_the_log_when_it_is_answered(caller: Caller) -> None:
    first, second = await caller.publish(tags={"kind": "note"}), await caller.publish()
    assert (first["result"]["offset"], second["result"]["offset"]) == (1, 2)
    assert first["result"]["epoch"] == second["result"]["epoch"] == caller.node.world.stream[0].epoch
    stored = caller.stored()
    assert [entry["data"] for entry in stored] == [{"text": "hi"}] * 2
    assert stored[0]["tags"] == {"kind": "note"}
    assert "info" not in stored[0], "a back end is no client"


async def test_one_publication_a_key(caller: Caller) -> None:
    answers = await asyncio.gather(*(caller.publish(idempotency_key="order-1") for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    assert await caller.publish(idempotency_key="order-1") == answers[0]
    assert len(caller.stored()) == 1
    assert (await caller.publish(idempotency_key="order-2"))["result"]["offset"] == 2


async def test_a_lost_answer_and_a_retry_are_one_publication(caller: Caller) -> None:
    caller.node.world.fail_next("put_keyed_item", UnknownOutcome("simulated"), "applied")
    answer = await caller.publish(idempotency_key="order-1")
    assert answer["result"]["offset"] == 1
    assert await caller.publish(idempotency_key="order-1") == answer
    assert len(caller.stored()) == 1


@pytest.mark.parametrize("key", [None, "", "another", KEY + "x", KEY.upper(), "ключ"])
async def test_without_the_key_nothing_happens(caller: Caller, key: str | None) -> None:
    status, body = await caller.post({"channel": CHANNEL, "data": 1}, key=key)
    assert (status, body["error"]["code"]) == (401, Error.UNAUTHORIZED.value.code)
    assert caller.stored() == []


async def test_without_a_configured_key_the_api_is_off(serve: Callable[..., Awaitable[Caller]]) -> None:
    caller = await serve(key="")
    assert (await caller.post({"channel": CHANNEL, "data": 1}, key=""))[0] == 401


async def test_an_insecure_server_takes_every_key_but_only_json(
    serve: Callable[..., Awaitable[Caller]],
) -> None:
    caller = await serve(key="", insecure=True)
    assert (await caller.post({"channel": CHANNEL, "data": 1}, key=None))[0] == 200
    body = b'{"channel": "c", "data": 1}'
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        status, _ = await caller.post(data=body, headers={"Content-Type": content_type})
        assert status == 415


@pytest.mark.parametrize(
    "params",
    [
        {"channel": ""},
        {"channel": "x" * 256},
        {"channel": "ümlaut"},
        {"channel": 5},
        {"idempotency_key": "x" * 65},
        {"idempotency_key": 5},
        {"tags": {"a": 1}},
        {"tags": []},
        {"skip_history": "yes"},
    ],
)
async def test_bad_requests(caller: Caller, params: dict[str, Any]) -> None:
    assert (await caller.publish(**params))["error"]["code"] == Error.BAD_REQUEST.value.code
    assert caller.stored() == []


async def test_what_is_no_request(caller: Caller) -> None:
    json_type = {"Content-Type": "application/json"}
    assert (await caller.post(data=b"{", headers=json_type))[0] == 400
    assert (await caller.post(data=b"x" * (SIZE_LIMIT + BODY_ROOM_BYTES + 1), headers=json_type))[0] == 413
    bodies: list[Any] = [[], 1, "text", {"channel": CHANNEL}]
    for body in bodies:
        status, answer = await caller.post(body)
        assert (status, answer["error"]["code"]) == (200, Error.BAD_REQUEST.value.code)


async def test_an_unknown_namespace(caller: Caller) -> None:
    answer = await caller.publish(channel="nobody:knows")
    assert answer["error"] == {"code": 102, "message": "unknown channel"}


async def test_what_the_table_refuses_did_not_happen(caller: Caller) -> None:
    caller.node.world.fail_next("put_item", Refused("simulated"))
    assert (await caller.publish())["error"]["code"] == Error.REFUSED.value.code
    assert caller.stored() == []


async def test_what_the_table_does_not_take_now_is_to_be_tried_again(caller: Caller) -> None:
    caller.node.clock.advance(1000)
    caller.node.world.fail_next("put_item", Throttled("simulated"))
    world = caller.node.world

    async def slow(call: str, stage: str) -> None:
        if call == "put_item" and stage == "sent":
            caller.node.clock.advance(60)
        await asyncio.sleep(0)

    world.pause = slow
    assert (await caller.publish())["error"]["code"] == Error.TOO_MANY_REQUESTS.value.code
    assert caller.stored() == []


async def test_what_can_never_be_sent_is_not_to_be_tried_again(
    serve: Callable[..., Awaitable[Caller]],
) -> None:
    """A number that grows when it is written anew: the request itself was not too large."""
    caller = await serve(size_limit=SIGNAL_BYTES_MAX // 2)
    numbers = b"[" + b",".join([b"1e15"] * (SIGNAL_BYTES_MAX // 10)) + b"]"
    for skip in (b"true", b"false"):
        body = b'{"channel": "lobby", "data": %s, "skip_history": %s}' % (numbers, skip)
        status, answer = await caller.post(data=body, headers={"Content-Type": "application/json"})
        assert (status, answer["error"]["code"]) == (200, Error.LIMIT_EXCEEDED.value.code)
    assert caller.stored() == []


# ---- a process that was suspended


async def test_what_may_have_waited_in_a_socket_is_not_published_with_its_key(caller: Caller) -> None:
    """Its caller may have published it elsewhere, so long ago that the key is forgotten."""
    clock = caller.node.clock
    clock.advance(AWAKE_CHECK_S + SLEPT_S)
    assert "result" in await caller.publish(idempotency_key="in time")
    clock.advance(AWAKE_CHECK_S + SLEPT_S + 1)
    assert (await caller.publish(idempotency_key="late"))["error"] == {"code": 111, "message": ANY}
    assert "result" in await caller.publish(), "without a key nothing is promised"
    clock.advance(UNREAD_S - 1)
    assert "error" in await caller.publish(idempotency_key="late")
    clock.advance(1)
    assert "result" in await caller.publish(idempotency_key="late")
    assert len(caller.stored()) == 3


async def test_a_suspension_is_noticed_between_requests_as_well(
    serve: Callable[..., Awaitable[Caller]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the first look after it would take the sleep for its own pause."""
    monkeypatch.setattr(api_module, "AWAKE_CHECK_S", 0.001)
    caller = await serve()
    watch = caller.watch
    caller.node.clock.advance(SLEPT_S + 1)
    await until(lambda: watch._woke_s is not None)
    assert "error" in await caller.publish(idempotency_key="late")


def test_hours_without_a_suspension_are_none() -> None:
    clock = ManualClock()
    watch = Watch(clock)
    for _ in range(200):
        clock.advance(AWAKE_CHECK_S)
        watch.look()
        assert not watch.may_have_waited()


def test_a_suspension_that_is_not_noticed_leaves_the_key_enough_time() -> None:
    assert (AWAKE_CHECK_S + SLEPT_S) * 1000 <= UNREAD_WITHIN_MS


async def test_a_key_counts_from_the_first_bytes_of_its_request(caller: Caller) -> None:
    """Not from when its body was there: the process may be suspended between."""
    body = json.dumps({"channel": CHANNEL, "data": 1, "idempotency_key": "k"}).encode()
    reader, writer = await asyncio.open_connection(*caller.address)
    writer.write(
        b"POST /api/publish HTTP/1.1\r\nHost: here\r\nConnection: close\r\nX-API-Key: %s\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(body))
    )
    await until(lambda: caller.handled)
    # Too short to be taken for a suspension by itself.
    caller.node.clock.advance(COMMIT_WITHIN_MS / 1000)
    writer.write(body)
    answer = await reader.read()
    writer.close()
    assert b'"code":111' in answer
    assert caller.stored() == []


async def test_without_history_there_is_no_position(caller: Caller) -> None:
    async with caller.node.running():
        assert await caller.publish(skip_history=True) == {"result": {}}
    answer = await caller.publish(skip_history=True, idempotency_key="k")
    assert answer["error"]["code"] == Error.NOT_AVAILABLE.value.code
    assert caller.stored() == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["channel", "data", "tags", "idempotency_key", "skip_history", "other"])


@given(st.dictionaries(fields, json_values) | json_values)
def test_whatever_comes_is_a_request_or_refused(params: Any) -> None:
    read = read_publish(params)
    assert read is Error.BAD_REQUEST or isinstance(read, Publish)
