"""A server that sends everybody to another one, which keeps what it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

__all__ = ["redirecting"]


@contextmanager
def redirecting(status: int) -> Iterator[tuple[str, str, list[Any]]]:
    """The addresses of both, and the requests of the other one: their paths and headers."""
    heard: list[Any] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            heard.append((self.path, dict(self.headers)))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self) -> None:  # the library's name
            self.do_GET()

        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the library's name
            """Not to stderr, which the test reads."""

    class First(Other):
        def do_GET(self) -> None:  # the library's name
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(status)
            self.send_header("Location", f"{elsewhere}/there")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:  # the library's name
            self.do_GET()

    servers = [HTTPServer(("127.0.0.1", 0), handler) for handler in (First, Other)]
    first, elsewhere = (f"http://127.0.0.1:{each.server_port}" for each in servers)
    threads = [threading.Thread(target=each.serve_forever, args=(0.01,)) for each in servers]
    for each in threads:
        each.start()
    try:
        yield first, elsewhere, heard
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for each in threads:
            each.join()
