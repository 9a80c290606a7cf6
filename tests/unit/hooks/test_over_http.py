"""service/roomcast/hooks/over_http.py: what a back end is asked, and what its answers do."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from roomcast.config import (
    Config,
    ConfigError,
    HooksConfig,
    ProxiesConfig,
    ProxyConfig,
    ProxyHttpConfig,
    StatusTransform,
)
from roomcast.config.proxy_options import DisconnectOf, ErrorOf
from roomcast.hooks import (
    Carrier,
    ConnectEvent,
    ConnectReply,
    Disconnected,
    PublishEvent,
    PublishReply,
    RefreshEvent,
    Refused,
    RpcEvent,
    SubRefreshEvent,
    SubscribeEvent,
)
from roomcast.hooks import over_http as over_http_module
from roomcast.hooks.calls import HookCalls, Hooks
from roomcast.hooks.over_http import ANSWER_BYTES_MAX, BackEnds, with_http_hooks
from roomcast.hooks.passed_headers import PassedHeaders
from roomcast.observe.spans import HOOK, HOOK_NAME
from roomcast.ports import PortError
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.trace_context import TraceContext
from tests.certificates import Pair
from tests.unit.worlds import until

CONNECT = ConnectEvent("c1", "", has_token=False)
SUBSCRIBE = SubscribeEvent("c1", "ann", None, "room")
PUBLISH = PublishEvent("c1", "ann", None, "room", {"a": 1})
RPC = RpcEvent("c1", "ann", None, "m", 1)
REFRESH = RefreshEvent("c1", "ann")
SUB_REFRESH = SubRefreshEvent("c1", "ann", None, "room")

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class BackEnd:
    """Answers every request alike, and remembers them."""

    answer: Answer
    url: str = ""
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    connections: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.asked.append(await request.json())
        return await self.answer(request)


def says(status: int = 200, **members: object) -> Answer:
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(members, status=status)

    return answer


@asynccontextmanager
async def back_end(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[BackEnd]:
    made = BackEnd(answer)
    server = web.Server(made.handle)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]  # nothing public tells
    made.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/hook?v=1"
    try:
        yield made
    finally:
        await runner.cleanup()


RULES = ChannelRules(
    ChannelOptions(
        subscribe_proxy_enabled=True, publish_proxy_enabled=True, sub_refresh_proxy_enabled=True
    ),
    {
        "other": ChannelOptions(subscribe_proxy_enabled=True, subscribe_proxy_name="named"),
        "bytes": ChannelOptions(subscribe_proxy_enabled=True, publication_data_format="binary"),
    },
)


@asynccontextmanager
async def calls(
    url: str,
    *,
    named: ProxyConfig | None = None,
    ends: BackEnds | None = None,
    **changes: Any,
) -> AsyncIterator[HookCalls]:
    """The hooks of a node whose every event is asked at `url`."""
    proxy = ProxyConfig(endpoint=url, **changes)
    proxies = ProxiesConfig(
        proxy, proxy, proxy, proxy, proxy, proxy, {"named": named or ProxyConfig(endpoint=url)}
    )
    config = Config(channel=RULES, proxies=proxies)
    ends = ends or BackEnds(lambda: 0.0)
    await ends.open()
    try:
        hooks = with_http_hooks(Hooks(), config, ends)
        yield HookCalls(
            hooks, 3.0, is_binary=RULES.is_binary, passed=PassedHeaders(proxies.all_on())
        )
    finally:
        await ends.close()


def outcomes(made: HookCalls) -> dict[tuple[str, str], int]:
    return {key: number for key, number in made.counters.calls.items() if number}


async def code_of(asking: Awaitable[object]) -> int:
    with pytest.raises(Refused) as refused:
        await asking
    return refused.value.error.code


async def test_every_event_is_asked() -> None:
    async with (
        back_end(says(result={"user": "ann", "expire_at": 9})) as end,
        calls(end.url) as made,
    ):
        assert await made.connect(CONNECT) == ConnectReply("ann", 9)
        assert (await made.refresh(REFRESH)) is not None
        assert (await made.subscribe(SUBSCRIBE)) is not None
        assert (await made.sub_refresh(SUB_REFRESH)) is not None
        assert await made.publish(PUBLISH) == PublishReply()
        assert await made.rpc(RPC) is None
    assert [asked.get("channel", asked.get("method")) for asked in end.asked] == [
        *(None, None, "room", "room", "room", "m"),
    ]
    assert outcomes(made) == dict.fromkeys(((name, "answered") for name in made.hooks.names()), 1)
    assert {headers["content-type"] for headers in end.headers} == {"application/json"}


@pytest.mark.parametrize("data", [b"\xff\x00", b"7", b'{ "a": 1.0 }'])
async def test_what_goes_with_a_binary_channel_goes_as_it_is(data: bytes) -> None:
    """Also if it is JSON."""
    given = {"b64data": base64.b64encode(data).decode()}
    async with back_end(says(result=given)) as end, calls(end.url) as made:
        reply = await made.subscribe(replace(SUBSCRIBE, channel="bytes:a"))
    assert reply is not None
    assert reply.data == data
    result = {"user": "ann", "subs": {"bytes:a": given}}
    async with back_end(says(result=result)) as end, calls(end.url) as made:
        connected = await made.connect(CONNECT)
    assert connected is not None
    assert connected.subs["bytes:a"].data == data


async def test_a_token_says_who_it_is() -> None:
    async with back_end(says(result={"user": "ann"})) as end, calls(end.url) as made:
        assert await made.connect(ConnectEvent("c1", "bob", has_token=True)) is None
    assert end.asked == []


async def test_namespaces_may_ask_elsewhere() -> None:
    async with (
        back_end(says(result={})) as end,
        back_end(says(result={"data": "other"})) as other,
        calls(end.url, named=ProxyConfig(endpoint=other.url)) as made,
    ):
        assert (await made.subscribe(SUBSCRIBE)).data is None  # type: ignore[union-attr]  # it is one
        reply = await made.subscribe(SubscribeEvent("c1", "ann", None, "other:room"))
        assert reply is not None
        assert reply.data == "other"
    assert [asked["channel"] for asked in other.asked] == ["other:room"]


async def test_headers_are_those_of_the_configuration() -> None:
    carrier = Carrier(headers={"cookie": "s=1", "x-more": "1"}, emulated={"authorization": "me"})
    event = ConnectEvent("c1", "", has_token=False, carrier=carrier)
    async with (
        back_end(says(result={"user": "ann"})) as end,
        calls(
            end.url,
            http_headers=("Cookie",),
            emulated_headers=("Authorization",),
            http=ProxyHttpConfig(static_headers=(("X-Hook-Secret", "hush"),)),
        ) as made,
    ):
        await made.connect(event)
    [headers] = end.headers
    assert headers["cookie"] == "s=1"
    assert headers["authorization"] == "me"
    assert headers["x-hook-secret"] == "hush"
    assert headers["user-agent"] == "roomcast"
    assert not {"x-more", "origin", "traceparent"} & headers.keys()


async def test_the_back_end_says_no() -> None:
    error = says(error={"code": 1000, "message": "custom error"})
    async with back_end(error) as end, calls(end.url) as made:
        assert await code_of(made.subscribe(SUBSCRIBE)) == 1000
        end.answer = says(disconnect={"code": 4501, "reason": "unauthorized"})
        with pytest.raises(Disconnected) as closed:
            await made.connect(CONNECT)
        assert closed.value.why.code == 4501
    assert outcomes(made) == {("subscribe", "refused"): 1, ("connect", "disconnected"): 1}


async def test_another_status_means_what_the_configuration_says() -> None:
    transforms = (
        StatusTransform(404, to_error=ErrorOf(404, "not found")),
        StatusTransform(403, to_disconnect=DisconnectOf(4903, "forbidden")),
    )
    http = ProxyHttpConfig(status_to_code_transforms=transforms)
    async with back_end(says(404)) as end, calls(end.url, http=http) as made:
        assert await code_of(made.publish(PUBLISH)) == 404
        end.answer = says(403)
        with pytest.raises(Disconnected) as closed:
            await made.publish(PUBLISH)
        assert closed.value.why.code == 4903
        with capture_logs() as lines:
            end.answer = says(500, result={})
            assert await code_of(made.publish(PUBLISH)) == 100
        [line] = lines
        assert (line["event"], line["reason"]) == ("hook_failed", "status 500")
        # Whatever the status, it was asked once: it may have done what it was asked.
        assert len(end.asked) == 3


def test_a_code_that_clients_cannot_be_sent_stops_the_start() -> None:
    transforms = (StatusTransform(404, to_error=ErrorOf(5, "x")),)
    proxy = ProxyConfig(
        endpoint="https://a.example/",
        http=ProxyHttpConfig(status_to_code_transforms=transforms),
    )
    config = Config(proxies=ProxiesConfig(connect=proxy))
    with pytest.raises(ConfigError, match="of the connect hook: 404: an error's code is from 400"):
        with_http_hooks(Hooks(), config, BackEnds(lambda: 0.0))


async def _redirect(request: web.BaseRequest) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(str(request.url))


async def _compressed(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})


async def _endless(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(ANSWER_BYTES_MAX // 1024 + 2):
        await response.write(b" " * 1024)
    return response


async def _no_json(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="<html>")


@pytest.mark.parametrize(
    "answer, reason",
    [
        (_redirect, "status 307"),
        (_compressed, "the answer is compressed, which was not asked for"),
        (_endless, f"an answer of more than {ANSWER_BYTES_MAX} bytes"),
        (_no_json, "not understood: the answer is not JSON"),
        (says(result={"user": 1}), "not understood: user is not a string"),
        (says(error={"code": 5}), "not possible: an error's code is from 400 to 1999"),
    ],
)
async def test_what_is_no_answer_is_a_fault(answer: Answer, reason: str) -> None:
    async with back_end(answer) as end, calls(end.url) as made:
        with capture_logs() as lines:
            assert await code_of(made.connect(CONNECT)) == 100
    [line] = lines
    assert line["reason"].startswith(reason)
    assert "exc_info" not in line
    assert outcomes(made) == {("connect", "failed"): 1}
    assert len(end.asked) == 1


async def test_a_back_end_that_is_slow() -> None:
    gate = asyncio.Event()

    async def wait(_request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.json_response({})

    async with back_end(wait) as end, calls(end.url, timeout_ms=30) as made:
        with capture_logs() as lines:
            assert await code_of(made.rpc(RPC)) == 100
        gate.set()
    assert outcomes(made) == {("rpc", "timed_out"): 1}
    assert [(line["event"], line["timeout_s"]) for line in lines] == [("hook_timed_out", 0.03)]


async def test_a_slow_hook_takes_no_places_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http_module, "CALLS_OF_A_HOOK_MAX", 3)
    gate = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        if (await request.json()).get("method"):
            await gate.wait()
        return web.json_response({"result": {}})

    async with back_end(wait) as end, calls(end.url) as made:
        waiting = [
            asyncio.create_task(made.rpc(replace(RPC, user=user))) for user in ("ann", "bob", "cy")
        ]
        await until(lambda: len(end.asked) == 3)
        assert await code_of(made.rpc(replace(RPC, user="dee"))) == 111
        assert await made.publish(PUBLISH) == PublishReply()
        gate.set()
        await asyncio.gather(*waiting)
        assert await made.rpc(RPC) is None
    assert outcomes(made)["rpc", "shed"] == 1


async def test_few_callers_leave_places_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with many connections: those of a user are one caller."""
    monkeypatch.setattr(over_http_module, "CALLS_OF_A_HOOK_MAX", 4)
    gate = asyncio.Event()

    async def wait(_request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.json_response({"result": {}})

    async with back_end(wait) as end, calls(end.url) as made:
        waiting = [
            asyncio.create_task(made.rpc(replace(RPC, client=client))) for client in ("c1", "c2")
        ]
        await until(lambda: len(end.asked) == 2)
        assert await code_of(made.rpc(replace(RPC, client="c3"))) == 111
        for client in ("c4", "c5"):
            nobody = replace(RPC, client=client, user="")
            waiting.append(asyncio.create_task(made.rpc(nobody)))
            await until(lambda: len(end.asked) == len(waiting))
            assert await code_of(made.rpc(nobody)) == 111
        assert await code_of(made.rpc(replace(RPC, user="bob"))) == 111
        gate.set()
        assert await asyncio.gather(*waiting) == [None] * 4
        assert await made.rpc(RPC) is None
    assert outcomes(made) == {("rpc", "shed"): 4, ("rpc", "answered"): 5}


async def test_a_call_that_is_cancelled_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(over_http_module, "CALLS_OF_A_HOOK_MAX", 1)
    gate = asyncio.Event()

    async def wait(_request: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.json_response({"result": {}})

    async with back_end(wait) as end, calls(end.url) as made:
        call = asyncio.create_task(made.rpc(RPC))
        await until(lambda: end.asked)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        gate.set()
        assert await made.rpc(RPC) is None
    assert outcomes(made) == {("rpc", "cancelled"): 1, ("rpc", "answered"): 1}


@asynccontextmanager
async def breaking(answered_after: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads a request and hangs up, until it answers after so many."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        requests.append(await reader.readexactly(length))
        if len(requests) > answered_after:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + b'{"result":{}}')
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", requests


async def test_a_question_is_asked_again_where_the_connection_broke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(over_http_module, "_PAUSE_S", 0.001)
    async with breaking(1) as (url, requests), calls(url) as made:
        assert (await made.subscribe(SUBSCRIBE)) is not None
        assert len(requests) == 2
        assert json.loads(requests[0]) == json.loads(requests[1])
    async with breaking(100) as (url, requests), calls(url) as made:
        assert await code_of(made.connect(CONNECT)) == 100
        assert len(requests) == 2


@pytest.mark.parametrize("event", [PUBLISH, RPC])
async def test_what_may_have_been_done_is_not_asked_again(event: Any) -> None:
    async with breaking(1) as (url, requests), calls(url) as made:
        asking = made.publish(event) if isinstance(event, PublishEvent) else made.rpc(event)
        with capture_logs() as lines:
            assert await code_of(asking) == 100
        assert len(requests) == 1
    assert lines[0]["reason"].startswith("the connection broke: ")


@pytest.mark.parametrize("event", [PUBLISH, CONNECT])
async def test_without_a_connection_nothing_was_done(
    event: Any, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(over_http_module, "_PAUSE_S", 0.001)
    pauses: list[float] = []

    def random() -> float:
        pauses.append(0.0)
        return 0.0

    url = f"http://127.0.0.1:{unused_tcp_port}/secret-path"
    async with calls(url, ends=BackEnds(random)) as made:
        asking = made.publish(event) if isinstance(event, PublishEvent) else made.connect(event)
        with capture_logs() as lines:
            assert await code_of(asking) == 100
    assert len(pauses) == 1
    assert "Cannot connect to host 127.0.0.1" in lines[0]["reason"]
    assert "secret-path" not in str(lines)


async def test_a_certificate_that_nobody_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_http_module, "_PAUSE_S", 0.001)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*Pair("somebody").write(tmp_path))
    async with back_end(says(result={"user": "eve"}), tls) as end, calls(end.url) as made:
        with capture_logs() as lines:
            assert await code_of(made.connect(CONNECT)) == 100
        assert end.asked == []
    assert "CERTIFICATE_VERIFY_FAILED" in lines[0]["reason"]


class Signer:
    def __init__(self) -> None:
        self.signed: list[tuple[str, bytes, str, str]] = []
        self.fails = False
        self.is_ready = False

    async def ready(self) -> None:
        self.is_ready = True

    async def headers(self, url: str, body: bytes, *, service: str, region: str) -> dict[str, str]:
        if self.fails:
            raise PortError("credentials of AWS: there are none")
        self.signed.append((url, body, service, region))
        return {"Authorization": "AWS4-HMAC-SHA256 …"[:-1]}


async def test_a_request_may_be_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http_module, "aws_service", lambda _: ("lambda", "eu-west-1"))
    signer = Signer()
    ends = BackEnds(lambda: 0.0, signer=signer)
    async with (
        back_end(says(result={"user": "ann"})) as end,
        calls(end.url, aws_iam=True, ends=ends) as made,
    ):
        assert signer.is_ready
        await made.connect(CONNECT)
        [(url, body, service, region)] = signer.signed
        assert (url, service, region) == (end.url, "lambda", "eu-west-1")
        assert json.loads(body) == end.asked[0]
        assert end.headers[0]["authorization"].startswith("AWS4")
        signer.fails = True
        with capture_logs() as lines:
            assert await code_of(made.connect(CONNECT)) == 100
        assert lines[0]["reason"] == "credentials of AWS: there are none"
        assert len(end.asked) == 1


class Tracer:
    """Records every call."""

    is_on = True
    context = TraceContext("a" * 32, "b" * 16)

    def __init__(self) -> None:
        self.told: list[object] = []

    def root(self, name: str, channel: str, *_: object, **__: object) -> Tracer:
        self.told.append((name, channel))
        return self

    def span(self, *_: object, **__: object) -> Any:
        raise AssertionError("a hook's span is the first of its trace")

    def link(self, _: object) -> None:
        raise AssertionError

    def end(self, attributes: Mapping[str, object], *, failure: str = "", **_: object) -> None:
        self.told.append((dict(attributes), failure))


async def test_a_trace_goes_on_in_the_back_end() -> None:
    tracer: Any = Tracer()
    ends = BackEnds(lambda: 0.0, tracer=tracer)
    async with back_end(says(result={})) as end, calls(end.url, ends=ends) as made:
        await made.publish(PUBLISH)
        assert end.headers[0]["traceparent"] == tracer.context.traceparent()
        end.answer = says(500)
        assert await code_of(made.rpc(RPC)) == 100
    assert tracer.told == [
        (HOOK, "room"),
        ({HOOK_NAME: "publish"}, ""),
        (HOOK, ""),
        ({HOOK_NAME: "rpc"}, "no decision"),
    ]


async def test_what_cannot_be_written_again_is_the_clients_fault() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    async with back_end(says(result={})) as end, calls(end.url) as made:
        assert await code_of(made.rpc(RpcEvent("c1", "ann", None, "m", deep))) == 107
        assert end.asked == []


def test_without_options_nothing_is_made() -> None:
    hooks = Hooks()
    assert with_http_hooks(hooks, Config(hooks=HooksConfig()), BackEnds(lambda: 0.0)) is hooks
