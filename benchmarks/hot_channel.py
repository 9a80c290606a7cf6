"""Compares one channel's throughput and fairness from several instances with those from one.

It uses `roomcast dev` as its users have it: an embedded AWS, a stream pump and four instances, each
a process. Publishers are WebSocket clients that publish again once they are answered. Layouts take
turns on the same four instances, each time in a new channel. So ratios are meaningful, while
absolute figures depend on the machine.

    python -m benchmarks.hot_channel --rounds 3 --seconds 10

Exits with 1 and a reason if a bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.rig import PATH, ROOT, end_in_time, percentile

__all__: list[str] = []

ROUNDS: Final = 3
SECONDS: Final = 10.0
ROUNDS_MAX: Final = 20
SECONDS_MAX: Final = 60.0
# The time for one answer: longer than an instance takes (docs/guarantees.md).
ANSWER_S: Final = 70.0
CONNECT_S: Final = 20.0
# A refused publisher does not repeat at once. Otherwise the benchmark would measure refusals.
PAUSE_S: Final = 0.05
NO_ANSWER: Final = "no answer"
# For starting and ending the fleet, and for the time of a run beside its seconds.
_FLEET_S: Final = 120
_RUN_SLACK_S: Final = 30
_STOP_S: Final = 60.0
_PAYLOAD: Final = {"text": "x" * 200}

CONFIG: Final = """
[client]
insecure = true
publish_rate_limit = 0
command_rate_limit = 0
[channel.without_namespace]
history_size = 100
history_ttl = "300s"
[node]
drain_s = 0
imds_endpoint = ""
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """A number of instances, and the publishers of each."""

    instances: int
    publishers: int

    def __str__(self) -> str:
        return f"{self.instances} x {self.publishers}"


ALONE: Final = Layout(1, 30)
THREE: Final = Layout(3, 10)
FOUR: Final = Layout(4, 25)
PAIR: Final = Layout(2, 1)
LAYOUTS: Final = (ALONE, THREE, FOUR, PAIR)

ACK_P99_MS_MAX: Final = 600.0
# The poorest instance's acknowledgements, relative to the instances' mean.
EVENNESS_MIN: Final = {THREE: 0.85, FOUR: 0.85, PAIR: 0.9}
# Relative to the acknowledgements of ALONE. The emulator takes some twenty appends a second from
# any writers. An append of ten publishers holds a third of one of thirty.
TOTAL_MIN: Final = {THREE: 0.25, FOUR: 0.55}


@dataclass(slots=True)
class Run:
    """One layout for some seconds. Only publications that were answered within them count as
    acknowledged.
    """

    acknowledged: list[int]
    seconds: float
    acks_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def per_s(self) -> float:
        return sum(self.acknowledged) / self.seconds

    @property
    def evenness(self) -> float:
        """The poorest instance divided by the mean of all. 0 if nothing was acknowledged."""
        total = sum(self.acknowledged)
        return min(self.acknowledged) * len(self.acknowledged) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """All runs of a layout. Rates and ratios are medians over the runs. Times and errors are of all
    runs together.
    """

    layout: Layout
    per_s: float
    acknowledged: list[int]
    evenness: float
    # Relative to ALONE in the same round.
    total: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: dict[str, int]


# ---- the fleet


@contextmanager
def fleet(instances: int) -> Iterator[list[str]]:
    """The addresses of `instances` ready servers. All processes are ended at the end."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "hot.toml"
        config.write_text(CONFIG)
        dev = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "roomcast",
                    "dev",
                    "--instances",
                    str(instances),
                    "--port",
                    "0",
                ),
                *("--config", str(config), "--log-level", "error"),
            ],
            cwd=ROOT,
            env={
                name: value
                for name, value in os.environ.items()
                if not name.startswith("ROOMCAST_")
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for this process, which ends the others in order.
            start_new_session=True,
        )
        try:
            assert dev.stdout is not None
            line = dev.stdout.readline()
            if not line:
                raise SystemExit("the instances did not start; what they said is above")
            yield [str(instance["url"]) for instance in json.loads(line)["instances"]]
        finally:
            dev.terminate()
            try:
                dev.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                # Its children hold pipes that end with it.
                dev.kill()
            dev.communicate()


# ---- the publishers


class Publisher:
    """One client, which publishes one publication after the other."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._id = 0

    async def ask(self, method: str, request: object) -> str | None:
        """None = success. Otherwise the error's code."""
        self._id += 1
        await self._socket.send_str(json.dumps({"id": self._id, method: request}))
        while True:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise SystemExit(f"an instance closed a connection: {self._socket.close_code}")
            for line in message.data.split("\n"):
                if line == "{}":
                    await self._socket.send_str("{}")
                elif (reply := json.loads(line)).get("id") == self._id:
                    return str(reply["error"]["code"]) if "error" in reply else None

    async def publish(self, channel: str, run: Run, instance: int, end_s: float) -> None:
        """Publishes repeatedly until `end_s` (monotonic), or until an answer does not come."""
        while (asked_s := time.monotonic()) < end_s:
            try:
                async with asyncio.timeout(ANSWER_S):
                    error = await self.ask("publish", {"channel": channel, "data": _PAYLOAD})
            except TimeoutError:
                run.errors[NO_ANSWER] += 1
                return
            answered_s = time.monotonic()
            if error is not None:
                run.errors[error] += 1
                await asyncio.sleep(PAUSE_S)
                continue
            run.acks_ms.append((answered_s - asked_s) * 1000)
            run.acknowledged[instance] += answered_s < end_s


async def measured(urls: Sequence[str], layout: Layout, seconds: float) -> Run:
    """Publishes for `seconds` in a new channel, from the instances of `layout`."""
    channel = f"hot-{secrets.token_hex(8)}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def come(url: str) -> Publisher:
            async with asyncio.timeout(CONNECT_S):
                publisher = Publisher(await session.ws_connect(url + PATH))
                if (error := await publisher.ask("connect", {})) is not None:
                    raise SystemExit(f"an instance refused a connection: {error}")
            return publisher

        places = [
            instance for instance in range(layout.instances) for _ in range(layout.publishers)
        ]
        publishers = await asyncio.gather(*(come(urls[instance]) for instance in places))
        run = Run([0] * layout.instances, seconds)
        end_s = time.monotonic() + seconds
        await asyncio.gather(
            *(
                publisher.publish(channel, run, instance, end_s)
                for publisher, instance in zip(publishers, places, strict=True)
            )
        )
    return run


# ---- results


def result(layout: Layout, runs: Sequence[Run], alone: Sequence[Run]) -> Result:
    """The result of all `runs` of `layout`. `alone`: the runs of ALONE, round by round."""
    acks_ms = [ack_ms for run in runs for ack_ms in run.acks_ms] or [float("inf")]
    return Result(
        layout,
        per_s=statistics.median(run.per_s for run in runs),
        acknowledged=[
            sum(of_one) for of_one in zip(*(run.acknowledged for run in runs), strict=True)
        ],
        evenness=statistics.median(run.evenness for run in runs),
        total=statistics.median(
            run.per_s / one.per_s if one.per_s else 0.0
            for run, one in zip(runs, alone, strict=True)
        ),
        p50_ms=percentile(acks_ms, 0.5),
        p99_ms=percentile(acks_ms, 0.99),
        max_ms=max(acks_ms),
        errors=dict(sum((run.errors for run in runs), Counter[str]())),
    )


def missed(results: Sequence[Result]) -> list[str]:
    """The missed bounds, one a line."""
    reasons = []
    for each in results:
        least_even, least = EVENNESS_MIN.get(each.layout, 0.0), TOTAL_MIN.get(each.layout, 0.0)
        if each.errors:
            reasons.append(f"{each.layout}: errors: {each.errors}")
        if each.p99_ms > ACK_P99_MS_MAX:
            reasons.append(
                f"{each.layout}: ack p99 {each.p99_ms:.0f} ms, more than {ACK_P99_MS_MAX:.0f}"
            )
        if each.evenness < least_even:
            reasons.append(
                f"{each.layout}: poorest ÷ mean {each.evenness:.2f}, less than {least_even}"
            )
        if each.total < least:
            reasons.append(
                f"{each.layout}: total ÷ one instance's {each.total:.2f}, less than {least}"
            )
    return reasons


def table(results: Sequence[Result]) -> str:
    """One line for each layout."""
    head = f"{'instances x publishers':<24}{'acked/s':>9}{'÷ alone':>9}{'poorest ÷ mean':>16}"
    lines = [f"{head}{'ack p50':>9}{'p99':>8}{'max, ms':>9}   each instance's; errors by code"]
    for each in results:
        shares = " : ".join(map(str, each.acknowledged))
        errors = (
            ", ".join(f"{code}: {count}" for code, count in sorted(each.errors.items())) or "none"
        )
        lines.append(
            f"{each.layout!s:<24}{each.per_s:>9.0f}{each.total:>9.2f}{each.evenness:>16.2f}"
            f"{each.p50_ms:>9.0f}{each.p99_ms:>8.0f}{each.max_ms:>9.0f}   {shares}; {errors}"
        )
    return "\n".join(lines) + "\n"


def as_json(results: Sequence[Result], reasons: Sequence[str]) -> dict[str, Any]:
    return {
        "layouts": [
            {
                "instances": each.layout.instances,
                "publishers": each.layout.publishers,
                "acknowledged_per_s": round(each.per_s, 1),
                "total_to_alone": round(each.total, 3),
                "acknowledged": each.acknowledged,
                "poorest_to_mean": round(each.evenness, 3),
                "ack_p50_ms": round(each.p50_ms, 1),
                "ack_p99_ms": round(each.p99_ms, 1),
                "ack_max_ms": round(each.max_ms, 1),
                "errors": each.errors,
            }
            for each in results
        ],
        "missed": list(reasons),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_channel", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"of each layout, 1 to {ROUNDS_MAX}"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"of one run, 1 to {SECONDS_MAX:.0f}; default %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument(
        "--no-check", action="store_true", help="print only: no bound fails the run"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.rounds <= ROUNDS_MAX or not 1 <= options.seconds <= SECONDS_MAX:
        parser.error(f"--rounds is 1 to {ROUNDS_MAX}, --seconds 1 to {SECONDS_MAX:.0f}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the results. Returns 1 if a bound is missed."""
    options = _options(arguments)
    # SIGTERM must end all started processes too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended from outside"))
    end_in_time(_FLEET_S + round(options.rounds * len(LAYOUTS) * (options.seconds + _RUN_SLACK_S)))
    runs: dict[Layout, list[Run]] = {layout: [] for layout in LAYOUTS}
    with fleet(max(layout.instances for layout in LAYOUTS)) as urls:
        for number in range(options.rounds):
            # Every other round runs in reverse order, so that effects that grow with time affect
            # all alike.
            for layout in LAYOUTS[:: -1 if number % 2 else 1]:
                run = asyncio.run(measured(urls, layout, options.seconds))
                runs[layout].append(run)
                sys.stderr.write(
                    f"round {number + 1} of {options.rounds}, {layout}: {run.per_s:.0f} "
                    "acknowledged/s, "
                    f"{sum(run.errors.values())} errors\n"
                )
    results = [result(layout, runs[layout], runs[ALONE]) for layout in LAYOUTS]
    reasons = missed(results)
    if options.json:
        sys.stdout.write(json.dumps(as_json(results, reasons), indent=2) + "\n")
    else:
        sys.stdout.write(table(results))
    if options.no_check:
        return 0
    for reason in reasons:
        sys.stderr.write(f"missed: {reason}\n")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
