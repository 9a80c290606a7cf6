"""publish and broadcast over a node in memory: what is stored, what is refused,
and one publication a key.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from roomcast.delivery.broadcaster import CHANNELS_BYTES_MAX, SIGNAL_BYTES_MAX
from roomcast.gateway.api.methods import COMMANDS_AT_A_TIME, TRACED_A_CALL, Parents
from roomcast.gateway.api.publishing import BROADCAST_CHANNELS_MAX
from roomcast.gateway.api.refusals import Refusal
from roomcast.log.appender import APPENDS_AT_ONCE
from roomcast.log.idempotency import COMMIT_WITHIN_MS
from roomcast.ports import Rejected, Throttled, UnknownOutcome
from roomcast.wire.codes import Error
from roomcast.wire.trace_context import TraceContext
from tests.unit.binary import binary
from tests.unit.gateway.api.conftest import CHANNEL, KEY, SIZE_LIMIT, Caller, Serve
from tests.unit.recorder import Recorder
from tests.unit.worlds import until


async def test_a_publication_is_in_the_log_when_it_is_answered(caller: Caller) -> None:
    first, second = await caller.publish(tags={"kind": "note"}), await caller.publish()
    assert (first["result"]["offset"], second["result"]["offset"]) == (1, 2)
    assert (
        first["result"]["epoch"] == second["result"]["epoch"] == caller.node.world.stream[0].epoch
    )
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


@pytest.mark.parametrize(
    "params, message",
    [
        ({"channel": ""}, "channel must be 1 to 255 printable ASCII characters"),
        ({"channel": "x" * 256}, "channel must be 1 to 255 printable ASCII characters"),
        ({"channel": "ümlaut"}, "channel must be 1 to 255 printable ASCII characters"),
        ({"channel": 5}, "channel must be 1 to 255 printable ASCII characters"),
        ({"channel": None}, "channel is required"),
        (
            {"idempotency_key": "x" * 65},
            "idempotency_key must be at most 64 printable ASCII characters",
        ),
        ({"idempotency_key": 5}, "idempotency_key must be at most 64 printable ASCII characters"),
        ({"tags": {"a": 1}}, "tags must be an object of strings"),
        ({"tags": []}, "tags must be an object of strings"),
        ({"skip_history": "yes"}, "skip_history must be true or false"),
        ({"delta": 1}, "delta must be true or false"),
        ({"b64data": "?"}, "b64data must be base64"),
        (
            {"b64data": base64.b64encode(b"{").decode()},
            "b64data must be base64 of the text of a JSON value",
        ),
        ({"b64data": "/w=="}, "b64data must be base64 of the text of a JSON value"),
        ({"b64data": 5}, "b64data must be base64"),
    ],
)
async def test_a_bad_request_says_what_is_wrong(
    caller: Caller, params: dict[str, Any], message: str
) -> None:
    answer = await caller.publish(**params)
    assert answer["error"] == {"code": 107, "message": f"bad request: {message}"}
    assert caller.stored() == []


async def test_data_may_be_null_but_must_be_there(caller: Caller) -> None:
    assert await caller.refusal("publish", channel=CHANNEL) == (
        107,
        "bad request: data is required",
    )
    await caller.result("publish", channel=CHANNEL, data=None)
    assert [entry["data"] for entry in caller.stored()] == [None]


async def test_data_in_base64_is_the_text_of_a_value_and_goes_before_data(caller: Caller) -> None:
    for value in ({"text": "hi"}, None, 5):
        encoded = base64.b64encode(json.dumps(value).encode()).decode()
        await caller.result("publish", channel=CHANNEL, data="not this", b64data=encoded)
    await caller.result("publish", channel=CHANNEL, data="this", b64data="")
    assert [entry["data"] for entry in caller.stored()] == [{"text": "hi"}, None, 5, "this"]


async def test_bytes_in_base64_are_kept_as_they_are(caller: Caller) -> None:
    """For clients who get payloads as bytes; values of the request's own JSON are written anew."""
    raw = b'{ "a": 1.0 }'
    await caller.result("publish", channel=CHANNEL, b64data=base64.b64encode(raw).decode())
    await caller.result("publish", channel=CHANNEL, data={"a": 1.0})
    assert caller.stored() == [
        {"data": {"a": 1.0}, "text": raw.decode(), "time": caller.stored()[0]["time"]},
        {"data": {"a": 1.0}, "time": caller.stored()[1]["time"]},
    ]
    history = await caller.result("history", channel=CHANNEL, limit=2)
    assert [set(entry) for entry in history["publications"]] == [{"data", "offset", "time"}] * 2


async def test_bytes_in_base64_have_the_size_limit_with_their_white_space(serve: Serve) -> None:
    limit = 1000
    caller = await serve(size_limit=limit)
    for spaces, code in ((limit, 106), (limit - 1, None)):
        encoded = base64.b64encode(b"1" + b" " * spaces).decode()
        answer = await caller.publish(b64data=encoded)
        assert answer.get("error", {}).get("code") == code
    assert len(caller.stored()) == 1


async def test_what_a_method_does_not_know_is_passed_over(caller: Caller) -> None:
    await caller.result("publish", channel=CHANNEL, data=1, delta=True, other=[1])
    assert [entry["data"] for entry in caller.stored()] == [1]


async def test_what_is_stale_is_not_published_and_told_where_the_log_ends(caller: Caller) -> None:
    first = await caller.publish(version=5, version_epoch="e")
    for stale in ({"version": 5, "version_epoch": "e"}, {"version": 4}):
        assert await caller.publish(**stale) == first
    answer = await caller.ask(
        "broadcast", channels=[CHANNEL, "other"], data=2, version=4, version_epoch="e"
    )
    here, there = answer["result"]["responses"]
    assert here == first
    assert there["result"]["offset"] == 1
    commands = [
        {"publish": {"channel": CHANNEL, "data": version, "version": version, "version_epoch": "e"}}
        for version in (6, 3, 2**64 - 1)
    ]
    replies = (await caller.ask("batch", commands=commands))["replies"]
    assert [reply["publish"]["offset"] for reply in replies] == [2, 2, 3]
    assert [entry["data"] for entry in caller.stored()] == [{"text": "hi"}, 2, 6, 2**64 - 1]


async def test_no_version_is_number_0(caller: Caller) -> None:
    """As clients write it that have nothing to say there."""
    said: tuple[dict[str, Any], ...] = (
        {"version_epoch": "e"},
        {"version": 0, "version_epoch": ""},
        {"version": None, "version_epoch": None},
    )
    for number, each in enumerate(said, 1):
        assert (await caller.publish(**each))["result"]["offset"] == number


async def test_a_version_means_nothing_without_history(caller: Caller) -> None:
    """As in Centrifugo."""
    for _ in range(2):
        assert await caller.publish(version=5, skip_history=True) == {"result": {}}
    assert (await caller.publish(version=5))["result"]["offset"] == 1


@pytest.mark.parametrize(
    "params",
    [
        {"version": -1},
        {"version": 2**64},
        {"version": True},
        {"version": "1"},
        {"version": 1, "version_epoch": "e" * 65},
        {"version": 1, "version_epoch": 5},
    ],
)
async def test_what_is_no_version(caller: Caller, params: dict[str, Any]) -> None:
    answer = await caller.publish(**params)
    assert answer["error"]["code"] == 107
    assert not caller.stored()


async def test_an_unknown_namespace(caller: Caller) -> None:
    answer = await caller.publish(channel="nobody:knows")
    assert answer["error"] == {"code": 102, "message": "unknown channel"}


async def test_what_the_table_refuses_did_not_happen(caller: Caller) -> None:
    caller.node.world.fail_next("put_item", Rejected("simulated"))
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


async def test_data_is_measured_as_it_is_kept(caller: Caller) -> None:
    """A library that escapes everything makes it three times as long on the way."""
    fits = "é" * ((SIZE_LIMIT - 2) // 2)
    assert len(json.dumps(fits)) > 2 * SIZE_LIMIT
    await caller.result("publish", channel=CHANNEL, data=fits)
    code, message = await caller.refusal("publish", channel=CHANNEL, data=f"{fits}x")
    assert (code, message) == (106, f"limit exceeded: data is larger than {SIZE_LIMIT} bytes")
    assert len(caller.stored()) == 1


async def test_what_is_nested_too_deeply_to_be_written_again(caller: Caller) -> None:
    body = b'{"channel": "lobby", "data": %s%s}' % (b"[" * 600, b"]" * 600)
    status, answer = await caller.post(data=body, headers={"Content-Type": "application/json"})
    assert (status, answer["error"]) == (
        200,
        {"code": 107, "message": "bad request: data is nested too deeply"},
    )


async def test_what_can_never_be_sent_is_not_to_be_tried_again(serve: Serve) -> None:
    """A number that grows when it is written anew: the request itself was not too large."""
    caller = await serve(size_limit=SIGNAL_BYTES_MAX // 2)
    numbers = b"[" + b",".join([b"1e15"] * (SIGNAL_BYTES_MAX // 10)) + b"]"
    for skip in (b"true", b"false"):
        body = b'{"channel": "lobby", "data": %s, "skip_history": %s}' % (numbers, skip)
        status, answer = await caller.post(data=body, headers={"Content-Type": "application/json"})
        assert (status, answer["error"]["code"]) == (200, Error.LIMIT_EXCEEDED.value.code)
    assert caller.stored() == []


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
        assert await caller.publish(channel="plain:x") == {"result": {}}
    answer = await caller.publish(skip_history=True, idempotency_key="k")
    assert answer["error"]["code"] == Error.NOT_AVAILABLE.value.code
    assert caller.stored() == []


# ---- broadcast


async def test_a_broadcast_is_answered_for_each_channel(caller: Caller) -> None:
    responses = (
        await caller.result(
            "broadcast",
            channels=["one", "nobody:knows", "", "two", "one"],
            data="x",
            tags={"a": "b"},
        )
    )["responses"]
    assert responses[1] == {"error": {"code": 102, "message": "unknown channel"}}
    assert responses[2]["error"]["code"] == 107
    assert [response["result"]["offset"] for response in (responses[0], responses[3])] == [1, 1]
    assert responses[4]["result"]["offset"] == 2
    assert caller.stored("two") == [
        {"data": "x", "tags": {"a": "b"}, "time": caller.stored("two")[0]["time"]}
    ]


async def test_a_broadcast_goes_to_no_channel_that_does_not_take_it(caller: Caller) -> None:
    """Channels without history share what is sent, and not what they take."""
    channels = ["plain:a", "objects:a", "plain:b"]
    answer = await caller.result("broadcast", channels=channels, data=[1])
    assert [response.get("error") for response in answer["responses"]] == [
        None,
        {"code": 107, "message": "bad request: data must be an object in this channel"},
        None,
    ]


async def test_a_broadcast_without_history_is_few_signals(serve: Serve) -> None:
    """The other nodes do not get what is published once for each channel."""
    here, there = await serve(), await serve(name="b")
    channels = [f"plain:{number}" for number in range(2 * COMMANDS_AT_A_TIME + 1)]
    async with here.node.running(), there.node.running():
        clients = [await each.node.client() for each in (here, there)]
        for client in clients:
            for channel in channels[::4]:
                await client.subscribe(channel)
        signals = here.node.assembly.broadcaster.counters.signals
        before = signals["sent"]
        answer = await here.result(
            "broadcast", channels=[*channels, "lobby", "nobody:knows", ""], data="x"
        )
        *unstored, stored, unknown, nameless = answer["responses"]
        assert unstored == [{"result": {}}] * len(channels)
        assert stored["result"]["offset"] == 1
        assert (unknown["error"]["code"], nameless["error"]["code"]) == (102, 107)
        for client in clients:
            await until(partial(client.socket.published, channels[-1]))
            assert all(client.socket.published(channel) == ["x"] for channel in channels[::4])
        assert signals["sent"] - before == 3, "each is for as many channels as a turn takes"
        assert here.node.assembly.node.services.publisher.signalled == len(channels)


async def test_a_broadcast_that_finds_no_room_says_so_for_each_channel(caller: Caller) -> None:
    channels = [f"plain:{number}" for number in range(COMMANDS_AT_A_TIME)]
    data = "x" * (SIZE_LIMIT - 2)
    responses: list[Any] = []
    for _ in range(CHANNELS_BYTES_MAX // SIZE_LIMIT + 1):
        responses += (await caller.result("broadcast", channels=channels, data=data))["responses"]
    refused = responses.index({"error": {"code": 111, "message": "too many requests"}})
    assert refused % len(channels) == 0
    assert responses[:refused] == [{"result": {}}] * refused
    assert all(each["error"]["code"] == 111 for each in responses[refused:])


@pytest.mark.parametrize("size", [SIGNAL_BYTES_MAX // 4, SIGNAL_BYTES_MAX - 1024])
async def test_what_fits_a_signal_alone_is_broadcast_too(serve: Serve, size: int) -> None:
    """Beside the names of other channels it might not fit."""
    caller = await serve(size_limit=SIGNAL_BYTES_MAX)
    channels = [f"plain:{number:0240d}" for number in range(COMMANDS_AT_A_TIME)]
    answer = await caller.result("broadcast", channels=channels, data="x" * size)
    assert answer["responses"] == [{"result": {}}] * len(channels)


async def test_no_refusal_of_a_broadcast_waits_for_the_collector(caller: Caller) -> None:
    """It would keep what was to be published."""
    gc.collect()
    gc.disable()
    try:
        await caller.result("broadcast", channels=["nowhere:a", "b"], data=1)
        assert [each for each in gc.get_objects() if type(each) is Refusal] == []
    finally:
        gc.enable()


async def test_a_broadcasts_key_is_one_in_each_channel(caller: Caller) -> None:
    for _ in range(2):
        answer = await caller.result(
            "broadcast", channels=["one", "two"], data=1, idempotency_key="k"
        )
        assert [response["result"]["offset"] for response in answer["responses"]] == [1, 1]
    assert len(caller.stored()) == 2


@pytest.mark.parametrize(
    "params, message",
    [
        ({"data": 1}, "channels is required"),
        (
            {"channels": [], "data": 1},
            f"channels must be an array of 1 to {BROADCAST_CHANNELS_MAX} values",
        ),
        (
            {"channels": ["c"] * (BROADCAST_CHANNELS_MAX + 1), "data": 1},
            f"channels must be an array of 1 to {BROADCAST_CHANNELS_MAX} values",
        ),
        (
            {"channels": ["a", 5], "data": 1},
            "channels[1] must be a string of at most 1024 characters",
        ),
        ({"channels": ["a"]}, "data is required"),
    ],
)
async def test_bad_broadcasts(caller: Caller, params: dict[str, Any], message: str) -> None:
    assert await caller.refusal("broadcast", **params) == (107, f"bad request: {message}")
    assert caller.stored() == []


async def test_as_many_channels_as_may_be_fit_a_request(caller: Caller) -> None:
    channels = [f"{number:0255d}" for number in range(BROADCAST_CHANNELS_MAX)]
    answer = await caller.result("broadcast", channels=channels, data="é" * (SIZE_LIMIT // 2 - 1))
    assert all(response["result"]["offset"] == 1 for response in answer["responses"])
    assert len(caller.stored()) == BROADCAST_CHANNELS_MAX


async def test_a_back_end_that_publishes_in_very_many_channels_keeps_no_client_waiting(
    serve: Serve,
) -> None:
    """Who has the key is one caller."""
    caller = await serve(size_limit=64 * 1024)
    world, client = caller.node.world, await caller.node.client()
    names = [f"new-{number}" for number in range(BROADCAST_CHANNELS_MAX)]
    asking = [
        asyncio.create_task(
            caller.ask("broadcast", channels=[f"{each}-{name}" for name in names], data=1)
        )
        for each in range(2)
    ]
    await until(lambda: len(world.stream) > APPENDS_AT_ONCE)
    for number in range(3):
        before = len(world.stream)
        assert await client.publish("mine", number) == {}
        assert len(world.stream) - before <= 2 * APPENDS_AT_ONCE
    assert len(world.stream) < 2 * BROADCAST_CHANNELS_MAX, "it was under way"
    await asyncio.gather(*asking)


TRACE = TraceContext("a" * 32, "b" * 16)


async def test_a_publication_is_below_the_span_of_its_caller(serve: Serve) -> None:
    tracer = Recorder(ratio=0.0)
    caller = await serve(tracer=tracer)
    headers = {"traceparent": TRACE.traceparent()}
    for channel in (CHANNEL, "plain:room"):
        await caller.post(json={"channel": channel, "data": 1}, headers=headers)
    assert [span.parent for span in tracer.ended("publish")] == [TRACE, TRACE]
    unsampled = {"traceparent": replace(TRACE, sampled=False).traceparent()}
    tracer.ratio = 1.0
    await caller.post(json={"channel": CHANNEL, "data": 2}, headers=unsampled)
    assert len(tracer.ended("publish")) == 2, "the caller decides"


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_a_header_that_is_no_trace_is_as_good_as_none(serve: Serve, header: str) -> None:
    tracer = Recorder()
    caller = await serve(tracer=tracer)
    status, body = await caller.post(
        json={"channel": CHANNEL, "data": 1}, headers={"traceparent": header}
    )
    assert (status, body["result"]["offset"]) == (200, 1)
    [publish] = tracer.ended("publish")
    assert publish.parent is None


def test_two_headers_are_none() -> None:
    assert Parents([TRACE.traceparent()] * 2).next() is None


async def test_one_request_traces_its_first_publications_only(serve: Serve) -> None:
    tracer = Recorder()
    caller = await serve(tracer=tracer)
    channels = [f"room{number}" for number in range(TRACED_A_CALL + 5)]
    status, _ = await caller.post(
        json={"channels": channels, "data": 1},
        to="broadcast",
        headers={"traceparent": TRACE.traceparent()},
    )
    assert status == 200
    assert len(caller.node.world.stream) == len(channels)
    publications = tracer.ended("publish")
    assert [span.channel for span in publications] == channels[:TRACED_A_CALL]
    assert {span.parent for span in publications} == {TRACE}


# ---- binary channels


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


async def shown(caller: Caller, channel: str) -> list[Any]:
    """The history, as a back end reads it."""
    history = await caller.result("history", channel=channel, limit=-1)
    assert all(each["data"] is None for each in history["publications"])
    return [each["b64data"] for each in history["publications"]]


async def test_any_bytes_in_a_binary_channel(caller: Caller) -> None:
    raws = [b"", b"\xff\x00", b'{"a": 1}', b"[" * 4000, bytes(range(256)) * 16]
    for offset, raw in enumerate(raws, 1):
        answer = await caller.result("publish", channel="bin:c", b64data=b64(raw))
        assert answer["offset"] == offset
    assert await shown(caller, "bin:c") == [b64(raw) for raw in raws]


@pytest.mark.parametrize(
    "params, code, message",
    [
        ({"data": 1}, 107, "bad request: b64data is required: the channel is binary"),
        ({"data": "AA=="}, 107, "bad request: b64data is required: the channel is binary"),
        ({"data": None}, 107, "bad request: b64data is required: the channel is binary"),
        (
            {"data": 1, "b64data": ""},
            107,
            "bad request: b64data is required: the channel is binary",
        ),
        ({}, 107, "bad request: data is required"),
        ({"b64data": None}, 107, "bad request: data is required"),
        ({"b64data": "AA"}, 107, "bad request: b64data must be base64"),
        ({"b64data": "AA==\n"}, 107, "bad request: b64data must be base64"),
        ({"b64data": "-_8="}, 107, "bad request: b64data must be base64"),
        ({"b64data": "é"}, 107, "bad request: b64data must be base64"),
        ({"b64data": ["AA=="]}, 107, "bad request: b64data must be base64"),
        ({"b64data": b64(bytes(4097))}, 106, "limit exceeded: b64data is larger than 4096 bytes"),
    ],
)
async def test_what_is_no_publication_of_bytes(
    caller: Caller, params: dict[str, Any], code: int, message: str
) -> None:
    assert await caller.refusal("publish", channel="bin:c", **params) == (code, message)
    assert caller.stored() == []


async def test_of_both_the_bytes_count(caller: Caller) -> None:
    await caller.result("publish", channel="bin:c", data={"a": 1}, b64data="/w==")
    assert await shown(caller, "bin:c") == ["/w=="]


async def test_a_key_and_bytes(caller: Caller) -> None:
    params: dict[str, Any] = {"channel": "bin:c", "b64data": "/w==", "idempotency_key": "k"}
    assert await caller.result("publish", **params) == await caller.result("publish", **params)
    assert await shown(caller, "bin:c") == ["/w=="]


async def test_a_broadcast_of_bytes_reaches_channels_that_take_them(caller: Caller) -> None:
    channels = ["bin:a", "lobby", "live-bin:a", "objects:a", "bin:b", "nowhere:a"]
    answer = await caller.result("broadcast", channels=channels, b64data="/w==")
    found = [each.get("error", {}).get("code", 0) for each in answer["responses"]]
    assert found == [0, 107, 0, 107, 0, 102]
    assert await shown(caller, "bin:b") == ["/w=="]
    # JSON is bytes as well.
    answer = await caller.result("broadcast", channels=channels, b64data=b64(b'{"a": 1}'))
    found = [each.get("error", {}).get("code", 0) for each in answer["responses"]]
    assert found == [0, 0, 0, 0, 0, 102]
    assert (await shown(caller, "bin:b"))[1] == b64(b'{"a": 1}')
    assert caller.stored("lobby")[0]["data"] == {"a": 1}
    answer = await caller.result("broadcast", channels=channels, data=[1])
    found = [each.get("error", {}).get("code", 0) for each in answer["responses"]]
    assert found == [107, 0, 107, 107, 107, 102]


async def test_bytes_of_a_broadcast_without_history(caller: Caller) -> None:
    client = await binary(caller.node)
    for channel in ("live-bin:a", "live-bin:b", "bin:a"):
        await client.ask("subscribe", channel=channel)
    channels = ["live-bin:a", "live-bin:b", "bin:a"]
    await caller.result("broadcast", channels=channels, b64data="/wA=", skip_history=True)
    for channel in channels:
        assert await client.pushed(channel, 1) == [b"\xff\x00"]


async def test_bytes_in_a_batch(caller: Caller) -> None:
    commands: list[Any] = [
        {"publish": {"channel": "bin:c", "b64data": b64(bytes([n]))}} for n in range(9)
    ]
    commands.insert(4, {"publish": {"channel": "bin:c", "data": 4}})
    answer = await caller.ask("batch", commands=commands)
    assert [each for each in answer["replies"] if "error" in each] == [answer["replies"][4]]
    assert await shown(caller, "bin:c") == [b64(bytes([n])) for n in range(9)]


async def test_objects_alone(caller: Caller) -> None:
    assert await caller.result("publish", channel="objects:a", data={}) == {}
    assert await caller.result("publish", channel="objects:a", b64data=b64(b" {}")) == {}
    wrong: list[Any] = [{"data": []}, {"data": "{}"}, {"data": None}, {"b64data": b64(b"[]")}]
    for params in wrong:
        assert await caller.refusal("publish", channel="objects:a", **params) == (
            107,
            "bad request: data must be an object in this channel",
        )


async def test_a_broadcasts_key_goes_before_its_version_in_each_channel(caller: Caller) -> None:
    """A retry is answered where the first attempt is, also behind what is newer."""
    asked: dict[str, Any] = {
        "channels": ["one", "two"],
        "data": 1,
        "idempotency_key": "k",
        "version": 5,
    }
    first = await caller.result("broadcast", **asked)
    await caller.result("publish", channel="one", data=2, version=9)
    assert await caller.result("broadcast", **asked) == first
    stale = await caller.result("broadcast", **asked | {"idempotency_key": "other", "version": 6})
    assert [each["result"]["offset"] for each in stale["responses"]] == [2, 2]
    assert [entry["data"] for entry in caller.stored("one")] == [1, 2]
    assert [entry["data"] for entry in caller.stored("two")] == [1, 1]
