"""`roomcast bench` as a process against `roomcast dev`: across two instances, in a terminal,
interrupted, refused.
"""

from __future__ import annotations

import codecs
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.acceptance.roomcast import ROOT, Dev, environment, roomcast

SMALL: Final = ("--clients", "20", "--channels", "5", "--duration", "2", "--ramp", "100")
# From the start of the command until it is over, beside much else.
END_S: Final = 40.0
SECRET: Final = "of-the-acceptance-tests-and-nobody-else"


def test_across_two_instances(dev: Dev) -> None:
    done = roomcast("bench", *dev.urls, *SMALL, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["connections"]["connected"] == 20
    assert found["publications"]["acknowledged"] == found["publications"]["sent"] > 0
    deliveries = found["deliveries"]
    assert deliveries["received"] == deliveries["expected"] == 4 * found["publications"]["sent"]
    # Two of each channel's four clients are on the publisher's instance.
    same, other = (found[f"delivered_{where}_address_ms"] for where in ("same", "other"))
    assert same["count"] == other["count"] == deliveries["received"] / 2
    assert same["p50"] < other["p50"], "the way through the pipeline is longer"


def test_for_people(dev: Dev) -> None:
    done = roomcast("bench", *dev.ws_urls, *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 of 20 clients connected to 2 URLs in" in done.stdout
    assert "0 lost, 0 repeated, 0 out of order" in done.stdout
    assert "at another address" in done.stdout


def test_a_channel_without_the_permission_to_publish(secured: Dev) -> None:
    loaded = ("bench", *secured.urls, *SMALL, "--namespace", "news")
    done = roomcast(*loaded)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "roomcast: publish: permission denied (103); set allow_publish_for_subscriber or "
    )
    assert done.stderr.count("\n") == 1
    done = roomcast(*loaded, "--secret", SECRET, "--grant")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_address(dev: Dev) -> None:
    done = roomcast("bench", f"{dev.urls[0]}/elsewhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "HTTP 404; nothing is at this path" in done.stderr


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process, self._descriptor = process, descriptor
        self.shown = ""
        # A read may end within a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def until(self, text: str) -> None:
        """Until `text` was shown."""
        give_up_s = time.monotonic() + END_S
        while text not in self.shown:
            assert time.monotonic() < give_up_s, self.shown
            assert self._read(), self.shown

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> int:
        """Everything is shown; the exit code."""
        while self._read():
            pass
        return self._process.wait(END_S)

    def _read(self) -> bool:
        readable, _, _ = select.select([self._descriptor], [], [], END_S)
        assert readable, self.shown
        try:
            part = os.read(self._descriptor, 65_536)
        except OSError:  # Linux: all other ends of it are closed
            return False
        self.shown += self._decoder.decode(part)
        return bool(part)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    variables: dict[str, Any] = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "NO_COLOR": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "roomcast", *arguments],
        cwd=ROOT,
        env=environment() | variables,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


def test_ctrl_c_in_a_terminal(dev: Dev) -> None:
    with terminal("bench", *dev.urls, "--clients", "20", "--duration", "60") as shown:
        shown.until("0 published, ")
        shown.until("0 delivered ")
        shown.interrupt()
        assert shown.ended() == 0
    progress, _, text = shown.shown.rpartition("\r\x1b[K")
    assert " of 20 clients connected" in progress
    assert "█" in progress
    assert "interrupted while publishing" in text
    assert "\x1b[32m0 lost\x1b[0m" in text
    assert "\x1b[1mdelivered after … ms\x1b[0m" in text
    assert "Traceback" not in text
