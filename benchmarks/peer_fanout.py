"""Measures the CPU of a delivery by other servers, in units of one by `roomcast serve`.

Each peer is a small program of benchmarks/peers, in the way that its documentation shows first,
with pings and compression off. None of them stores what it sends or numbers it; roomcast does both.
Libraries come with the extra `bench` and from npm, into a folder that is removed at the end. A peer
whose libraries or programs are not here is left out, with the reason.

    python -m benchmarks.peer_fanout [--short] [--json]
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.contest import (
    DELIVERIES,
    DELIVERIES_SHORT,
    SERVER_CORE,
    Contestant,
    Line,
    Lost,
    c_loop,
    contest,
    medians,
    on_core,
    serve,
    widen,
)
from benchmarks.figures import Figure, Skipped
from benchmarks.rig import ROOT
from benchmarks.suite import run_alone

__all__ = ["PEERS", "Peer", "measure", "notes"]

CLIENTS: Final = (1_000, 5_000)
ROUNDS: Final = 10
ROUNDS_SHORT: Final = 3
_FOLDER: Final = Path(__file__).with_name("peers")
# It takes some seconds. A registry that does not answer must not hold up the others.
_INSTALL_S: Final = 60
# Peers that `measure` lost on the way, for `notes`.
_lost: dict[str, str] = {}
OURS: Final = "roomcast"
C_LOOP: Final = "C send loop"


@dataclass(frozen=True, slots=True)
class Peer:
    """One server.

    `bound`: how many times as much as roomcast it is to cost at least. `packages`: of its
    language's registry, `programs`: on the PATH. `clients_max`: with more, a round takes longer
    than it may.
    """

    name: str
    program: str
    dialect: str
    packages: tuple[str, ...]
    programs: tuple[str, ...] = ()
    bound: float | None = None
    clients_max: int = 5_000

    @property
    def is_node(self) -> bool:
        """Whether it runs under Node.js."""
        return self.program.endswith(".mjs")

    def version(self) -> str:
        """Its libraries, with their versions. Raises Skipped where one of them, or a program, is
        not here.
        """
        for program in self.programs:
            if shutil.which(program) is None:
                raise Skipped(f"needs {program}")
        return ", ".join(f"{package} {self._version(package)}" for package in self.packages)

    def _version(self, package: str) -> str:
        if self.is_node:
            manifest = Path(npm()) / "node_modules" / package / "package.json"
            version: str = json.loads(manifest.read_text(encoding="utf-8"))["version"]
            return version
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            raise Skipped(f"needs {package} (the extra bench)") from None

    @contextmanager
    def run(self, clients: int) -> Iterator[Contestant]:
        """The server and its crowd."""
        widen()
        with ExitStack() as stack:
            if self.is_node:
                command = ["node", str(_FOLDER / self.program), npm()]
            else:
                command = [sys.executable, "-m", f"benchmarks.peers.{self.program}"]
            if "redis-server" in self.programs:
                command.append(stack.enter_context(redis()))
            with on_core(SERVER_CORE):
                process = subprocess.Popen(
                    command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            contestant = Line(process, self.dialect, clients)
            stack.callback(contestant.end)
            yield contestant


PEERS: Final = (
    Peer("aiohttp, await ws.send_str each", "aiohttp_naive", "websocket", ("aiohttp",)),
    Peer("websockets, broadcast", "websockets_broadcast", "websocket", ("websockets",), bound=1.7),
    Peer(
        "python-socketio, emit to a room",
        "python_socketio",
        "socket.io",
        ("python-socketio",),
        bound=15,
    ),
    Peer(
        "Django Channels, group_send over Redis",
        "django_channels",
        "websocket",
        ("channels", "channels-redis", "uvicorn"),
        ("redis-server",),
        # What it costs to deliver one publication to one client grows with the number of clients.
        clients_max=1_000,
    ),
    Peer("Node ws, client.send each", "node_ws.mjs", "websocket", ("ws",), ("node", "npm")),
    Peer(
        "Node Socket.IO, emit to a room",
        "node_socketio.mjs",
        "socket.io",
        ("socket.io",),
        ("node", "npm"),
        bound=2,
    ),
)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """For npm's packages. Removed at the end of this process."""
    return tempfile.TemporaryDirectory(prefix="roomcast-peers-")


@functools.cache
def npm() -> str:
    """The folder with the packages of Node.js. Raises Skipped where npm does not get them."""
    folder = _folder().name
    shutil.copy(_FOLDER / "package.json", folder)
    command = ["npm", "install", "--prefix", folder, "--no-package-lock", "--ignore-scripts"]
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    try:
        subprocess.run([*command, *quiet], check=True, timeout=_INSTALL_S, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise Skipped("npm does not get its packages") from None
    return folder


@contextmanager
def redis() -> Iterator[str]:
    """A Redis that stores nothing. Yields its address."""
    with tempfile.TemporaryDirectory(prefix="roomcast-redis-") as directory:
        path = f"{directory}/redis.sock"
        # No port: nobody else can reach it.
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        server = subprocess.Popen(
            ["redis-server", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if "Ready to accept connections" in line or "ready to accept" in line:
                    break
            else:
                raise SystemExit("redis-server did not start")
            yield f"unix://{path}"
        finally:
            server.kill()
            server.communicate()


@functools.cache
def present() -> dict[Peer, str]:
    """The peers that can run here, with versions."""
    found = {}
    for peer in PEERS:
        try:
            found[peer] = peer.version()
        except Skipped:
            continue
    return found


def notes() -> list[str]:
    """The versions of the peers, and why one was left out."""
    lines = []
    for peer in PEERS:
        try:
            lines.append(f"{peer.name}: {peer.version()}")
        except Skipped as reason:
            lines.append(f"{peer.name}: left out, {reason}")
    lines += [
        f"{peer.name}: not with more than {peer.clients_max:,} subscribers, which takes too long"
        for peer in present()
        if peer.clients_max < max(CLIENTS)
    ]
    return [*lines, *(f"{name}: left out, {reason}" for name, reason in _lost.items())]


def measure(short: bool) -> list[Figure]:
    """A figure for each peer that is here, with roomcast as the floor.

    `short`: to 1,000 subscribers alone.
    """
    figures = []
    rounds = ROUNDS_SHORT if short else ROUNDS
    enter: dict[str, Callable[[int], AbstractContextManager[Contestant]]] = {OURS: serve}
    if shutil.which("cc"):
        enter[C_LOOP] = c_loop
    bounds = {peer.name: peer.bound for peer in present()}
    for clients in CLIENTS[:1] if short else CLIENTS:
        peers = {peer.name: peer.run for peer in present() if peer.clients_max >= clients}
        lost: dict[str, str] = {}
        cost = medians(
            contest(
                enter | peers,
                clients=clients,
                rounds=rounds,
                deliveries=DELIVERIES_SHORT if short else DELIVERIES,
                lost=lost,
            )
        )
        if OURS in lost:
            raise Lost(lost[OURS])
        _lost.update({f"{name}, {clients:,} subscribers": why for name, why in lost.items()})
        figures += [
            Figure(
                name=f"fan-out to {clients:,} by {name}, CPU of a delivery",
                value=value,
                floor=cost[OURS],
                unit="µs",
                floor_name=OURS,
                bound=bounds.get(name),
                higher_is_better=True,
                rounds=rounds,
            )
            for name, value in cost.items()
            if name != OURS
        ]
    return figures


if __name__ == "__main__":
    run_alone(measure, notes)
