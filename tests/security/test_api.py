"""The server API: nothing without its key by whatever path, and whatever a body holds is answered,
without a fault of ours.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from roomcast.gateway.api.server import METHODS
from roomcast.wire.codes import Error
from tests.security.mutator import Mutator
from tests.security.target import KEY, SIZE_LIMIT, Target, target, watched
from tests.unit.worlds import settled

MUTANTS: Final = 1500
SEED: Final = 20_232
OUTCOMES_MIN: Final = 25
HEADERS: Final = {"X-API-Key": KEY, "Content-Type": "application/json"}
STATUSES: Final = {200, 400, 413}
CODES: Final = {each.value.code for each in Error}
BODY: Final = b'{"channel":"room","data":1}'

# One valid request of each method and more.
BODIES: Final[list[tuple[str, dict[str, Any]]]] = [
    (
        "publish",
        {"channel": "room", "data": {"a": [1, "é😀"]}, "tags": {"a": "b"}, "idempotency_key": "k"},
    ),
    (
        "publish",
        {"channel": "plain:a", "b64data": "eyJhIjoxfQ==", "skip_history": True, "delta": True},
    ),
    (
        "broadcast",
        {"channels": ["room", "plain:a", "no:where"], "data": [1], "idempotency_key": "k"},
    ),
    (
        "subscribe",
        {"user": "ann", "channel": "room", "info": {"a": 1}, "client": "c", "expire_at": 4e9},
    ),
    ("publish", {"channel": "bin:a", "b64data": "/wA=", "data": {"a": 1}}),
    ("broadcast", {"channels": ["room", "bin:a", "plain:a"], "b64data": "e30=", "delta": True}),
    ("subscribe", {"user": "ann", "channel": "bin:a", "b64data": "/wA=", "b64info": "e30="}),
    ("history", {"channel": "bin:a", "limit": -1}),
    ("subscribe", {"user": "ann", "channel": "room", "recover_since": {"offset": 1, "epoch": "e"}}),
    ("unsubscribe", {"user": "ann", "channel": "room"}),
    (
        "disconnect",
        {"user": "ann", "disconnect": {"code": 4500, "reason": "go"}, "whitelist": ["c"]},
    ),
    ("refresh", {"user": "ann", "expired": False, "expire_at": 4000000000, "info": {}}),
    (
        "history",
        {"channel": "room", "limit": 5, "reverse": True, "since": {"offset": 1, "epoch": "e"}},
    ),
    (
        "history",
        {"channel": "room", "limit": 5, "since_time": 1700000000000, "until_time": 2**53 - 1},
    ),
    ("history_remove", {"channel": "room"}),
    ("presence", {"channel": "room"}),
    ("presence_stats", {"channel": "room"}),
    ("channels", {"pattern": "ro*"}),
    ("info", {}),
    ("drain", {"node": "nobody"}),
    (
        "batch",
        {"commands": [{"publish": {"channel": "room", "data": 1}}, {"info": {}}], "parallel": True},
    ),
]


@pytest.fixture
async def attacked() -> AsyncIterator[Target]:
    """Whatever the test does to it: no fault of ours, and it still serves."""
    with watched() as logs:
        async with target() as attacked:
            yield attacked
            await attacked.still_serves()
    assert logs.faults() == []


async def called(attacked: Target, method: str, body: bytes, **headers: str) -> tuple[int, Any]:
    url = f"{attacked.url}/api/{method}"
    async with attacked.session.post(url, data=body, headers=HEADERS | headers) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


def shape(answer: Any) -> Any:
    """What an answer says, without whatever differs from one time to the next.
    Fails unless it is one of the API's.
    """
    if "replies" in answer:
        return tuple(shape(reply) for reply in answer["replies"])
    if "error" in answer:
        assert answer["error"]["code"] in CODES, answer
        assert answer["error"]["code"] != Error.INTERNAL.value.code, answer
        return answer["error"]["code"], answer["error"]["message"]
    return tuple(answer), type(next(iter(answer.values()), None)).__name__


def test_every_method_is_attacked() -> None:
    assert {method for method, _ in BODIES} == {*METHODS, "batch"}


async def test_mutated_bodies_are_answered_or_refused(attacked: Target) -> None:
    """A corpus of valid requests, mutated, with the key:
    also a back end must not be able to harm a node.
    """
    async with await attacked.upgrade() as response:
        # Somebody whom orders are for.
        await response.send_str(json.dumps({"id": 1, "connect": {"token": attacked.token()}}))
        corpus = [f"{method} {json.dumps(body)}".encode() for method, body in BODIES]
        mutator = Mutator(corpus, SEED)
        for mutant in [*corpus, *(mutator.mutant() for _ in range(MUTANTS))]:
            name, _, body = mutant.partition(b" ")
            method = name.decode(errors="replace")
            if method not in METHODS and method != "batch":
                method = "batch" if len(body) % 2 else "publish"
            status, answer = await called(attacked, method, body)
            assert status in STATUSES, (mutant, status, answer)
            mutator.learn(mutant, (method, status, shape(answer)))
        await settled()
    assert len(mutator.outcomes) >= OUTCOMES_MIN


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"channel"',
        b"0",
        b"{",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"[" * SIZE_LIMIT,
        b'{"a":' * 700,
        b'{"channel":"room","data":' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'{"channel":"room","channel":5,"data":1}',
        b'{"channel":"\\ud800","data":1}',
        b'{"channel":"room","data":1e999}',
        b'{"channel":"room","data":NaN}',
        b'{"__proto__":{"channel":"room"},"constructor":1}',
        b'{"channel":{"$gt":""},"data":1}',
        b'{"channel":["room"],"data":1}',
        b'{"channel":"\\u0001check","data":1}',
        b'{"channel":"a\\u0000b\\r\\nX: y","data":1}',
        b'{"channel":"room","data":1,"idempotency_key":"' + b"k" * 3000 + b'"}',
    ],
    ids=range(21),
)
async def test_what_is_no_request_is_told(attacked: Target, body: bytes) -> None:
    for method in sorted(METHODS):
        status, answer = await called(attacked, method, body)
        assert status in STATUSES
        shape(answer)


@pytest.mark.parametrize(
    "encoding", ["gzip", "deflate", "br", "zstd", "x\x80", "gzip, gzip", "identity"]
)
async def test_what_only_says_that_it_is_compressed(attacked: Target, encoding: str) -> None:
    """It may come to nothing or be closed without an answer, and no more."""
    for body in (b"no such thing", gzip.compress(BODY)[:20], b"\x1f\x8b" + bytes(50), b""):
        head = await attacked.raw(
            b"POST /api/publish HTTP/1.1\r\nHost: a\r\n"
            b"Content-Type: application/json\r\nX-API-Key: "
            + KEY.encode()
            + b"\r\nContent-Encoding: "
            + encoding.encode("latin-1")
            + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        assert head.split(b" ", 2)[1:2] in ([], [b"400"], [b"415"]), head


async def test_a_body_that_never_comes_to_its_end(attacked: Target) -> None:
    head = await attacked.raw(
        b"POST /api/publish HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-API-Key: "
        + KEY.encode()
        + b"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno chunk\r\n"
    )
    assert head.split(b" ", 2)[1] in (b"400", b"411")


async def test_who_hangs_up_amidst_a_body_is_no_fault(attacked: Target) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    head = "POST /api/publish HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += f"X-API-Key: {KEY}"
    writer.write(f"{head}\r\nContent-Length: 1000\r\n\r\n{{".encode())
    await writer.drain()
    # It has come to the handler: what is sent later is dealt with later.
    assert (await attacked.session.get(f"{attacked.url}/health/live")).status == 200
    writer.transport.abort()
    await settled()


# ---- without the key


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/api/publish",
            "/api/publish/",
            "//api/publish",
            "/api//publish",
            "/api/./publish",
            "/./api/publish",
        ),
        *(
            "/x/../api/publish",
            "/health/live/../../api/publish",
            "/api/%70ublish",
            "/%61pi/publish",
        ),
        *(
            "/api%2fpublish",
            "/api/publish%2f",
            "/api/publish%00",
            "/api/publish%20",
            "/api/publish;x=1",
        ),
        *(
            "/API/publish",
            "/api/PUBLISH",
            "/api/publish?key=x",
            "/api/publish%3f",
            "/api/batch",
            "/api\\publish",
        ),
        *(
            "/api/..%2fapi/publish",
            "/api/%2e%2e/api/publish",
            "/api/publish%ff",
            "/api/é",
            "/api/%c3%a9",
            "/api",
        ),
    ],
)
async def test_no_path_leads_past_the_key(attacked: Target, path: str) -> None:
    before = len(attacked.node.world.stream)
    body = b'{"commands":[{"publish":{"channel":"room","data":1}}],"channel":"room","data":1}'
    for method in ("POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "post"):
        head = await attacked.raw(
            f"{method} {path} HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: POST\r\n"
            "X-Original-URL: /health/live\r\n"
            "Content-Type: application/json\r\nContent-Length: ".encode()
            + b"%d\r\n\r\n" % len(body)
            + body
        )
        assert head.split(b" ", 2)[1] in (b"400", b"401", b"404", b"405"), head
        assert b"access-control" not in head.lower()
    assert len(attacked.node.world.stream) == before


@pytest.mark.parametrize(
    "key",
    [
        None,
        b"",
        b" ",
        KEY.encode()[:-1],
        KEY.encode() + b"x",
        KEY.upper().encode(),
        KEY.encode() + b"\x00",
        b"\xff\xfe",
        "schlüssel".encode(),
        b"x" * 7000,
        b"apikey " + KEY.encode(),
        b'"' + KEY.encode() + b'"',
        b"wrong\r\nX-API-Key: " + KEY.encode(),
    ],
    ids=range(13),
)
async def test_no_other_key_opens(attacked: Target, key: bytes | None) -> None:
    """Also not where the right one stands elsewhere than it should."""
    header = b"" if key is None else b"X-API-Key: " + key + b"\r\n"
    for method, path in (
        (b"POST", b"/api/publish"),
        (b"GET", b"/api/openapi.json"),
        (b"POST", b"/api/unknown"),
    ):
        head = await attacked.raw(
            method
            + b" "
            + path
            + b"?api_key="
            + KEY.replace(" ", "%20").encode()
            + b" HTTP/1.1\r\nHost: a\r\n"
            + header
            + b"Cookie: X-API-Key="
            + KEY.encode()
            + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
            + BODY
        )
        assert head.split(b" ", 2)[1] in (b"400", b"401"), head
    assert attacked.node.world.stream == []


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "text/json",
    ],
)
async def test_a_page_cannot_post_what_needs_no_permission(attacked: Target, kind: str) -> None:
    """Only what a browser sends across sites after asking is taken;
    and it is never told that it may.
    """
    headers = {"X-API-Key": KEY, "Content-Type": kind, "Origin": "https://evil.com"}
    async with attacked.session.post(
        f"{attacked.url}/api/publish", data=BODY, headers=headers
    ) as response:
        assert response.status == 415
        assert "Access-Control-Allow-Origin" not in response.headers
