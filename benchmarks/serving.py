"""Processes that benchmarks start and measure: `roomcast serve`, and an AWS for it.

Two kinds of AWS: *kept* is benchmarks/aws_stub.py, which keeps connections, as AWS does. *closed*
is the embedded AWS, which closes each connection after its answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.aws_stub import REGION, TABLE_PREFIX, TOPIC_ARN
from benchmarks.hot_channel import CONFIG
from benchmarks.rig import ROOT
from roomcast.dev.provision import DUMMY_CREDENTIALS, Provisioned, provision

__all__ = [
    "KINDS",
    "WAYS",
    "Cloud",
    "Measured",
    "child",
    "closed",
    "cpu_s",
    "emulator",
    "kept",
    "node",
    "pump",
]

_START_S: Final = 60
_END_S: Final = 30.0
# With a process's id: its clock for `clock_gettime`, which Python has no name for (Linux).
_CPU_OF_PROCESS: Final = 2

# Filled by `str.format`: nothing in the common part is in braces.
_CONFIG: Final = (
    CONFIG
    + """[aws]
endpoint_url = "{endpoint}"
region = "{region}"
table_prefix = "{prefix}"
queue_prefix = "{prefix}"
topic_arn = "{topic_arn}"
{aws}
"""
)
_CHANNELS: Final = "[channel.without_namespace]\n"
_NO_LIMITS: Final = "publish_rate_limit = 0\ncommand_rate_limit = 0\n"
# What is measured: the options of [aws] under a name.
WAYS: Final = {"lean": "lean_calls = true", "SDK": "lean_calls = false"}


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process so far."""
    return time.clock_gettime(~pid << 3 | _CPU_OF_PROCESS)


@dataclass(frozen=True, slots=True)
class Measured:
    """A node's process."""

    pid: int
    port: int

    def cpu_s(self) -> float:
        """User and system time of all its threads so far."""
        return cpu_s(self.pid)


@dataclass(frozen=True, slots=True)
class Cloud:
    """One kind of AWS. `table`: the floor's."""

    kind: str
    endpoint: str
    topic_arn: str
    table: str


@contextmanager
def child(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended at the end, in order if it can."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if "ROOMCAST_" not in name},
            "AWS_ACCESS_KEY_ID": DUMMY_CREDENTIALS.access_key_id,
            "AWS_SECRET_ACCESS_KEY": DUMMY_CREDENTIALS.secret_access_key,
        },
        text=True,
        **options,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def emulator() -> Iterator[str]:
    """The embedded AWS. Yields its endpoint."""
    with _asked("-m", "roomcast.dev.emulator", "--region", REGION) as endpoint:
        yield endpoint


@contextmanager
def pump(endpoint: str, made: Provisioned) -> Iterator[None]:
    """The Lambda of what was made at the embedded AWS."""
    with child(
        *("-m", "roomcast.dev.stream_pump", "--endpoint", endpoint, "--region", REGION),
        *("--stream-arn", made.stream_arn, "--topic-arn", made.topic_arn),
        stdin=subprocess.PIPE,
    ):
        yield


@contextmanager
def _asked(*arguments: str) -> Iterator[str]:
    """An AWS that tells its endpoint, and ends with its standard input."""
    pipe = subprocess.PIPE
    with child(*arguments, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]


@contextmanager
def kept(delay_s: float = 0.0) -> Iterator[Cloud]:
    """The stub, for one node. `delay_s`: of calls of the log's table."""
    with _asked("-m", "benchmarks.aws_stub", str(delay_s)) as endpoint:
        yield Cloud("kept", endpoint, TOPIC_ARN, "floor")


@contextmanager
def closed() -> Iterator[Cloud]:
    """The embedded AWS and its Lambda, for one node."""
    with ExitStack() as stack:
        endpoint = stack.enter_context(emulator())
        for prefix in ("floor-", TABLE_PREFIX):
            made = provision(endpoint, prefix, region=REGION, credentials=DUMMY_CREDENTIALS)
        stack.enter_context(pump(endpoint, made))
        yield Cloud("closed", endpoint, made.topic_arn, "floor-channels")


KINDS: Final = {"kept": kept, "closed": closed}


@contextmanager
def node(
    cloud: Cloud,
    aws: str,
    profile: str | None = None,
    *,
    client: str = "",
    channel: str = "",
    with_limits: bool = False,
) -> Iterator[Measured]:
    """A ready node. Its options beside the names: `aws` of [aws], `client` of [client], and
    `channel` of channels without a namespace. `with_limits`: it has the default rates of clients.
    """
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "bench.toml"
        config.write_text(
            _CONFIG.format(
                endpoint=cloud.endpoint,
                region=REGION,
                prefix=TABLE_PREFIX,
                topic_arn=cloud.topic_arn,
                aws=aws,
            )
            .replace("[client]\n", f"[client]\n{client}\n", 1)
            .replace(_CHANNELS, _CHANNELS + channel)
            .replace(_NO_LIMITS, "" if with_limits else _NO_LIMITS)
        )
        log = Path(directory) / "log"
        profiled = ["-m", "cProfile", "-o", str(Path(profile).absolute())] if profile else []
        with (
            log.open("w") as written,
            child(
                *(*profiled, "-m", "roomcast", "serve", "--port", "0", "--config", str(config)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=written,
            ) as process,
        ):
            yield Measured(process.pid, _port(process, log))


def _port(process: subprocess.Popen[str], log: Path) -> int:
    """Waits until the node is ready. Returns its port."""
    give_up_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < give_up_s:
        for line in log.read_text().splitlines():
            fields = json.loads(line) if line.startswith("{") else {}
            if fields.get("event") == "ready":
                return int(fields["port"])
        time.sleep(0.1)
    raise SystemExit(f"the node did not start: {log.read_text()[-2000:]}")
