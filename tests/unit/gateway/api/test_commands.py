"""POST /api: commands of Centrifugo's older API, one a line,
each with its reply on a line of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
from io import BytesIO
from typing import Any

import pytest

from roomcast.gateway.api.batch import BATCH_BODY_BYTES_MAX, BATCH_COMMANDS_MAX
from roomcast.gateway.api.methods import COMMANDS_AT_A_TIME, CONTAINERS_MAX
from tests.unit.gateway.api.conftest import CHANNEL, KEY, Caller, Serve

JSON = {"Content-Type": "application/json"}
GOCENT = JSON | {"Authorization": f"apikey {KEY}"}


async def said(caller: Caller, body: bytes, **headers: str) -> tuple[int, list[Any]]:
    """Status, and the values of the answer's lines."""
    async with caller.client.post("/api", data=BytesIO(body), headers=GOCENT | headers) as response:
        assert response.content_type == "application/json"
        text = await response.text()
        return response.status, [json.loads(line) for line in text.rstrip("\n").split("\n")]


def lines(*commands: Any) -> bytes:
    return b"".join(json.dumps(command).encode() + b"\n" for command in commands)


def publish(data: Any, **params: Any) -> dict[str, Any]:
    return {"method": "publish", "params": {"channel": CHANNEL, "data": data, **params}}


async def test_one_command_as_gocent_sends_it(caller: Caller) -> None:
    status, [reply] = await said(caller, lines(publish({"a": 1}, skip_history=False)))
    assert (status, reply.keys(), reply["result"]["offset"]) == (200, {"result"}, 1)
    assert [entry["data"] for entry in caller.stored()] == [{"a": 1}]


async def test_one_command_on_several_lines(caller: Caller) -> None:
    _, [reply] = await said(caller, json.dumps(publish(1), indent=2).encode())
    assert reply["result"]["offset"] == 1


async def test_several_commands_are_carried_out_in_order_and_each_is_answered(
    caller: Caller,
) -> None:
    status, replies = await said(
        caller,
        lines(
            publish(1),
            publish(2, channel="no:where"),
            {"method": "history", "params": {"channel": CHANNEL, "since": None, "limit": 9}},
            {"method": "nothing"},
            {"method": "batch", "params": {"commands": []}},
            {"method": ["publish"], "params": {}},
            {"method": "publish", "params": 1},
            [],
            {"method": "info"},
            publish(3),
        )
        + b" \n",
    )
    assert status == 200
    assert replies[0]["result"]["offset"] == 1
    assert [entry["data"] for entry in replies[2]["result"]["publications"]] == [1]
    assert [reply["error"]["code"] for reply in (replies[1], *replies[3:8])] == [
        102,
        104,
        104,
        104,
        107,
        107,
    ]
    assert replies[8] == {"result": {"nodes": []}}
    assert replies[9]["result"]["offset"] == 2
    assert len(replies) == 10


@pytest.mark.parametrize("name", ["apikey", "ApiKey", "APIKEY"])
async def test_the_key_may_be_in_either_header(caller: Caller, name: str) -> None:
    given = {"Authorization": f"{name} {KEY}"}
    assert (await said(caller, lines(publish(1)), **given))[0] == 200
    body = {"channel": CHANNEL, "data": 1}
    assert (await caller.post(key=None, json=body, headers=given))[0] == 200
    async with caller.client.post("/api", json=publish(1), headers={"X-API-Key": KEY}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "given",
    [
        "",
        KEY,
        f"Bearer {KEY}",
        "apikey ",
        f"apikey {KEY}x",
        f"apikey  {KEY}",
        f"apikey{KEY}",
        "apikey ключ",
    ],
)
async def test_no_other_key_opens(caller: Caller, given: str) -> None:
    status, [reply] = await said(caller, lines(publish(1)), Authorization=given)
    assert (status, reply["error"]["code"]) == (401, 101)
    # One that is wrong is not mended by one that is right.
    status, _ = await said(caller, lines(publish(1)), **{"X-API-Key": "another"})
    assert status == 401
    assert caller.stored() == []


async def test_without_a_configured_key_the_api_is_off(serve: Serve) -> None:
    caller = await serve(key="")
    assert (await said(caller, lines(publish(1)), Authorization="apikey "))[0] == 401


async def test_what_is_no_request_is_not_carried_out_in_part(caller: Caller) -> None:
    for body in (b"", b"{", lines(publish(1)) + b"{", lines(publish(1)) + b"NaN\n"):
        status, [reply] = await said(caller, body)
        assert (status, reply["error"]["message"]) == (400, "bad request: the body is not JSON")
    assert caller.stored() == []


async def test_bounds_are_those_of_a_batch(caller: Caller) -> None:
    most = lines(*[{"method": "nothing"}] * BATCH_COMMANDS_MAX)
    assert len((await said(caller, most))[1]) == BATCH_COMMANDS_MAX
    for more in (lines({"method": "nothing"}), b"x\n" * 5000):
        status, [reply] = await said(caller, most + more)
        assert (status, reply["error"]["code"]) == (200, 106)
    assert (await said(caller, b" " * BATCH_BODY_BYTES_MAX))[0] == 400
    assert (await said(caller, b" " * (BATCH_BODY_BYTES_MAX + 1)))[0] == 413


async def test_so_many_arrays_and_objects_and_no_more_are_decoded(caller: Caller) -> None:
    """In every request, whatever its form."""
    for to, head, tail, left in (
        ("", b'{"method":"x","params":{"a":', b"}}", 2),
        ("/batch", b'{"x":', b"}", 1),
    ):
        for more, status in ((0, 200), (1, 413)):
            # The list that holds the others is one, too.
            arrays = [b"[]"] * (CONTAINERS_MAX - left - 1 + more)
            body = head + b"[" + b",".join(arrays) + b"]" + tail
            async with caller.client.post(f"/api{to}", data=body, headers=GOCENT) as response:
                assert response.status == status, (to, more, await response.text())


async def test_arrays_and_objects_in_base64_count_as_well(serve: Serve) -> None:
    """Those of all commands of a batch together: each holds less than there may be."""
    caller = await serve(size_limit=64 * 1024)
    arrays = CONTAINERS_MAX // 4
    encoded = base64.b64encode(b"[" + b",".join([b"[]"] * (arrays - 1)) + b"]").decode()
    for method, parameter, more in (
        ("publish", "b64data", {}),
        ("subscribe", "b64info", {"user": "ann"}),
        ("subscribe", "b64data", {"user": "ann"}),
    ):
        command = {method: {"channel": "lobby", parameter: encoded, **more}}
        async with caller.node.sending():
            replies = (await caller.ask("batch", commands=[command] * 5))["replies"]
            alone = await caller.ask(method, **command[method])
        # The request itself has a few, so the fourth has no room.
        assert [method in reply for reply in replies] == [True] * 3 + [False] * 2, replies
        assert {reply["error"]["code"] for reply in replies[3:]} == {106}
        assert "result" in alone, "each request has its own"


async def test_a_long_request_lets_others_have_their_turn(caller: Caller) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    try:
        for to, body in (
            ("", lines(*[{"method": "nothing"}] * 50)),
            ("/batch", json.dumps({"commands": [{"nothing": {}}] * 50}).encode()),
        ):
            before = turns
            async with caller.client.post(f"/api{to}", data=body, headers=GOCENT) as response:
                assert response.status == 200
            assert turns - before >= 50 // COMMANDS_AT_A_TIME
    finally:
        running.cancel()
