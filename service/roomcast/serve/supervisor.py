"""Runs several processes on one machine, each a node of its own: `roomcast serve --processes N`.

The supervisor serves nobody and calls nothing of AWS. It starts the processes, has them listen on
the shared port, starts those that fail again, and ends with them. The rules are in `supervision`.
Each process has a port of its own as well, since a request to the shared port may reach any. What
is internal may have a port too: it is shared in the same way, with one of each process after it.

The processes run in sessions of their own, so that Ctrl-C in a terminal reaches the supervisor
alone. If it is killed, their talks with it end, and they end in order by themselves.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from roomcast.serve.entry import (
    Address,
    Worker,
    bound,
    refuse,
    refuse_address,
    stop_at_end_of_input,
    stopped_by_signals,
)
from roomcast.serve.supervision import FIRST, OPEN_S, GiveUp, Leave, Restart, Supervision
from roomcast.system import random_fraction

__all__ = [
    "BEGIN_S",
    "DRAIN_JITTER",
    "END_S",
    "HUNG_S",
    "PORT_MAX",
    "Command",
    "shares_ports",
    "supervise",
]

PORT_MAX: Final = 65_535
# A process that gives no sign of life for so long hangs. It would go on taking its share of new
# clients, so it is killed.
HUNG_S: Final = 30.0
# The same for its first sign. Before that it imports its program.
BEGIN_S: Final = 120.0
# The last part of that time begins when the first is over. If this process itself was suspended,
# all of it seems to be over at once, and signs that came meanwhile are still to be read.
_LAST_PART: Final = 0.1
# How much longer than configured a drain may take: its slices have a random length.
DRAIN_JITTER: Final = 1.5
# Seconds for what follows a process's drain, also when each call of AWS hangs. A process that takes
# longer is killed.
END_S: Final = 225.0

_log = structlog.get_logger(__name__)


Command = Callable[[Worker], Sequence[str]]


def shares_ports(platform: str = sys.platform) -> bool:
    """Whether the kernel divides new connections among sockets that share a port.

    Others have the socket option, and give all connections to one of the sockets.
    """
    return platform == "linux"


async def supervise(
    command: Command,
    *,
    host: str,
    port: int,
    processes: int,
    drain_s: float,
    exit_on_stdin_close: bool,
    internal: Address | None = None,
) -> int:
    """Runs the processes until SIGTERM or SIGINT (or the end of standard input).

    `command`: the program and arguments of one process. `port` 0: any that is free; so are the own
    ports of the processes then. Otherwise these are the ones after `port`.

    `internal`: the shared port of what is internal; None = it is at `port`. Of the processes' own
    ones holds the same.

    Returns the exit code: 0 after an orderly end of all.
    """
    if not shares_ports():
        return refuse("several processes share a port only on Linux: use --processes 1", code=2)
    clients = _Span(Address(host, port), _after(port, processes), "--port")
    spans = [clients]
    if internal is not None:
        own_ports = _after(internal.port if port else 0, processes)
        spans.append(_Span(internal, own_ports, "server.internal_port"))
    if why := _unusable(spans, processes):
        return refuse(why, code=2)
    stop = asyncio.Event()
    with ExitStack() as stack:
        holders: list[socket.socket] = []
        for span in spans:
            shared, is_internal = span.shared, span is not clients
            try:
                # Whether somebody else listens there: one of our user could share the port with us.
                bound(shared.host, shared.port).close()
                holders.append(stack.enter_context(bound(shared.host, shared.port, shared=True)))
            except OSError as error:
                return refuse_address(shared.host, shared.port, error, internal=is_internal)
            try:
                for each in filter(None, span.own):
                    # Whether they are free. A process binds its own again at each of its starts.
                    bound(shared.host, each).close()
            except OSError as error:
                more = f"each process has a port of its own, the ones after {span.option}"
                return refuse_address(shared.host, each, error, internal=is_internal, more=more)
        stack.enter_context(stopped_by_signals(stop))
        if exit_on_stdin_close:
            stop_at_end_of_input(stop)
        supervisor = _Supervisor(
            command,
            holders[0].getsockname()[1],
            clients.own,
            stop,
            DRAIN_JITTER * drain_s + END_S,
            internal_ports=spans[-1].own if internal is not None else None,
        )
        return await supervisor.run()


@dataclass(frozen=True, slots=True)
class _Span:
    """A shared port, and one of each process after it (0: any that is free). `option` sets it."""

    shared: Address
    own: Sequence[int]
    option: str


def _after(port: int, processes: int) -> list[int]:
    return [port + 1 + index if port else 0 for index in range(processes)]


def _unusable(spans: Sequence[_Span], processes: int) -> str:
    """Why the ports cannot be had, whoever listens where; "" = they can."""
    for span in spans:
        if max(span.own) > PORT_MAX:
            return (
                f"{processes} processes need as many ports after {span.shared.port}: choose a "
                f"lower {span.option}"
            )
    taken = [{span.shared.port, *span.own} - {0} for span in spans]
    if len(taken) > 1 and taken[0] & taken[1]:
        return (
            f"--port {spans[0].shared.port} and server.internal_port {spans[1].shared.port} are "
            f"too close: each is followed by the ports of {processes} processes"
        )
    return ""


class _Child:
    """One process, from its start to its end."""

    def __init__(self, process: Process, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self._writer = writer
        self._listens = False
        self._has_answer = False

    def listen(self, wanted: bool) -> None:
        """Has it listen on the shared port, or leave it."""
        if wanted is not self._listens:
            self._listens = wanted
            self._tell(b"open" if wanted else b"shut")

    def release(self, wanted: bool) -> None:
        """Has it release the machine, or leave that to another one."""
        if not self._has_answer:
            self._has_answer = True
            self._tell(b"last" if wanted else b"others")

    def end(self, number: int) -> None:
        if self.process.returncode is None:
            # Not by `send_signal`: it would take the exit code of a process that ended just now
            # away from asyncio.
            with suppress(ProcessLookupError):  # it ended, and asyncio has not noticed yet
                os.kill(self.process.pid, number)

    def _tell(self, order: bytes) -> None:
        with suppress(OSError):  # its end will be noticed
            self._writer.write(order + b"\n")


class _Supervisor:
    def __init__(
        self,
        command: Command,
        port: int,
        own_ports: Sequence[int],
        stop: asyncio.Event,
        stop_within_s: float,
        *,
        internal_ports: Sequence[int] | None = None,
    ) -> None:
        self._command = command
        self._port = port
        self._own_ports = own_ports
        self._internal_ports = internal_ports or [0] * len(own_ports)
        self._stop = stop
        self._stop_within_s = stop_within_s
        self._rules = Supervision(len(own_ports))
        self._children: dict[int, _Child] = {}
        self._begun = asyncio.Event()
        # The highest wins.
        self._code = 0

    async def run(self) -> int:
        """Runs all processes to their ends. Returns the exit code."""
        keepers = [asyncio.create_task(self._keep(index)) for index in range(len(self._own_ports))]
        ended = asyncio.gather(*keepers)
        stopped = asyncio.create_task(self._stop.wait())
        waited = asyncio.create_task(self._wait_for_all())
        try:
            await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
            waited.cancel()
            self._stop.set()
            for child in self._children.values():
                child.end(signal.SIGTERM)
                child.end(signal.SIGCONT)  # a suspended process would not notice
            await asyncio.wait((ended,), timeout=self._stop_within_s)
            for index, child in self._children.items():
                _log.error("process_killed", process=index, pid=child.process.pid)
                child.end(signal.SIGKILL)
            await ended
        finally:
            # After a fault of ours, the processes end in order by themselves: we are gone then.
            for task in (stopped, waited, *keepers):
                task.cancel()
            await asyncio.gather(stopped, waited, *keepers, return_exceptions=True)
        _log.info("all_processes_ended", exit_code=self._code)
        return self._code

    async def _wait_for_all(self) -> None:
        await self._begun.wait()
        await asyncio.sleep(OPEN_S)
        self._rules.waited_enough()
        self._settle()

    async def _keep(self, index: int) -> None:
        """Runs one process, again and again, until it is over for good."""
        try:
            await self._run_on(index)
        finally:
            self._rules.over(index)
            self._settle()

    async def _run_on(self, index: int) -> None:
        if index != FIRST and await self._stopped_before(self._begun):
            return
        while not self._stop.is_set():
            code = await self._run(index)
            if self._stop.is_set():
                # Python ends at a signal that comes before the process has a handler for it.
                if code not in (0, -signal.SIGTERM):
                    _log.error("process_failed", process=index, code=code)
                    self._code = max(self._code, 1)
                return
            verdict = self._rules.ended(index, code, time.monotonic(), random_fraction())
            self._settle()
            match verdict:
                case Leave():
                    _log.warning("process_left", process=index)
                    return
                case GiveUp(code, why):
                    if why:
                        _log.critical("processes_given_up", reason=why)
                    self._code = max(self._code, code)
                    self._stop.set()
                    return
                case Restart(pause_s):
                    _log.error("process_failed", process=index, code=code, again_in_s=pause_s)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._stop.wait()

    async def _stopped_before(self, event: asyncio.Event) -> bool:
        """Wait for `event` or the request to stop. Whether it was the latter."""
        waits = [asyncio.create_task(each.wait()) for each in (event, self._stop)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        return self._stop.is_set()

    async def _run(self, index: int) -> int:
        """Run one process once. Returns its exit code, negative for a signal."""
        try:
            process, ours = await self._started(index)
        except OSError as error:  # the system lacks memory, descriptors or places for processes
            _log.error("process_not_started", process=index, reason=error.strerror)
            return 1
        reader, writer = await asyncio.open_connection(sock=ours)
        child = self._children[index] = _Child(process, writer)
        if self._stop.is_set():
            child.end(signal.SIGTERM)
        _log.info("process_started", process=index, pid=process.pid)
        talk = asyncio.create_task(self._hear(index, reader))
        try:
            return await process.wait()
        finally:
            del self._children[index]
            writer.close()
            await asyncio.gather(talk, return_exceptions=True)

    async def _started(self, index: int) -> tuple[Process, socket.socket]:
        """A process, and our end of the talk with it. Raises OSError."""
        ours, its = socket.socketpair()
        try:
            with its:
                worker = Worker(
                    its.fileno(), self._port, self._own_ports[index], self._internal_ports[index]
                )
                command = self._command(worker)
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=DEVNULL, pass_fds=(its.fileno(),), start_new_session=True
                )
        except OSError:
            ours.close()
            raise
        return process, ours

    async def _hear(self, index: int, reader: asyncio.StreamReader) -> None:
        """What the process tells, until its end."""
        try:
            limit_s = BEGIN_S
            while line := await _line(reader, limit_s):
                self._heard(index, line.decode().split())
                limit_s = HUNG_S
        except TimeoutError:
            _log.error("process_hangs", process=index, silent_s=limit_s)
            if index in self._children:
                self._children[index].end(signal.SIGKILL)
        except OSError:
            pass  # its end will be noticed

    def _heard(self, index: int, words: list[str]) -> None:
        match words:
            case ["alive"]:
                return
            case ["started", node, port]:
                self._rules.started(index)
                self._begun.set()
                _log.info("process_serves", process=index, node=node, own_port=int(port))
            case ["ready"]:
                self._rules.judged(index, ready=True)
            case ["unready"]:
                self._rules.judged(index, ready=False)
            case ["asks"]:
                self._rules.asks(index)
        self._settle()

    def _settle(self) -> None:
        """Has those listen that should, and nobody else; and one of all release the machine."""
        listeners = self._rules.listeners()
        releaser = self._rules.releaser()
        for index, child in self._children.items():
            child.listen(index in listeners)
            if releaser is not None:
                child.release(index == releaser)


async def _line(reader: asyncio.StreamReader, within_s: float) -> bytes:
    """The next line. Raises TimeoutError, if this process was awake at the end of that time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s * (1 - _LAST_PART)):
            return await reader.readline()
    async with asyncio.timeout(within_s * _LAST_PART):
        return await reader.readline()
