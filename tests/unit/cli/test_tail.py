"""`roomcast tail` against a node over memory: what it shows,
that nothing is left out, and how it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from roomcast.backoff import Backoff
from roomcast.cli import main as cli
from roomcast.cli import tail as tail_module
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.codes import Closing, Disconnect, DisconnectCode
from roomcast.wire.encoding import stored_of
from roomcast.wire.publication import ClientInfo, Publication
from tests.unit.redirecting import redirecting
from tests.unit.served import Served
from tests.unit.worlds import BINARY, HISTORY, SECRET, LocalNode, until

Follow = Callable[..., "Following"]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ROOMCAST_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(tail_module, "_BACKOFF", Backoff(0.002, 1.0))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What the node logs is not what the command prints."""
    with capture_logs():
        yield


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    started = Served(key="", insecure=True)
    yield started
    started.close()


class Following:
    """One `roomcast tail` in a thread of its own."""

    def __init__(self, served: Served, channel: str, *arguments: str) -> None:
        self._served = served
        self.channel = channel
        self.code = -1
        self._before: list[Any] = served.do(connections)

        def run() -> None:
            self.code = cli.main(["tail", "--url", served.url, channel, *arguments])

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def subscribed(self, *channels: str) -> None:
        async def wait(node: LocalNode) -> None:
            await until(
                lambda: any(
                    all(each in connection._subscriptions for each in channels or (self.channel,))
                    for connection in node.assembly.node._connections
                    if connection not in self._before
                )
            )

        self._served.do(wait)

    def closed(self, why: Closing) -> None:
        """The server closes it."""

        async def close(node: LocalNode) -> None:
            for connection in list(node.assembly.node._connections):
                if connection not in self._before:
                    connection.close(why)

        self._served.do(close)

    def ended(self) -> int:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.code


async def connections(node: LocalNode) -> list[Any]:
    return list(node.assembly.node._connections)


@pytest.fixture
def follow(served: Served) -> Follow:
    return lambda channel, *arguments: Following(served, channel, *arguments)


def publish(
    served: Served, channel: str, *contents: Any, options: ChannelOptions = HISTORY
) -> None:
    async def publish(node: LocalNode) -> None:
        services = node.assembly.node.services
        for data in contents:
            published = Publication(data, info=ClientInfo("ann", "c"), time=1_700_000_000_000)
            if options.has_history:
                await services.appender.submit(channel, published, options.history_ttl_s * 1000)
            else:
                services.publisher.send(channel, stored_of(published))

    served.do(publish)


def test_bytes_are_shown_as_base64(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tail", "--url", served.url, "bin:seen"]) == 1
    assert "the channel is binary, and needs Protobuf (108)" in capsys.readouterr().err
    publish(served, "bin:seen", b"\xff\x00", options=BINARY)
    following = follow(
        "bin:seen", "--binary", "--json", "--since", "0", "--grep", '^"(/|"|$)', "--count", "3"
    )
    following.subscribed()
    publish(served, "bin:seen", b"1", b"", b"\xff\xff", options=BINARY)
    assert following.ended() == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["offset"], each["b64data"]) for each in shown] == [
        (1, "/wA="),
        (3, ""),
        (4, "//8="),
    ]
    assert shown[0]["info"] == {"user": "ann", "client": "c"}
    assert all("data" not in each for each in shown)


def test_what_is_published_is_shown(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(served, "seen", "before")
    following = follow("seen", "--count", "2")
    following.subscribed()
    publish(served, "seen", {"text": "hi"}, "\x1b[2J", "too much")
    assert following.ended() == 0
    assert capsys.readouterr() == (
        (
            '2  2023-11-14T22:13:20Z  ann  {"text": "hi"}\n'
            '3  2023-11-14T22:13:20Z  ann  "\\u001b[2J"\n'
        ),
        "",
    )


def test_without_history_and_as_json(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    following = follow("plain:x", "--count", "1", "--json")
    following.subscribed()
    publish(served, "plain:x", 1, options=ChannelOptions())
    assert following.ended() == 0
    assert json.loads(capsys.readouterr().out) == {
        "data": 1,
        "info": {"user": "ann", "client": "c"},
        "time": 1_700_000_000_000,
    }


def test_several_channels_are_told_apart(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    following = follow("left", "right", "third", "left", "--count", "3")
    following.subscribed("left", "right", "third")
    for channel in ("right", "left", "third"):
        publish(served, channel, channel)
    assert following.ended() == 0
    shown = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[-1]) for line in shown] == [
        ("right", '"right"'),
        ("left", '"left"'),
        ("third", '"third"'),
    ]


def test_several_channels_in_json(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    following = follow("j1", "j2", "--json", "--count", "1")
    following.subscribed("j1", "j2")
    publish(served, "j2", 1)
    assert following.ended() == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["channel"], told["data"]) == ("j2", 1)


def test_of_several_channels_the_one_that_cannot_be_watched_is_named(
    follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow("news", "no:where").ended() == 1
    assert capsys.readouterr().err == "roomcast: subscribe no:where: unknown channel (102)\n"


def test_only_what_passes_is_shown_and_counted(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--where", "kind=a", "--grep", "[02468]", "--user", "ann"]
    following = follow("filtered", "--count", "2", *wanted)
    following.subscribed()
    publish(served, "filtered", *({"kind": "ab"[n % 3 == 0], "n": n} for n in range(1, 9)))
    assert following.ended() == 0
    shown = [json.loads(line.split("  ")[-1])["n"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [2, 4]


@pytest.mark.parametrize(
    "since, expected",
    [("0", range(1, 9)), ("3", range(4, 9)), ("5", range(6, 9)), ("6", [7, 8])],
)
def test_it_may_begin_with_the_history(
    served: Served,
    follow: Follow,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    since: str,
    expected: Iterable[int],
) -> None:
    monkeypatch.setattr(tail_module, "PAGE", 2)
    channel = f"since-{since}"
    publish(served, channel, *range(1, 7))
    wanted = list(expected)
    following = follow(channel, "--since", since, "--count", str(len(wanted)))
    following.subscribed()
    publish(served, channel, 7, 8)
    assert following.ended() == 0
    shown = [int(line.split("  ")[-1]) for line in capsys.readouterr().out.splitlines()]
    assert shown == wanted, "each once, and in order"


def test_it_may_begin_some_time_ago(
    served: Served,
    follow: Follow,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Everything here was published at the same moment.
    publish(served, "ago", "old")
    monkeypatch.setattr(tail_module, "_now_s", lambda: 1_700_000_000.0 + 600)
    for given, shown in (("9m", ['"new"']), ("11m", ['"old"', '"new"', '"newer"'])):
        following = follow("ago", "--since", given, "--count", str(len(shown)))
        following.subscribed()
        publish(served, "ago", "new" if len(shown) == 1 else "newer")
        assert following.ended() == 0
        out = capsys.readouterr().out
        assert [line.split("  ")[-1] for line in out.splitlines()] == shown


def test_of_a_long_history_the_end_is_shown_and_that_is_told(
    served: Served,
    follow: Follow,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tail_module, "PAGE", 2)
    monkeypatch.setattr(tail_module, "BEHIND_MAX", 4)
    publish(served, "long", *range(1, 10))
    assert follow("long", "--since", "0", "--count", "4").ended() == 0
    out, err = capsys.readouterr()
    assert [line.split("  ")[-1] for line in out.splitlines()] == ["6", "7", "8", "9"]
    assert err == "roomcast: only the last 4 of long are shown\n"


def test_a_history_that_there_is_not(follow: Follow, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow("plain:y", "--since", "5m").ended() == 1
    assert capsys.readouterr().err == "roomcast: history: not available (108)\n"


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["a", "b", "--since", "5"], "an offset is of one channel"),
        (["a", "b", "--channel-token", "t"], "--channel-token is for one channel"),
        ([f"c{n}" for n in range(129)], "no more than 128 channels"),
        (["a", "--since", "soon"], "must be an offset, or a time"),
        (["a", "--grep", "("], "must be a regular expression"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tail", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_nothing_is_left_out_when_the_server_goes_away(
    served: Served,
    follow: Follow,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, back = threading.Event(), threading.Event()

    async def pause(_attempts: int) -> None:
        gone.set()
        await asyncio.to_thread(back.wait, 20)

    following = follow("gap", "--count", "3", "--json")
    following.subscribed()
    publish(served, "gap", 1)
    monkeypatch.setattr(tail_module, "_pause", pause)
    following.closed(Disconnect.SHUTDOWN)
    assert gone.wait(20)
    publish(served, "gap", 2)
    back.set()
    following.subscribed()
    publish(served, "gap", 3)
    assert following.ended() == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["data"] for line in out.splitlines()] == [1, 2, 3]
    assert err == "roomcast: the server closed the connection: shutdown (3001); connecting again\n"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It connects again without a pause."""

    async def pause(_attempts: int) -> None:
        pass

    monkeypatch.setattr(tail_module, "_pause", pause)


@pytest.mark.usefixtures("at_once")
def test_why_it_connects_again_is_no_order_to_a_terminal(
    served: Served,
    follow: Follow,
    capsys: pytest.CaptureFixture[str],
) -> None:
    following = follow("told", "--count", "1")
    following.subscribed()
    following.closed(DisconnectCode(4000, "go\x9b2J \u202e"))
    following.subscribed()
    publish(served, "told", 1)
    assert following.ended() == 0
    assert capsys.readouterr().err == (
        "roomcast: the server closed the connection: go\\x9b2J \\u202e (4000); connecting again\n"
    )


@pytest.mark.usefixtures("at_once")
def test_where_nothing_is_recovered_that_is_told(
    served: Served,
    follow: Follow,
    capsys: pytest.CaptureFixture[str],
) -> None:
    following = follow("plain:x", "--count", "1")
    following.subscribed()
    following.closed(Disconnect.SHUTDOWN)
    following.subscribed()
    publish(served, "plain:x", 1, options=ChannelOptions())
    assert following.ended() == 0
    assert capsys.readouterr().err.splitlines() == [
        "roomcast: the server closed the connection: shutdown (3001); connecting again",
        "roomcast: what was published meanwhile is left out: nothing is recovered here",
    ]


def test_what_cannot_be_recovered_is_told(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    following = follow("lost", "--count", "1")
    following.subscribed()

    async def lose(node: LocalNode) -> None:
        """Another epoch begins."""
        node.world.items.pop("lost")
        await node.assembly.dispatcher.check_tail("lost")

    served.do(lose)
    following.subscribed()
    publish(served, "lost", 1)
    assert following.ended() == 0
    assert capsys.readouterr().err == (
        "roomcast: unsubscribed: insufficient state (2500); connecting again\n"
        "roomcast: some publications are left out here\n"
    )


@pytest.mark.parametrize(
    "why, told",
    [
        (DisconnectCode(4500, "banned"), "the server closed the connection: banned (4500)"),
        (
            Disconnect.FORCE_NO_RECONNECT,
            "the server closed the connection: force disconnect (3503)",
        ),
    ],
)
def test_what_is_final_ends_it(
    follow: Follow, capsys: pytest.CaptureFixture[str], why: Closing, told: str
) -> None:
    following = follow("final")
    following.subscribed()
    following.closed(why)
    assert following.ended() == 1
    assert capsys.readouterr() == ("", f"roomcast: {told}\n")


def test_an_unsubscribe_by_the_server_ends_it(
    served: Served, follow: Follow, capsys: pytest.CaptureFixture[str]
) -> None:
    following = follow("ended")
    following.subscribed()

    async def unsubscribe(node: LocalNode) -> None:
        for connection in node.assembly.node._connections:
            connection.order_unsubscribe("ended")

    served.do(unsubscribe)
    assert following.ended() == 1
    assert capsys.readouterr().err == "roomcast: unsubscribed: server unsubscribe (2000)\n"


@pytest.mark.parametrize(
    "channel, told",
    [("no:where", "subscribe: unknown channel (102)"), ("é", "subscribe: bad request (107)")],
)
def test_a_channel_that_cannot_be_watched(
    follow: Follow, capsys: pytest.CaptureFixture[str], channel: str, told: str
) -> None:
    assert follow(channel).ended() == 1
    assert capsys.readouterr().err == f"roomcast: {told}\n"


def test_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    secured = Served(key="", insecure=False, secret=SECRET)
    try:
        assert Following(secured, "news").ended() == 1
        assert capsys.readouterr().err == "roomcast: connect: unauthorized (101)\n"
        token = jwt.encode({"sub": "ann"}, SECRET)
        assert Following(secured, "news", "--token", token).ended() == 1
        assert capsys.readouterr().err == "roomcast: subscribe: permission denied (103)\n"
        of_channel = jwt.encode({"sub": "ann", "channel": "news"}, SECRET)
        following = Following(
            secured, "news", "--token", token, "--channel-token", of_channel, "--count", "1"
        )
        following.subscribed()
        publish(secured, "news", "hi")
        assert following.ended() == 0
    finally:
        secured.close()


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert cli.main(["tail", "--url", url, "news"]) == 1
    *tries, last = capsys.readouterr().err.splitlines()
    assert len(tries) == tail_module.ATTEMPTS_MAX - 1
    assert all(line.endswith("; connecting again") for line in tries)
    assert last.startswith(f"roomcast: ws{url.removeprefix('http')}/connection/websocket: ")


def test_who_reads_no_further_ends_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with `| head`. It took that for the end of its connection."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        following = Following(served, "plain:unread")
        following.subscribed()
        publish(served, "plain:unread", 1, options=ChannelOptions())
        assert following.ended() == 1
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_its_ordinary_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(_watched: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tail_module, "_watch", interrupted)
    assert cli.main(["tail", "news"]) == 0


def test_a_token_goes_nowhere_else(capsys: pytest.CaptureFixture[str]) -> None:
    with redirecting(302) as (url, elsewhere, heard):
        assert cli.main(["tail", "news", "--url", url, "--token", "secret"]) == 1
    assert heard == []
    path = "/connection/websocket"
    assert capsys.readouterr().err == (
        f"roomcast: {url.replace('http', 'ws')}{path}: redirects to {elsewhere}/there: "
        "give that address if it is meant\n"
    )


@contextmanager
def saying(*lines: str, goes_on: bool = False) -> Iterator[str]:
    """The address of a server that says `lines` when it is first told something, then closes.

    `goes_on`: it says the last one again and again, and answers no close.
    """
    loop, ended, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    told: list[str] = []

    async def handle(request: web.Request) -> web.WebSocketResponse:
        server = web.WebSocketResponse()
        await server.prepare(request)
        await server.receive()
        for line in lines:
            await server.send_str(line)
        with suppress(ConnectionError):
            while goes_on:
                await server.send_str(lines[-1])
                await asyncio.sleep(0)
        await server.close(code=3500, message=b"bye")
        return server

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/connection/websocket", handle)
        async with TestServer(app) as server:
            told.append(str(server.make_url("/")).rstrip("/"))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        yield told[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@pytest.mark.parametrize(
    "line",
    [
        "<html>",
        "5",
        "[]",
        "[" * 100_000,
        '{"id": 1, "error": "no"}',
        '{"id": 2, "subscribe": null}',
        '{"push": {"channel": "news", "pub": 5}}',
        '{"push": {"channel": "news", "pub": {"time": 1e300}}}',
        '{"push": {"channel": "news", "pub": {"data": NaN}}}',
        '{"push": {"channel": "news", "unsubscribe": {"code": "x", "reason": ""}}}',
    ],
)
def test_a_server_that_is_none_of_ours(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with saying(line) as url:
        assert cli.main(["tail", "news", "--url", url]) == 1
    assert capsys.readouterr() == ("", f"roomcast: {url} answers as no roomcast server does\n")


def test_a_server_that_goes_on_and_on_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tail_module, "_CLOSE_S", 0.05)
    with saying('{"push": {"channel": "news", "pub": {"data": 1}}}', goes_on=True) as url:
        assert cli.main(["tail", "news", "--url", url, "--count", "1"]) == 0
    assert capsys.readouterr() == ("-  -  -  1\n", "")


def test_a_terminal_is_told_nothing_by_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    rude = "\x1b[2J\x9b\u202e"
    error = {"id": 1, "error": {"code": 100, "message": rude, "temporary": True}}
    published = {"push": {"channel": "news", "pub": {"offset": rude, "data": rude}}}
    with saying(json.dumps(published), json.dumps(error)) as url:
        assert cli.main(["tail", "news", "--url", url]) == 1
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == tail_module.ATTEMPTS_MAX
    assert told.err.count("\\x1b[2J") == tail_module.ATTEMPTS_MAX
    for text in told:
        assert text.replace("\n", "").isprintable()
