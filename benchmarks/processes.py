"""Measures what a second process of `roomcast serve --processes` brings.

Two hosts take turns over one embedded AWS, one with one process and one with two, and as many
clients of one channel each, which come through the shared port. All clients are sockets of this
program, which is not measured.

- *CPU of a delivery*: that of all processes of a host, for publications that every client gets,
  less that for as many publications to a channel that nobody reads. With two processes it must not
  be more than 1/0.9 of that with one: then N cores do the work of 0.9 N. Clients do not read
  meanwhile: they have the same cores, and would be between the writes of two processes more often
  than of one.
- *Both at once*: each process fans out to clients of its own, which do not read either. First one
  does, then the other, then both. The CPU of a delivery must not grow by more than that either:
  they share the kernel and the memory. The deliveries a second say little where other programs use
  the cores, and two idle loops, in the same round, are no better off.
- *Share of the fuller of two*: how evenly the kernel divides connections among two sockets.

    python -m benchmarks.processes
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import resource
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.aws_stub import REGION
from benchmarks.figures import Figure
from benchmarks.rig import MARK, PATH, end_in_time, masked
from benchmarks.serving import child, cpu_s, emulator, pump
from benchmarks.suite import tell
from roomcast.dev.provision import DUMMY_CREDENTIALS, provision

__all__ = [
    "CHANNEL",
    "Crowd",
    "Host",
    "Together",
    "delivery_us",
    "emulator",
    "evenness",
    "host",
    "measure",
    "together",
]

# N processes must do the work of so much of N.
EFFICIENCY_MIN: Final = 0.9
PAD: Final = "x" * 200
CHANNEL: Final = "bench"
NOBODYS: Final = "nobody"
# More than 1,000 sockets, and some for AWS.
_DESCRIPTORS: Final = 20_000
_START_S: Final = 60.0
_WAIT_S: Final = 30.0
_RUN_S: Final = 600
# For what comes after a round: receives, deletes.
_SETTLE_S: Final = 0.5
# Between publications, so that none shares its message with another: a few go out in one write.
_PACE_S: Final = 0.1
# CPU s that idle processes have in that time, at most.
_IDLE_CPU_S: Final = 0.02
_SPIN: Final = 3_000_000

_CONFIG: Final = """
[client]
insecure = true
ping_interval_s = 3000
pong_timeout_s = 1000
[channel.without_namespace]
[node]
drain_s = 0
imds_endpoint = ""
[aws]
endpoint_url = "{endpoint}"
region = "{region}"
table_prefix = "{prefix}"
queue_prefix = "{prefix}"
topic_arn = "{topic_arn}"
"""


# ---- clients


class Crowd:
    """Clients of one channel, as sockets."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._looking = selectors.DefaultSelector()

    def __len__(self) -> int:
        return len(self._sockets)

    def come(self, port: int, count: int, channel: str) -> None:
        """Connects and subscribes `count` clients."""
        for _ in range(count):
            self._sockets.append(_client(port, channel))
        for each in self._sockets:
            if each not in self._looking.get_map():
                self._looking.register(each, selectors.EVENT_READ)

    def read(self, publications: int) -> None:
        """Reads until every client has got so many publications more."""
        missing = dict.fromkeys(self._sockets, publications)
        left = len(missing) if publications else 0
        give_up_s = time.monotonic() + _WAIT_S
        while left:
            if time.monotonic() > give_up_s:
                raise SystemExit(f"{left} clients did not get what was published")
            for key, _ in self._looking.select(1.0):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                got = one.recv(1 << 16).count(MARK.encode())
                before, missing[one] = missing[one], missing[one] - got
                left -= before > 0 >= missing[one]

    def leave(self) -> None:
        for each in self._sockets:
            self._looking.unregister(each)
            each.close()
        self._sockets.clear()


def _client(port: int, channel: str) -> socket.socket:
    """One client that is subscribed."""
    one = socket.create_connection(("127.0.0.1", port), _WAIT_S)
    one.sendall(
        f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    subscribe = {"id": 2, "subscribe": {"channel": channel}}
    said = f'{{"id":1,"connect":{{}}}}\n{json.dumps(subscribe)}'.encode()
    one.sendall(masked(said))
    got = b""
    while b'"id":2' not in got:
        more = one.recv(1 << 16)
        if not more:
            raise SystemExit(f"a client was not let in: {got!r}")
        got += more
    one.setblocking(False)
    return one


# ---- hosts


@dataclass(frozen=True, slots=True)
class Host:
    """`roomcast serve`. `port`: the shared one. `pids`: all of its processes."""

    port: int
    own_ports: Sequence[int]
    pids: Sequence[int]

    def cpu_s(self) -> float:
        """Time on cores so far, of all threads of all processes."""
        return sum(cpu_s(pid) for pid in self.pids)

    def publish(self, port: int, channel: str, count: int) -> None:
        """Publishes so often, one after the other."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT_S)
        body = json.dumps({"channel": channel, "data": {"text": MARK + PAD}})
        for _ in range(count):
            connection.request("POST", "/api/publish", body, {"Content-Type": "application/json"})
            answer = connection.getresponse().read()
            if b'"error"' in answer:
                raise SystemExit(f"not published: {answer!r}")
        connection.close()

    def connections(self) -> list[int]:
        """Of each process."""
        found = []
        for port in self.own_ports or [self.port]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT_S)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            connection.close()
            (number,) = re.findall(r"^roomcast_connections ([0-9.]+)$", text, flags=re.MULTILINE)
            found.append(int(float(number)))
        return found


@contextmanager
def host(endpoint: str, processes: int) -> Iterator[Host]:
    """A host that is ready, with a deployment of its own."""
    prefix = f"bench{processes}-"
    made = provision(
        endpoint,
        prefix,
        region=REGION,
        credentials=DUMMY_CREDENTIALS,
        topic_name=f"{prefix}topic",
    )
    with ExitStack() as stack:
        stack.enter_context(pump(endpoint, made))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config, log = directory / "bench.toml", directory / "log"
        config.write_text(
            _CONFIG.format(
                endpoint=endpoint, region=REGION, prefix=prefix, topic_arn=made.topic_arn
            )
        )
        process = stack.enter_context(
            child(
                *("-m", "roomcast", "serve", "--port", "0", "--config", str(config)),
                *("--processes", str(processes)),
                stdin=subprocess.DEVNULL,
                stderr=stack.enter_context(log.open("w")),
            )
        )
        ready, started = _ready(process, log, processes)
        yield Host(
            ready[0]["port"],
            [each["own_port"] for each in ready] if processes > 1 else [],
            [process.pid, *(each["pid"] for each in started)],
        )


def _ready(
    process: subprocess.Popen[str], log: Path, count: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Waits until `count` nodes are ready. Their log lines, and those of their processes."""
    give_up_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < give_up_s:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
        ready = [each for each in lines if each["event"] == "ready"]
        if len(ready) == count:
            return ready, [each for each in lines if each["event"] == "process_started"]
        time.sleep(0.1)
    raise SystemExit(f"the host did not start: {log.read_text()[-2000:]}")


# ---- CPU of a delivery


def delivery_us(one: Host, crowd: Crowd, publications: int) -> float:
    """µs of all processes for a delivery to one client of `crowd`, which has CHANNEL."""
    read_s, unread_s = (_published_s(one, channel, publications) for channel in (CHANNEL, NOBODYS))
    crowd.read(publications)
    return (read_s - unread_s) / publications / len(crowd) * 1e6


def _published_s(one: Host, channel: str, publications: int) -> float:
    """CPU s of all processes for so many publications, each of which is a message by itself."""
    _rest(one)
    before_s = one.cpu_s()
    for _ in range(publications):
        one.publish(one.port, channel, 1)
        time.sleep(_PACE_S)
    _rest(one)
    return one.cpu_s() - before_s


def _rest(one: Host) -> None:
    """Waits until its processes have nothing left to do: what was published comes round, and goes
    to the clients of the other process.
    """
    give_up_s = time.monotonic() + _WAIT_S
    cpu_s, before_s = one.cpu_s(), -_WAIT_S
    while cpu_s - before_s > _IDLE_CPU_S and time.monotonic() < give_up_s:
        time.sleep(_SETTLE_S)
        before_s, cpu_s = cpu_s, one.cpu_s()


# ---- both at once


@dataclass(frozen=True, slots=True)
class Together:
    """Both processes at once, in units of one alone: `cpu` of a delivery, deliveries a second."""

    cpu: float
    per_s: float


def together(two: Host, crowds: Sequence[Crowd], publications: int) -> Together:
    """Each process fans out to its own of `crowds`, which are equal."""
    took_s, cpu_s = [], []
    for indices in ([0], [1], [0, 1]):
        before_s = two.cpu_s()
        took_s.append(_fan_out(two, indices, publications))
        cpu_s.append(two.cpu_s() - before_s)
        for index in indices:
            crowds[index].read(publications)
    return Together(cpu=cpu_s[2] / (cpu_s[0] + cpu_s[1]), per_s=(took_s[0] + took_s[1]) / took_s[2])


def _fan_out(two: Host, indices: Sequence[int], publications: int) -> float:
    """Seconds until each of the processes has written `publications` to clients of its own."""
    work = [
        threading.Thread(
            target=two.publish, args=(two.own_ports[index], f"{CHANNEL}-{index}", publications)
        )
        for index in indices
    ]
    started_s = time.monotonic()
    for each in work:
        each.start()
    for each in work:
        each.join()
    return time.monotonic() - started_s


def _spin(_index: int) -> float:
    started_s = time.monotonic()
    for _ in range(_SPIN):
        pass
    return time.monotonic() - started_s


def spin_speedup(pool: Any) -> float:
    """The same of two loops: what the machine has to give at the moment."""
    alone_s: float = statistics.mean(pool.map(_spin, [index])[0] for index in range(2))
    started_s = time.monotonic()
    pool.map(_spin, range(2), 1)
    return 2 * alone_s / (time.monotonic() - started_s)


# ---- how evenly


def evenness(connections: int) -> float:
    """The share of the fuller of two sockets that share a port, of so many connections."""
    with ExitStack() as stack:
        listeners, port = [], 0
        for _ in range(2):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(128)
            listener.setblocking(False)
            port = listener.getsockname()[1]
            listeners.append(listener)
        counts = [0, 0]
        # Kept open, so that each has another port.
        kept = ExitStack()
        stack.push(kept)
        for number in range(connections):
            client = kept.enter_context(socket.create_connection(("127.0.0.1", port)))
            # No TIME_WAIT.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if number % 64 == 63 or number == connections - 1:
                for index, listener in enumerate(listeners):
                    counts[index] += _accepted(listener)
        return max(counts) / connections


def _accepted(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


# ---- all of it


def _over(values: Sequence[float], floors: Sequence[float]) -> float:
    """The median of `floors`, times that of what each value is of the floor of its own round."""
    ratios = [value / floor for value, floor in zip(values, floors, strict=True)]
    return statistics.median(ratios) * statistics.median(floors)


def measure(short: bool) -> list[Figure]:
    """All figures. `short`: fewer clients, publications and rounds."""
    clients, publications, rounds = (500, 10, 2) if short else (4_000, 15, 9)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(_DESCRIPTORS, hard)), hard))
    costs: dict[int, list[float]] = {1: [], 2: []}
    both: list[Together] = []
    floor: list[float] = []
    with ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(2))
        pool.map(_spin, range(2), 1)
        endpoint = stack.enter_context(emulator())
        hosts = {number: stack.enter_context(host(endpoint, number)) for number in costs}
        crowds = {number: Crowd() for number in costs}
        for number, crowd in crowds.items():
            stack.callback(crowd.leave)
            crowd.come(hosts[number].port, clients, CHANNEL)
        shares = hosts[2].connections()
        for index in range(rounds):
            for number in (1, 2) if index % 2 else (2, 1):
                costs[number].append(delivery_us(hosts[number], crowds[number], publications))
            sys.stderr.write(f"round {index + 1}: {costs[1][-1]:.2f} and {costs[2][-1]:.2f} µs\n")
        own = [Crowd(), Crowd()]
        for index, crowd in enumerate(own):
            stack.callback(crowd.leave)
            crowd.come(hosts[2].own_ports[index], clients // 2, f"{CHANNEL}-{index}")
        for _ in range(rounds):
            floor.append(spin_speedup(pool))
            both.append(together(hosts[2], own, 2 * publications))
            sys.stderr.write(f"loops {floor[-1]:.2f}, {both[-1]}\n")
    figures = [
        Figure(
            f"CPU of a delivery with 2 processes, {clients:,} subscribers, {min(shares):,} and "
            f"{max(shares):,}",
            _over(costs[2], costs[1]),
            statistics.median(costs[1]),
            "µs",
            "1 process",
            bound=1 / EFFICIENCY_MIN,
            rounds=rounds,
        ),
        Figure(
            "CPU of a delivery while 2 processes fan out at once",
            statistics.median(each.cpu for each in both),
            1.0,
            "×",
            "one alone",
            bound=1 / EFFICIENCY_MIN,
            rounds=rounds,
        ),
        Figure(
            "deliveries/s of 2 processes at once, in units of one alone",
            _over([each.per_s for each in both], floor),
            statistics.median(floor),
            "×",
            "two loops",
            higher_is_better=True,
            rounds=rounds,
        ),
    ]
    for connections in (100, 1_000) if short else (100, 1_000, 10_000):
        found = [evenness(connections) for _ in range(3 * rounds)]
        figures.append(
            Figure(
                f"share of the fuller of 2 processes, {connections:,} connections",
                statistics.median(found),
                0.5,
                "of all",
                "half",
                rounds=len(found),
            )
        )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures. Returns 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended from outside"))
    end_in_time(_RUN_S)
    figures = measure(options.short)
    tell(figures, as_rows=options.json)
    return 0 if all(each.met for each in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
