"""Pages of other sites, and requests that no browser and no SDK would send:
refused before anything is spent on them.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import SplitResult

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.gateway import admission
from roomcast.gateway.admission import origin_allowed
from tests.security.target import HOST, PATH, Target, target, watched
from tests.websocket import WebSocket

PAGES: Final = "https://*.pages.example.net"
LONG: Final = b"x" * 7000
# aiohttp takes no header line beyond 8,190 bytes.
TOO_LONG: Final = b"x" * 20_000


@pytest.fixture
async def attacked() -> AsyncIterator[Target]:
    """Whatever the test does to it: no fault of ours, nobody left, and it still serves."""
    with watched() as logs:
        async with target(origins=(PAGES,)) as attacked:
            yield attacked
            await attacked.still_serves()
    assert logs.faults() == []


def request(
    *lines: bytes, path: bytes = PATH.encode(), host: bytes | None = HOST.encode()
) -> bytes:
    """A handshake with further header lines, as bytes."""
    return b"\r\n".join(
        [
            b"GET " + path + b" HTTP/1.1",
            *([b"Host: " + host] if host is not None else []),
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)),
            *lines,
            b"",
            b"",
        ]
    )


def status(head: bytes) -> int:
    """0 = it was closed without an answer."""
    return int(head.split(b" ", 2)[1]) if head else 0


# ---- cross-site hijacking


@pytest.mark.parametrize(
    "origin",
    [
        b"https://" + HOST.encode(),
        b"http://" + HOST.encode(),
        b"HTTPS://CHAT.Example.Com",
        b"https://a.pages.example.net",
    ],
)
async def test_a_page_of_ours_may_connect(attacked: Target, origin: bytes) -> None:
    assert status(await attacked.raw(request(b"Origin: " + origin))) == 101


async def test_who_has_no_origin_is_no_page_and_needs_a_token(attacked: Target) -> None:
    """It is let in, since it brings no one's cookies, and there are none here:
    without a token it is nobody.
    """
    async with await attacked.upgrade() as response:
        assert await WebSocket(response).ask("connect") == 101


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"Null",
        b"",
        b"*",
        b"https://",
        b"http://",
        b"//" + HOST.encode(),
        HOST.encode(),
        b"file://",
        b"file://" + HOST.encode(),
        b"javascript://" + HOST.encode(),
        b"wss://" + HOST.encode(),
        b"https://" + HOST.encode() + b":8443",
        b"https://" + HOST.encode() + b".",
        b"https://" + HOST.encode() + b".evil.com",
        b"https://evil.com/" + HOST.encode(),
        b"https://evil.com#" + HOST.encode(),
        b"https://evil.com?" + HOST.encode(),
        b"https://evil.com\\@" + HOST.encode(),
        b"https://" + HOST.encode() + b"@evil.com",
        b"https://" + HOST.encode() + b":@evil.com",
        b"https://evil" + HOST.encode(),
        b"https://sub." + HOST.encode(),
        b"https://example.com",
        b"https://" + HOST.encode() + b", https://evil.com",
        b"https://evil.com, https://" + HOST.encode(),
        "https://сhat.example.com".encode(),  # with a Cyrillic letter
        b"https://\xff\xfe",
        b"http://localhost",
        b"http://127.0.0.1",
        b"https://pages.example.net",
        b"http://a.pages.example.net",
        b"https://a.pages.example.net:8443",
        b"https://a.pages.example.net.evil.com",
        b"https://evil.com/.pages.example.net",
        b"https://evil.com?.pages.example.net",
        b"https://evil.com#.pages.example.net",
        b"https://evil.com:80@a.pages.example.net",
        b"https://evil.com\\.pages.example.net",
        b"https://evil.com, https://a.pages.example.net",
        b"https://evil.com https://a.pages.example.net",
        b"https://x.pages.example.net\xa0",
        b"https://" + LONG,
    ],
)
async def test_no_other_page_may(attacked: Target, origin: bytes) -> None:
    assert status(await attacked.raw(request(b"Origin: " + origin))) == 403
    assert attacked.connections == 0


@pytest.mark.parametrize(
    "origins",
    [(b"https://evil.com", b"https://" + HOST.encode()), (b"https://" + HOST.encode(), b"null")],
)
async def test_one_origin_too_many_is_none(attacked: Target, origins: tuple[bytes, ...]) -> None:
    assert status(await attacked.raw(request(*(b"Origin: " + each for each in origins)))) in (
        400,
        403,
    )


@pytest.mark.parametrize(
    "host", [None, b"", b"chat.example.com, evil.com", b"\xff", b"[", b"evil.com:99999999"]
)
async def test_a_host_that_is_none_makes_no_page_ours(attacked: Target, host: bytes | None) -> None:
    """Also not with HTTP/1.0, which needs no Host."""
    for origin in (b"https://evil.com", b"http://", b"http://localhost"):
        sent = request(b"Origin: " + origin, host=host)
        assert status(await attacked.raw(sent)) in (400, 403)
        assert status(await attacked.raw(sent.replace(b"HTTP/1.1", b"HTTP/1.0"))) in (400, 403)


async def test_who_says_in_which_name_it_comes_changes_no_origin(attacked: Target) -> None:
    """What a proxy may add, and a page cannot be stopped from guessing."""
    for header in (b"X-Forwarded-Host", b"Forwarded", b"X-Original-Host", b"X-Host"):
        sent = request(b"Origin: https://evil.com", header + b": evil.com")
        assert status(await attacked.raw(sent)) == 403


MARKS: Final = "\u0301" * 2000 + "\u0316" * 2000


@pytest.mark.parametrize(
    "origin, host",
    [(f"https://a{MARKS}", HOST), ("https://evil.com", f"a{MARKS}"), (f"https://{MARKS}", MARKS)],
)
def test_no_letters_of_an_origin_or_a_host_are_normalized(
    monkeypatch: pytest.MonkeyPatch, origin: str, host: str
) -> None:
    """That takes time that grows with the square of their number: 125 ms for 16 KiB, for anybody,
    and before a rate of handshakes is looked at.
    """
    split: list[str] = []

    def urlsplit(url: str) -> SplitResult:
        split.append(url)
        return SplitResult("https", HOST, "", "", "")

    monkeypatch.setattr(admission, "urlsplit", urlsplit)
    assert not origin_allowed(origin, host, (PAGES,))
    assert split == []


@given(st.text(max_size=60) | st.text("/?#@:.,\\ \t[]%aA", max_size=6))
def test_any_text_is_refused_or_names_our_host(origin: str) -> None:
    """A page of whichever name that holds ours somewhere."""
    for text in (origin, f"https://{origin}", f"https://{origin}{HOST}", f"https://{HOST}{origin}"):
        if origin_allowed(text, HOST, (PAGES,)):
            assert text.lower() in (f"https://{HOST}", f"http://{HOST}")


# ---- injection


@pytest.mark.parametrize(
    "name",
    [
        b"Origin",
        b"X-Forwarded-For",
        b"Sec-WebSocket-Protocol",
        b"Sec-WebSocket-Extensions",
        b"X-API-Key",
        b"Cookie",
        b"User-Agent",
        b"X-Made-Up",
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        b"a\r\nX-Injected: yes",
        b"a\r\n X-Injected: yes",
        b"a\nX-Injected: yes",
        b"a\rX-Injected: yes",
        b"a%0d%0aX-Injected: yes",
        "a\u560d\u560aX-Injected: yes".encode(),  # cut to bytes, its second letters are CR and LF
        b"a\x00b",
        b"\x1b[2J\x07",
        b"\xff\xfe\xc3\x28",
        "ünïcödé 😀".encode(),
        LONG,
        TOO_LONG,
    ],
    ids=range(12),
)
async def test_nothing_in_a_header_gets_further(
    attacked: Target, name: bytes, value: bytes
) -> None:
    """It is refused, or let in as if it were not there: it is in no answer and makes no fault."""
    for path in (PATH, "/health/live", "/api/info"):
        head = await attacked.raw(request(name + b": " + value, path=path.encode()))
        assert status(head) in (101, 200, 400, 401, 403, 404, 405, 431), head
        assert b"injected" not in head.lower()
        assert b"\x1b" not in head
        assert len(head) < 1000


@pytest.mark.parametrize(
    "query",
    [
        b"format=%0d%0aX-Injected:%20yes",
        b"format=protobuf%00",
        b"format=%ff%fe",
        b"format=" + "é😀".encode(),
        b"cf_protocol=protobuf&" * 200,
        b"cf_protocol[]=protobuf",
        b"=&&==&%&%zz",
        b"token=" + LONG,
        b"a=" + TOO_LONG,
        b"../../api/publish",
        b"#x",
    ],
    ids=range(11),
)
async def test_nothing_in_a_query_gets_further(attacked: Target, query: bytes) -> None:
    head = await attacked.raw(request(path=PATH.encode() + b"?" + query))
    assert status(head) in (101, 400, 414, 431), head
    assert b"injected" not in head.lower()


@pytest.mark.parametrize(
    "offered",
    [
        b"centrifuge-json\x00",
        b"centrifuge-json, " * 400,
        b"CENTRIFUGE-PROTOBUF",
        b"centrifuge-protobuf;q=1",
        b",,,",
        b"xmpp",
        b'"centrifuge-json"',
        "centrifuge-jsoñ".encode(),
    ],
    ids=range(8),
)
async def test_a_subprotocol_is_one_of_ours_or_none(attacked: Target, offered: bytes) -> None:
    head = await attacked.raw(request(b"Sec-WebSocket-Protocol: " + offered))
    assert status(head) in (101, 400)
    chosen = [
        line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-protocol:")
    ]
    assert [line.partition(b": ")[2] for line in chosen] in (
        [],
        [b"centrifuge-json"],
        [b"centrifuge-protobuf"],
    )


async def test_a_handshake_is_a_get(attacked: Target) -> None:
    """To a proxy, the answer to a HEAD has no body, and what follows it is another request."""
    assert status(await attacked.raw(request())) == 101
    assert status(await attacked.raw(request().replace(b"GET", b"HEAD", 1))) == 426


@pytest.mark.parametrize(
    "sent",
    [
        b"GET " + PATH.encode() + b" HTTP/9.9\r\n\r\n",
        b"GET\x00" + PATH.encode() + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
        b"GET " + PATH.encode() + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.com:443 HTTP/1.1\r\nHost: evil.com\r\n\r\n",
        b"GET http://evil.com" + PATH.encode() + b" HTTP/1.1\r\nHost: evil.com\r\n\r\n",
        b"GET " + PATH.encode() + b" HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        (
            b"POST /api/info HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /api/info HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/info HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
    ids=range(11),
)
async def test_what_is_no_http_is_refused(attacked: Target, sent: bytes) -> None:
    head = await attacked.raw(sent)
    assert status(head) in (0, 400, 401, 403, 404, 405, 411, 415, 426, 505), head


@pytest.mark.parametrize(
    "origin, told",
    [
        (b"https://evil.com", "https://evil.com"),
        (b"https://" + LONG, "https://" + "x" * 192),
        (b"https://ann:password@evil.com", "malformed"),
        (b"https://evil.com/path", "malformed"),
    ],
    ids=range(4),
)
async def test_of_a_refused_page_the_log_has_the_origin_and_no_more(
    attacked: Target, origin: bytes, told: str
) -> None:
    with watched() as logs:
        await attacked.raw(request(b"Origin: " + origin))
    [event] = [event for event in logs.events if event["event"] == "origin_refused"]
    assert event["origin"] == told
