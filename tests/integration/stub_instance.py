"""Stands in for `roomcast serve` where the supervisor is tested:
answers the readiness probe, and ends as told.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType
from urllib.parse import urlsplit


class Ready(BaseHTTPRequestHandler):
    """Every path is the readiness probe."""

    def do_GET(self) -> None:
        port = self.headers["Host"].rpartition(":")[2]
        body = f'{{"status":"ok","node":"stub-{port}"}}'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


def on_sigterm(_number: int, _frame: FrameType | None) -> None:
    """An orderly end needs AWS, for instance to delete the queue."""
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    with socket.create_connection((endpoint.hostname or "", endpoint.port or 0), timeout=5):
        sys.stderr.write("stub: ended while AWS answered\n")
    sys.stderr.flush()
    os._exit(0)


def end_with_stdin() -> None:
    while os.read(0, 100):
        pass
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("host", "port", "processes", "peers", "config", "log-level"):
        parser.add_argument(f"--{option}")
    for switch in ("demo", "exit-on-stdin-close", "stub-fails", "stub-ignores-sigterm"):
        parser.add_argument(f"--{switch}", action="store_true")
    options = parser.parse_args()
    if options.stub_fails:
        sys.exit(3)
    assert options.demo
    assert options.exit_on_stdin_close
    assert options.processes == "1"
    assert f":{options.port}" in options.peers
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.stub_ignores_sigterm else on_sigterm)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    HTTPServer((options.host, int(options.port)), Ready).serve_forever()


if __name__ == "__main__":
    main()
