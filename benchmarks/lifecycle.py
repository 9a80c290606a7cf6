"""Measures the start and the stop of `roomcast serve`, a process against the embedded AWS.

It measures from the start of the process until it is ready, and from SIGTERM until it has ended.
This is done without clients and with a thousand. `node.drain_s` is 0, so that the node's configured
waits are not measured.

    python -m benchmarks.lifecycle
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.rig import CLIENTS, ROOT, end_in_time, make_room, say
from benchmarks.rig import Process as Helper
from roomcast.dev.provision import DUMMY_CREDENTIALS, provision

__all__: list[str] = []

ROUNDS: Final = 4
REGION: Final = "eu-west-1"
_PREFIX: Final = "bench-"
_END_S: Final = 30.0


@contextmanager
def deployment(directory: Path) -> Iterator[Path]:
    """An embedded AWS with tables and topic, and a node's configuration file."""
    emulator = subprocess.Popen(
        [sys.executable, "-m", "roomcast.dev.emulator", "--region", REGION],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert emulator.stdout is not None
        endpoint = json.loads(emulator.stdout.readline())["endpoint"]
        made = provision(endpoint, _PREFIX, region=REGION, credentials=DUMMY_CREDENTIALS)
        config = directory / "bench.toml"
        config.write_text(
            f"""
[client]
insecure = true
[node]
drain_s = 0
imds_endpoint = ""
[aws]
endpoint_url = "{endpoint}"
region = "{REGION}"
table_prefix = "{_PREFIX}"
queue_prefix = "{_PREFIX}"
topic_arn = "{made.topic_arn}"
"""
        )
        yield config
    finally:
        emulator.kill()
        emulator.communicate()


def measured(config: Path, clients: int) -> tuple[float, float]:
    """Seconds from the start to ready, and from SIGTERM to the end with `clients` connected."""
    began_s = time.monotonic()
    node = subprocess.Popen(
        [sys.executable, "-m", "roomcast", "serve", "--port", "0", "--config", str(config)],
        cwd=ROOT,
        env={
            "AWS_ACCESS_KEY_ID": DUMMY_CREDENTIALS.access_key_id,
            "AWS_SECRET_ACCESS_KEY": DUMMY_CREDENTIALS.secret_access_key,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert node.stderr is not None
    reading = threading.Thread(target=node.stderr.read, daemon=True)
    crowd: Helper | None = None
    try:
        port = _ready(node)
        start_s = time.monotonic() - began_s
        # The node logs every client: a full pipe would block it.
        reading.start()
        if clients:
            crowd = Helper("benchmarks.crowd", port, 1)
            crowd.ask("come", clients=clients)
            crowd.begin("leave")
        ended_s = time.monotonic()
        node.terminate()
        node.wait(_END_S)
        end_s = time.monotonic() - ended_s
        if node.returncode != 0:
            raise SystemExit(f"the node ended with {node.returncode}")
        if crowd is not None and (left := crowd.answer())["closed"] != clients:
            raise SystemExit(f"not everybody was told to go elsewhere: {left}")
        return start_s, end_s
    finally:
        node.kill()
        node.wait()
        if reading.ident is not None:
            reading.join()
        node.stderr.close()
        if crowd is not None:
            crowd.end()


def _ready(node: subprocess.Popen[str]) -> int:
    """Waits until the node is ready. Returns its port."""
    assert node.stderr is not None
    for line in node.stderr:
        fields: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if fields.get("event") == "ready":
            return int(fields["port"])
    raise SystemExit("the node did not start")


def main() -> None:
    """Prints seconds."""
    end_in_time()
    make_room()
    starts: list[float] = []
    ends: dict[int, list[float]] = {0: [], CLIENTS: []}
    with tempfile.TemporaryDirectory() as directory, deployment(Path(directory)) as config:
        for _ in range(ROUNDS):
            for clients, times in ends.items():
                start_s, end_s = measured(config, clients)
                starts.append(start_s)
                times.append(end_s)
    say("start to ready", starts, " s")
    for clients, times in ends.items():
        say(f"SIGTERM to the end, {clients} clients", times, " s")


if __name__ == "__main__":
    main()
