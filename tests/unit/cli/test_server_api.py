"""`roomcast publish` and `roomcast history` against a node over memory:
what they print, and how they end.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from roomcast.cli import main as cli
from roomcast.cli import server_api
from tests.unit.redirecting import redirecting
from tests.unit.served import KEY, Served

pytestmark = pytest.mark.usefixtures("quiet")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ROOMCAST_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def run(served: Served, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of a command against the node."""

    def run(*arguments: str, key: str | None = KEY) -> tuple[int, str, str]:
        given = ["--url", served.url, *(["--key", key] if key is not None else [])]
        code = cli.main([*arguments[:1], *given, *arguments[1:]])
        return code, *capsys.readouterr()

    return run


def test_bytes_of_binary_channels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("publish", "bin:news", "AA", "--bytes")[0] == 0
    given = io.TextIOWrapper(io.BytesIO(b"\xff\x00\n"))
    monkeypatch.setattr(sys, "stdin", given)
    assert run("publish", "bin:news", "-", "--bytes")[0] == 0
    assert run("publish", "bin:news", '"AA"')[0] == 1
    _, first, second = run("history", "bin:news")[1].splitlines()
    assert first.split()[-2:] == ["base64", "QUE="]
    assert second.split()[-2:] == ["base64", "/wAK"]
    kept = json.loads(run("history", "bin:news", "--json")[1])["publications"]
    assert [each["b64data"] for each in kept] == ["QUE=", "/wAK"]


def test_what_is_published_is_in_the_history(run: Run) -> None:
    code, out, err = run("publish", "news", '{"text":"hi"}')
    assert (code, err) == (0, "")
    epoch = out.split()[-1]
    assert out == f"offset 1  epoch {epoch}\n"
    assert json.loads(run("publish", "news", "null", "--json")[1]) == {"offset": 2, "epoch": epoch}
    code, out, err = run("history", "news")
    assert (code, err) == (0, "")
    heading, first, second = out.splitlines()
    assert heading.split() == ["OFFSET", "TIME", "USER", "DATA"]
    assert first.split() == ["1", "2023-11-14T22:13:20Z", '{"text":', '"hi"}']
    assert second.split() == ["2", "2023-11-14T22:13:20Z", "null"]


def test_a_key_that_no_header_takes_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", "news", "--key", "secret\n"]) == 2
    told = "argument --key: must be text without control characters"
    assert capsys.readouterr() == ("", f"roomcast: {told} (see roomcast history --help)\n")


def test_a_key_of_any_letters(capsys: pytest.CaptureFixture[str]) -> None:
    served = Served(key="clé€")
    try:
        assert cli.main(["history", "news", "--url", served.url, "--key", "clé€"]) == 0
        assert cli.main(["history", "news", "--url", served.url, "--key", "clé"]) == 1
    finally:
        served.close()


def test_a_part_of_the_history_by_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's clock stands still, at 2023-11-14T22:13:20Z."""
    monkeypatch.setattr("roomcast.cli.history._now_ms", lambda: 1_700_000_000_000 + 3600_000)
    for number in range(1, 4):
        assert run("publish", "timed", str(number))[0] == 0

    def offsets(*arguments: str) -> list[int]:
        history = json.loads(run("history", "timed", "--json", *arguments)[1])
        return [publication["offset"] for publication in history["publications"]]

    at = "2023-11-14T22:13:20"
    assert offsets("--since", "2h") == offsets("--since=-1h") == [1, 2, 3]
    assert offsets("--since", f"{at}Z") == offsets("--until", f"{at}.001Z") == [1, 2, 3]
    assert offsets("--since", f"{at}.001Z") == offsets("--until", f"{at}Z") == []
    assert offsets("--since", "1", "--until", "59m", "--reverse", "--limit", "1") == []
    assert offsets("--since", "3", "--until", "59m", "--reverse", "--limit", "1") == [2]


def test_a_part_of_the_history(run: Run) -> None:
    for number in range(1, 5):
        assert run("publish", "part", str(number))[0] == 0

    def offsets(*arguments: str) -> list[int]:
        history = json.loads(run("history", "part", "--json", *arguments)[1])
        return [publication["offset"] for publication in history["publications"]]

    assert offsets() == [1, 2, 3, 4]
    assert offsets("--limit", "2") == [1, 2]
    assert offsets("--limit", "2", "--reverse") == [4, 3]
    assert offsets("--since", "3") == [4]
    assert run("history", "part", "--since", "1", "--epoch", "another")[0] == 1
    assert run("history", "empty") == (0, "Nothing is shown; the top is offset 0.\n", "")


def test_a_key_publishes_once(run: Run) -> None:
    answers = {run("publish", "keyed", "1", "--idempotency-key", "k") for _ in range(2)}
    assert len(answers) == 1
    assert run("publish", "keyed", "1", "--skip-history") == (0, "sent, not stored\n", "")


def test_data_on_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"from": "a file"}\n'))
    assert run("publish", "piped", "-")[0] == 0
    assert '{"from": "a file"}' in run("history", "piped")[1]


def test_a_terminal_is_told_nothing_by_what_was_published(run: Run) -> None:
    assert run("publish", "rude", '"\\u001b[2J\\u009b é\\u2028 \\n"')[0] == 0
    out = run("history", "rude")[1]
    assert '"\\u001b[2J\\u009b é\\u2028 \\n"' in out
    assert out.replace("\n", "").isprintable()


def test_the_key_may_be_configured(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wants = (
        "wants another key (--key, http_api.key or ROOMCAST_HTTP_API_KEY), "
        "or has none itself: its HTTP API is off"
    )
    for key in (None, "", "another"):
        code, out, err = run("publish", "news", "1", key=key)
        assert (code, out) == (1, "")
        assert err.startswith("roomcast: http://127.0.0.1:")
        assert err.endswith(f"{wants}\n")
    config = tmp_path / "roomcast.toml"
    config.write_text(f'[http_api]\nkey = "{KEY}"\n')
    assert run("history", "news", "--config", str(config), key=None)[0] == 0
    monkeypatch.setenv("ROOMCAST_HTTP_API_KEY", KEY)
    assert run("history", "news", key=None)[0] == 0


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("publish", "no:where", "1"), "publish: unknown channel (102)"),
        (("history", "plain:x"), "history: not available: the channel has no history (108)"),
        (
            ("publish", "", "1"),
            "publish: bad request: channel must be 1 to 255 printable ASCII characters (107)",
        ),
        (("publish", "news", "hi"), "what is published must be JSON: a text is written '\"text\"'"),
        (
            ("publish", "news", "NaN"),
            "what is published must be JSON: a text is written '\"text\"'",
        ),
        (
            ("publish", "news", f'"{"x" * 5000}"'),
            "publish: limit exceeded: data is larger than 4096 bytes (106)",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(run: Run, arguments: tuple[str, ...], told: str) -> None:
    assert run(*arguments) == (1, "", f"roomcast: {told}\n")


def test_a_request_that_is_too_large(run: Run, served: Served) -> None:
    code, out, err = run("publish", "news", f'"{"x" * 100_000}"')
    assert (code, out) == (1, "")
    assert err == (
        f"roomcast: {served.url} refuses the request: limit exceeded: the request is larger "
        "than 28672 bytes "
        "(HTTP 413)\n"
    )


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["publish", "news"], "the following arguments are required: JSON"),
        (["history", "news", "--limit", "0"], "--limit: must be a whole number from 1"),
        (["history", "news", "--since", "-1"], "--since: must be an offset, or a time such as 90s"),
        (["tail", "news", "--url", "ftp://here"], "--url: must be an address such as"),
        (["history", "news", "--url", "http://user:pw@here"], "--url: must be an address such as"),
        (["history", "news", "--url", "http://a..b"], "--url: must be an address such as"),
        (["tail", "news", "--url", f"http://{'a' * 70}"], "--url: must be an address such as"),
        (["bench", "ws://a..b"], "URL: must be an address such as"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert cli.main(["publish", "--url", url, "news", "1"]) == 1
    assert capsys.readouterr().err == f"roomcast: {url}: Connection refused\n"


class Stranger(http.server.BaseHTTPRequestHandler):
    """Another server at the address."""

    status, body = 200, b"<html>"

    def do_POST(self) -> None:  # the library's name
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the library's name
        """Not to stderr, which the test reads."""


@pytest.mark.parametrize(
    "status, told",
    [
        (200, "/api/history answers with what is no JSON: is it a roomcast server?"),
        (404, " refuses the request: Not Found (HTTP 404)"),
        (502, " refuses the request: Bad Gateway (HTTP 502)"),
    ],
)
def test_somebody_else_is_there(
    status: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stranger, "status", status)
    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert cli.main(["history", "--url", url, "news"]) == 1
        answering.join()
    assert capsys.readouterr().err == f"roomcast: {url}{told}\n"


@pytest.mark.parametrize("command", [("publish", "news", "1"), ("history", "news")])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_goes_nowhere_else(
    status: int, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with redirecting(status) as (url, elsewhere, heard):
        assert cli.main([*command, "--url", url, "--key", KEY]) == 1
    assert heard == []
    told = f"{url} redirects to {elsewhere}/there: give that address if it is meant"
    assert capsys.readouterr() == ("", f"roomcast: {told}\n")


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """The address of a server that answers everything with `body`, as it is."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            taken, _ = server.accept()
            with taken, suppress(OSError):
                taken.recv(65536)
                taken.sendall(body)
                while body and not body.endswith(b"}") and not ended.wait(0.01):
                    taken.sendall(b" ")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


def whole(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(text.encode())}\r\n\r\n{text}".encode()


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n "])
def test_an_answer_that_goes_on_and_on(
    begun: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_api, "CALL_TIMEOUT_S", 0.2)
    with answering(begun) as url:
        assert cli.main(["history", "news", "--url", url]) == 1
    assert capsys.readouterr() == ("", f"roomcast: {url}: no answer within 0 s\n")


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        "5",
        '{"result": [1]}',
        '{"result": null}',
        '{"error": "no"}',
        '{"error": {"code": 1}}',
        '{"result": {"offset": 1}}',
        '{"result": {"publications": [5], "offset": 1}}',
        '{"result": {"publications": [{"time": 1e300}], "offset": 1}}',
        '{"result": {"publications": [{"info": []}], "offset": 1}}',
    ],
)
def test_answers_that_no_server_of_ours_gives(
    answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("history", "news") if "publications" in answer else ("publish", "news", "1")
    with answering(whole(answer)) as url:
        assert cli.main([*command, "--url", url]) == 1
    told = f"roomcast: {url} answers as no roomcast server does\n"
    assert capsys.readouterr() == ("", told)


@pytest.mark.parametrize("answer", ["[" * 100_000, '{"result": {"offset": NaN}}', "1" * 5000])
def test_what_only_looks_like_json(answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(whole(answer)) as url:
        assert cli.main(["history", "news", "--url", url, "--json"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.partition(" answers ")[2]) == (
        "",
        "with what is no JSON: is it a roomcast server?\n",
    )


@pytest.mark.parametrize("command", [("publish", "news", "1"), ("history", "news")])
@pytest.mark.parametrize("publications", [[], [{"offset": "\x1b[2J\x9b", "data": 1}]])
def test_a_terminal_is_told_nothing_by_the_server(
    command: tuple[str, ...], publications: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"offset": "\x1b[2J\u202e", "epoch": "\x1b[2J", "publications": publications}
    with answering(whole(json.dumps({"result": result}))) as url:
        assert cli.main([*command, "--url", url]) == 0
    out = capsys.readouterr().out
    assert "\\x1b[2J" in out
    assert out.replace("\n", "").isprintable()
