"""Export and replay as processes that are killed, against a real node over the embedded AWS."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from roomcast.cli.server_api import batch
from tests.contract.backends import ROOT
from tests.integration.serving import deployed, environment, serving

# Few publications an answer, so that an export takes many.
CONFIG: Final = """
[client]
insecure = true
history_max_publication_limit = 5
[channel.without_namespace]
history_size = 10000
history_ttl = "48h"
[node]
drain_s = 0
"""
COUNT: Final = 300
A_BATCH: Final = 100
DEADLINE_S: Final = 60.0


def roomcast(url: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "roomcast", *arguments, "--url", url, "--key", "any"],
        cwd=ROOT,
        env=environment(),
        text=True,
        **options,
    )


def done(process: subprocess.Popen[str]) -> str:
    """What it printed, when it ended well."""
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return out


def killed_once(process: subprocess.Popen[str], is_due: Callable[[], bool]) -> None:
    """Killed in the middle of its work."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_due():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode < 0, "it had ended before"


@pytest.mark.timeout(180)
def test_what_is_killed_goes_on_and_nothing_is_twice(tmp_path: Path) -> None:
    path = tmp_path / "news.jsonl"
    with (
        deployed(tmp_path, "export-") as aws,
        serving(aws.config("node", CONFIG)) as node,
    ):
        node.ready()
        api = argparse.Namespace(url=node.url, key="any", config=None)
        for first in range(1, COUNT, A_BATCH):
            numbers = range(first, first + A_BATCH)
            publications = [
                {"publish": {"channel": "news", "data": n, "tags": {"n": str(n)}}} for n in numbers
            ]
            replies = batch(api, publications, stop_at_error=True)
            assert all("publish" in reply for reply in replies)

        export = ("export", "news", "--output", str(path), "--resume")
        killed_once(roomcast(node.url, *export), lambda: path.exists() and path.stat().st_size > 0)
        assert 0 < path.read_bytes().count(b"\n") < COUNT
        with path.open("ab") as file:
            file.write(b'{"channel":"news","epo')
        done(roomcast(node.url, *export))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(line["offset"], line["data"]) for line in lines] == [
            (n, n) for n in range(1, COUNT + 1)
        ]
        # By time: what was appended since then is a run that ends at the top.
        middle_ms = lines[COUNT // 2]["time"]
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(middle_ms / 1000))}"
        whole = done(
            roomcast(
                node.url,
                *("export", "news", "--since", f"{at}.{middle_ms % 1000:03d}Z"),
                stdout=subprocess.PIPE,
            )
        )
        offsets = [json.loads(line)["offset"] for line in whole.splitlines()]
        assert offsets == list(range(offsets[0], COUNT + 1))
        assert 1 < offsets[0] <= COUNT // 2 + 1

        replay = ("replay", str(path), "again")
        killed_once(
            roomcast(node.url, *replay, "--rate", "100"), lambda: len(aws.log("again")) > 50
        )
        for _ in range(2):
            done(roomcast(node.url, *replay, stdout=subprocess.PIPE))
        assert [data for _, _, data in aws.log("again")] == list(range(1, COUNT + 1))

        # The same through a pipe, from a channel that is a replay itself.
        source = roomcast(node.url, "export", "again", stdout=subprocess.PIPE)
        target = roomcast(node.url, "replay", "-", "third", stdin=source.stdout)
        done(target)
        done(source)
        assert [data for _, _, data in aws.log("third")] == list(range(1, COUNT + 1))
