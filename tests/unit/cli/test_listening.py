"""service/roomcast/cli/listening.py: whether an instance could listen, and who does if not."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from roomcast.cli import listening
from roomcast.cli.listening import port_finding


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A program that listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


class Handler(http.server.BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[b'{"status":"ok","node":"n1"}', b"[1]", b"a page"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[int, bool]]:
    """The port of something that answers, and whether it is a node."""
    handler = type("Handler", (Handler,), {"body": request.param})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, b"node" in request.param
        server.shutdown()
        thread.join()


def test_a_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert port_finding("127.0.0.1", port).outcome == "ok"


def test_a_port_that_is_taken(taken: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "ANSWER_S", 0.05)
    port = taken.getsockname()[1]
    found = port_finding("127.0.0.1", port)
    assert (found.name, found.outcome) == (f"port {port}", "failed")
    assert "taken by another program" in found.told
    assert f"sport = :{port}" in found.ask


def test_whose_it_is(served: tuple[int, bool]) -> None:
    port, is_node = served
    found = port_finding("127.0.0.1", port)
    assert found.outcome == ("ok" if is_node else "failed")


def test_an_address_of_another_machine() -> None:
    found = port_finding("192.0.2.1", 8000)  # RFC 5737: nobody's
    assert (found.outcome, "ip addr" in found.ask) == ("failed", True)


def test_a_port_that_this_user_may_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("roomcast.serve.entry.bound", refused)
    found = port_finding("127.0.0.1", 80)
    assert (found.outcome, "CAP_NET_BIND_SERVICE" in found.ask) == ("failed", True)
