"""Servers that send the same publications to as many clients, and the CPU that each spends on them.

Each contestant is a process on one core and has a crowd of its own on the other. They take turns.
CPU is what the scheduler counted for all threads of the process, user and system, in ns. What a
contestant needs beside its process (AWS, Redis, clients) is not counted, for none of them.

Publications have 200 bytes of payload. What each server wraps around them is its own matter; the
floor sends the bytes that roomcast sends.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks import serving
from benchmarks.figures import Skipped
from benchmarks.rig import CHANNEL, MARK, NO_PING_S, Process
from roomcast.gateway.writer import text_frame
from roomcast.wire.encoding import publication_push, sent_of
from roomcast.wire.publication import Publication

__all__ = [
    "DELIVERIES",
    "DELIVERIES_SHORT",
    "Contestant",
    "Line",
    "Lost",
    "Serve",
    "c_loop",
    "compiled",
    "contest",
    "medians",
    "on_core",
    "pad",
    "payload",
    "serve",
    "widen",
]

SERVER_CORE: Final = 0
CLIENT_CORE: Final = 1
# Before anything is bound to one of them.
_CORES: Final = sorted(os.sched_getaffinity(0))
FLOOR: Final = Path(__file__).with_name("floor.c")
_COMPILE_S: Final = 60
PAYLOAD_BYTES: Final = 200
# In a round of one contestant: enough for a figure, and few enough to take turns often.
DELIVERIES: Final = 20_000
DELIVERIES_SHORT: Final = 10_000
# A channel that has no subscriber.
NOBODY: Final = "nobody"
# What a publication leaves behind comes round within this time: the stand-in for Lambda has a
# quarter of a second.
SERVE_SETTLE_S: Final = 0.6
SETTLE_S: Final = 0.05
# How often clients look for what has arrived. In production they are no processes of the same
# machine, and no server pays for waking them.
NAP_S: Final = 0.005
_HTTP_S: Final = 30.0


def pad(size: int = PAYLOAD_BYTES) -> str:
    """A text that makes `payload` as long as `size` says, with the crowd's mark."""
    return MARK + "x" * (size - len(MARK) - len('{"text":""}'))


def payload() -> str:
    """The JSON of one publication's data."""
    return json.dumps({"text": pad()}, separators=(",", ":"))


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started here runs on that core, if there are several, with all its threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_CORES[core % len(_CORES)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Lost(Exception):
    """Not everybody got everything in time. One line."""


class Contestant(ABC):
    """One server, with its crowd."""

    def __init__(self, pid: int, port: int, dialect: str, clients: int) -> None:
        self.pid = pid
        self.clients = clients
        self._crowd = Process("benchmarks.crowd", port, CLIENT_CORE, dialect)
        try:
            self._crowd.ask("come", clients=clients)
        except BaseException:
            self._crowd.end()
            raise

    @abstractmethod
    def send(self, count: int) -> None:
        """Sends `count` publications to all clients, one by one."""

    def delivery_us(self, count: int) -> float:
        """CPU µs of a delivery, of `count` publications."""
        return self._sent_s(count, SETTLE_S) / count / self.clients * 1e6

    def end(self) -> None:
        self._crowd.end()

    def _sent_s(self, count: int, settle_s: float) -> float:
        """CPU s of `count` publications that reach everybody."""
        before_s = serving.cpu_s(self.pid)
        self._crowd.begin("read", publications=count, nap_s=NAP_S)
        self.send(count)
        missing = self._crowd.answer()["missing"]
        if missing:
            raise Lost(f"{missing} of {self.clients} clients did not get everything in time")
        time.sleep(settle_s)
        return serving.cpu_s(self.pid) - before_s


class Line(Contestant):
    """A server that obeys lines of JSON: see benchmarks/peers/control.py."""

    def __init__(self, process: subprocess.Popen[str], dialect: str, clients: int) -> None:
        self._process = process
        super().__init__(process.pid, self._answer()["port"], dialect, clients)
        self._ask(do="subscribed", count=clients)

    def send(self, count: int) -> None:
        self._ask(do="broadcast", count=count, text=payload())

    def _ask(self, **asked: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a peer ended by itself: {self._process.args!r}")
        answer: dict[str, int] = json.loads(line)
        return answer


class _CLoop(Contestant):
    """benchmarks/floor.c, with the frame that roomcast sends."""

    def __init__(self, process: subprocess.Popen[bytes], clients: int) -> None:
        self._process = process
        publication = Publication(json.loads(payload()), offset=1000)
        self._frame = text_frame(publication_push(CHANNEL, sent_of(publication, 0).line))
        super().__init__(process.pid, int(self._answer()), "tcp", clients)
        self._ask(b"clients %d\n" % clients)

    def send(self, count: int) -> None:
        self._ask(b"send %d %d\n%s" % (count, len(self._frame), self._frame))

    def _ask(self, asked: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(asked)
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the floor ended by itself")
        return line


class Serve(Contestant):
    """`roomcast serve`, published to over its HTTP API.

    A delivery is what a publication to the channel costs beyond one to a channel that nobody reads.
    """

    def __init__(self, node: serving.Measured, clients: int) -> None:
        super().__init__(node.pid, node.port, "roomcast", clients)
        self._api = http.client.HTTPConnection("127.0.0.1", node.port, timeout=_HTTP_S)
        self._bodies = {
            channel: f'{{"channel":"{channel}","data":{payload()}}}'
            for channel in (CHANNEL, NOBODY)
        }
        # The first publication looks for the end of the log.
        self._publish(NOBODY, 1)

    def send(self, count: int) -> None:
        self._publish(CHANNEL, count)

    def delivery_us(self, count: int) -> float:
        read_s = self._sent_s(count, SERVE_SETTLE_S)
        before_s = serving.cpu_s(self.pid)
        self._publish(NOBODY, count)
        time.sleep(SERVE_SETTLE_S)
        unread_s = serving.cpu_s(self.pid) - before_s
        return (read_s - unread_s) / count / self.clients * 1e6

    def end(self) -> None:
        self._api.close()
        super().end()

    def _publish(self, channel: str, count: int) -> None:
        for _ in range(count):
            # The connection may have been idle for longer than the server keeps it.
            try:
                answer = self._asked(channel)
            except (http.client.RemoteDisconnected, ConnectionError):
                self._api.close()
                answer = self._asked(channel)
            if "result" not in answer:
                raise SystemExit(f"the node refused a publication: {answer}")

    def _asked(self, channel: str) -> dict[str, object]:
        self._api.request(
            "POST",
            "/api/publish",
            body=self._bodies[channel],
            headers={"Content-Type": "application/json", "X-API-Key": "any"},
        )
        answer: dict[str, object] = json.loads(self._api.getresponse().read())
        return answer


@contextmanager
def serve(clients: int) -> Iterator[Contestant]:
    """`roomcast serve` over benchmarks/aws_stub.py."""
    widen()
    with ExitStack() as stack:
        with on_core(CLIENT_CORE):
            cloud = stack.enter_context(serving.kept())
        with on_core(SERVER_CORE):
            # Clients of a crowd answer none.
            no_pings = f"ping_interval_s = {NO_PING_S}"
            aws = serving.WAYS["lean"]
            node = stack.enter_context(serving.node(cloud, aws, client=no_pings))
        contestant = Serve(node, clients)
        stack.callback(contestant.end)
        yield contestant


@contextmanager
def compiled() -> Iterator[str]:
    """The path of the floor's program. Raises Skipped where no C compiler is."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skipped("needs a C compiler (cc)")
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/floor"
        subprocess.run([compiler, "-O2", "-o", program, str(FLOOR)], check=True, timeout=_COMPILE_S)
        yield program


@contextmanager
def c_loop(clients: int) -> Iterator[Contestant]:
    """The floor. Raises Skipped where no C compiler is."""
    widen()
    with ExitStack() as stack:
        program = stack.enter_context(compiled())
        with on_core(SERVER_CORE):
            process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        contestant = _CLoop(process, clients)
        stack.callback(contestant.end)
        yield contestant


def contest(
    enter: Mapping[str, Callable[[int], AbstractContextManager[Contestant]]],
    *,
    clients: int,
    rounds: int,
    deliveries: int,
    lost: MutableMapping[str, str] | None = None,
) -> dict[str, list[float]]:
    """CPU µs of a delivery, by name, round by round.

    `lost`: takes up the contestants that are lost on the way, with the reason, and the others go
    on. Without it, Lost is raised.
    """
    count = max(1, deliveries // clients)
    cost: dict[str, list[float]] = {name: [] for name in enter}
    with ExitStack() as stack, on_core(CLIENT_CORE):
        contestants = {name: stack.enter_context(each(clients)) for name, each in enter.items()}
        # Once for nothing: what is done at the first time only is no part of a delivery.
        for each in contestants.values():
            each.delivery_us(1)
        names = list(contestants)
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name not in cost:
                    continue
                try:
                    cost[name].append(contestants[name].delivery_us(count))
                except Lost as reason:
                    if lost is None:
                        raise
                    lost[name] = str(reason)
                    del cost[name]
    return cost


def medians(cost: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(each) for name, each in cost.items()}


def widen() -> None:
    """As many descriptors as this machine allows, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
