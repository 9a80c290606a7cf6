"""Who may call, what is a request at all, and that every answer is JSON."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from roomcast.gateway.api import publishing
from roomcast.gateway.api.methods import BODY_ROOM_BYTES, ESCAPED_MAX
from roomcast.gateway.api.server import METHODS
from roomcast.wire.codes import Error
from tests.unit.gateway.api.conftest import CHANNEL, KEY, SIZE_LIMIT, Caller, Serve

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("key", [None, "", "another", KEY + "x", KEY.upper(), "ключ"])
async def test_without_the_key_nothing_happens(caller: Caller, key: str | None) -> None:
    for method in (*METHODS, "batch", "no_method"):
        status, body = await caller.post({"channel": CHANNEL, "data": 1}, to=method, key=key)
        assert (status, body["error"]["code"]) == (401, Error.UNAUTHORIZED.value.code)
    assert caller.stored() == []


async def test_the_description_is_behind_the_key_too(caller: Caller) -> None:
    async with caller.client.get("/api/openapi.json") as response:
        assert response.status == 401
    async with caller.client.get("/api/openapi.json", headers={"X-API-Key": KEY}) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert (await response.json())["openapi"] == "3.1.0"


async def test_without_a_configured_key_the_api_is_off(serve: Serve) -> None:
    caller = await serve(key="")
    assert (await caller.post({"channel": CHANNEL, "data": 1}, key=""))[0] == 401


async def test_an_insecure_server_takes_every_key_but_only_json(serve: Serve) -> None:
    caller = await serve(key="", insecure=True)
    assert (await caller.post({"channel": CHANNEL, "data": 1}, key=None))[0] == 200
    body = b'{"channel": "c", "data": 1}'
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        status, _ = await caller.post(data=body, headers={"Content-Type": content_type})
        assert status == 415


async def test_what_is_no_request(caller: Caller) -> None:
    largest = SIZE_LIMIT * ESCAPED_MAX + BODY_ROOM_BYTES
    status, answer = await caller.post(data=b"{", headers=JSON)
    assert (status, answer["error"]) == (
        400,
        {"code": 107, "message": "bad request: the body is not JSON"},
    )
    assert (await caller.post(data=b"x" * largest, headers=JSON))[0] == 400
    assert (await caller.post(data=b"x" * (largest + 1), headers=JSON))[0] == 413
    bodies: list[Any] = [[], 1, "text", None]
    for body in bodies:
        status, answer = await caller.post(data=json.dumps(body).encode(), headers=JSON)
        assert (status, answer["error"]) == (
            200,
            {"code": 107, "message": "bad request: the request must be an object"},
        )


async def test_a_request_that_does_not_say_its_length(caller: Caller) -> None:
    async def chunks() -> Any:
        yield b"{}"

    status, answer = await caller.post(data=chunks(), headers=JSON)
    assert (status, answer["error"]["message"]) == (411, "bad request: Content-Length is required")


async def test_a_compressed_request_is_not_taken(caller: Caller) -> None:
    """A few bytes may become many, before anybody has looked at a key."""
    packed = gzip.compress(json.dumps({"channel": CHANNEL, "data": "x" * 100}).encode())
    status, answer = await caller.post(data=packed, headers={**JSON, "Content-Encoding": "gzip"})
    assert (status, answer["error"]["code"]) == (415, 107)
    assert "Content-Encoding" in answer["error"]["message"]
    assert caller.stored() == []


async def test_a_method_that_is_not_there(caller: Caller) -> None:
    for method in ("no_method", "rpc", "connections", "openapi.json"):
        status, answer = await caller.post({}, to=method)
        assert (status, answer) == (404, {"error": {"code": 104, "message": "method not found"}})


async def test_a_fault_of_ours_tells_the_caller_nothing(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(publishing, "known", broken)
    with capture_logs() as logs:
        status, answer = await caller.post({"channel": CHANNEL, "data": 1})
    assert (status, answer) == (500, {"error": {"code": 100, "message": "internal server error"}})
    assert [entry["event"] for entry in logs] == ["api_fault"]


async def test_payloads_are_not_in_the_logs(caller: Caller) -> None:
    with capture_logs() as logs:
        await caller.publish(data="a payload")
        await caller.ask(
            "subscribe", user="ann", channel=CHANNEL, info="a payload", data="a payload"
        )
        await caller.ask("publish", channel=5, data="a payload")
        await caller.ask("broadcast", channels=[CHANNEL, "no:where"], data="a payload")
    assert "a payload" not in repr(logs)
