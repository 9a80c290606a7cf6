"""Supervises `roomcast dev`: runs emulator, stream pump and instances as child processes.

The children run in sessions of their own, so that Ctrl-C in the terminal reaches only the
supervisor. It ends them in order: the instances first, which delete their queues, then the pump,
then the emulator. If the supervisor is killed, their standard input ends, and they end by
themselves.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from roomcast.backoff import Backoff
from roomcast.dev.provision import DUMMY_CREDENTIALS, Provisioned, ProvisionError, provision
from roomcast.observe.lines import Lines

__all__ = ["DevOptions", "events_options", "run_dev"]

REGION: Final = "us-east-1"
TABLE_PREFIX: Final = "roomcast-"
PORT_MAX: Final = 65_535
# Start-up: Python with the AWS libraries takes a second or two on a small machine, several on a
# busy one.
EMULATOR_START_S: Final = 30.0
PROVISION_S: Final = 3.0
INSTANCE_START_S: Final = 60.0
READY_POLL_S: Final = 0.1
READY_REQUEST_S: Final = 2.0
# Longer than the default drain (`node.drain_s`, 30 s). Without a file the drain is one second.
INSTANCE_STOP_S: Final = 45.0
HELPER_STOP_S: Final = 5.0
# The pauses before restarts with --restart. An instance that lived for a while restarts at once.
RESTARTS: Final = Backoff(0.5, 30.0)
RESTART_FORGIVEN_S: Final = 60.0

# No ports and certificates of the machine's or the file's configuration.
_NO_SERVER: Final = {
    "ROOMCAST_SERVER_INTERNAL_PORT": "0",
    "ROOMCAST_SERVER_INTERNAL_ADDRESS": "",
    "ROOMCAST_SERVER_TLS_EXTERNAL": "false",
    "ROOMCAST_SERVER_TLS_CERT_FILE": "",
    "ROOMCAST_SERVER_TLS_KEY_FILE": "",
    "ROOMCAST_SERVER_INTERNAL_TLS_CERT_FILE": "",
    "ROOMCAST_SERVER_INTERNAL_TLS_KEY_FILE": "",
}

_EMULATOR: Final = (sys.executable, "-m", "roomcast.dev.emulator")
_PUMP: Final = (sys.executable, "-m", "roomcast.dev.stream_pump")
_STDERR: Final = 2
_GREEN, _RED, _DIM, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The options of `roomcast dev`.

    Port 0: any free one. `aws_endpoint`: an emulator that runs already. `config`: the file of every
    instance. `environment`: the children's environment, from which all AWS variables are removed.
    `serve`: the command of one instance, before its options. `events`: a queue of the emulator gets
    events.
    """

    instances: int = 2
    host: str = "127.0.0.1"
    port: int = 8000
    emulator_port: int = 0
    aws_endpoint: str | None = None
    config: str | None = None
    restart: bool = False
    log_level: str = ""
    topic_shards: int = 1
    events: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    serve: Sequence[str] = (sys.executable, "-m", "roomcast", "serve")


class _DevError(Exception):
    """`roomcast dev` cannot go on. The message is one line for the user."""


async def run_dev(options: DevOptions) -> int:
    """Runs until SIGINT or SIGTERM, and returns 0. If no process is left, prints a line on stderr
    and returns 1. Both signals are ignored afterwards.

    Prints the ready line on stdout once every instance is ready. Everything else goes to stderr.
    """
    screen = _Screen(sys.stderr.isatty() and not options.environment.get("NO_COLOR"))
    try:
        return await _Supervisor(options, screen).run()
    except (_DevError, ProvisionError) as error:
        screen.failure(f"roomcast dev: {error}")
        return 1


class _Screen:
    """Writes short lines to stderr, each with the seconds since the start.

    It waits for nobody who does not read on: the children are still to be ended.
    """

    def __init__(self, colours: bool) -> None:
        self._colours = colours
        self._lines = Lines(sys.stderr.buffer, lambda number: b"%d lines left out" % number)
        self._start_s = time.monotonic()

    def progress(self, what: str, text: str) -> None:
        elapsed_s = time.monotonic() - self._start_s
        self._write(
            f"{self._in(_DIM, f'{elapsed_s:5.1f} s')}  {self._in(_GREEN, f'{what:<9}')} {text}"
        )

    def failure(self, text: str) -> None:
        self._write(self._in(_RED, text))

    def text(self, text: str) -> None:
        self._write(text)

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colours else text

    def _write(self, line: str) -> None:
        self._lines.write(line.encode(errors="backslashreplace"))


@dataclass(slots=True)
class _Instance:
    port: int
    url: str
    process: Process
    node: str = ""


class _Supervisor:
    def __init__(self, options: DevOptions, screen: _Screen) -> None:
        assert options.instances >= 1, "the command line checks it"
        self._options = options
        self._screen = screen
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._environment = dict(options.environment)
        self._emulator: Process | None = None
        self._pump: Process | None = None
        self._events_queue_url = ""
        self._instances: list[_Instance] = []

    async def run(self) -> int:
        """Runs everything. Raises _DevError, ProvisionError. In any case no child is left
        behind.
        """
        ports = _usable_ports(self._options)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        stop = asyncio.create_task(self._stop.wait())
        work = asyncio.create_task(self._work(ports))
        either: set[asyncio.Task[Any]] = {stop, work}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and not self._stop.is_set():
                work.result()
            return 0
        finally:
            stop.cancel()
            work.cancel()
            await asyncio.gather(stop, work, return_exceptions=True)
            await self._end_children()
            for number in (signal.SIGINT, signal.SIGTERM):
                # The process is about to exit: another Ctrl-C would make a failure of it.
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._kill.set()
        else:
            self._stop.set()
            self._screen.text("stopping; Ctrl-C again kills at once")

    async def _work(self, ports: Sequence[int]) -> None:
        """Starts everything, then watches it. Ends only by raising."""
        endpoint = self._options.aws_endpoint or await self._start_emulator()
        resources = await _provisioned(
            endpoint, self._options.topic_shards, events=self._options.events
        )
        self._screen.progress(
            "provision", f"{len(resources.tables)} tables, topic {resources.topic_arn}"
        )
        if resources.events_queue_url:
            self._screen.progress("events", f"queue {resources.events_queue_url}")
        self._events_queue_url = resources.events_queue_url
        self._environment = _child_environment(self._options.environment, endpoint, resources)
        await self._start_pump(endpoint, resources)
        urls = [f"http://{_reachable(self._options.host)}:{port}" for port in ports]
        for port, url in zip(ports, urls, strict=True):
            self._instances.append(_Instance(port, url, await self._spawn(self._serve(port, urls))))
        await asyncio.gather(*(self._become_ready(instance) for instance in self._instances))
        self._announce(endpoint)

        instances = asyncio.gather(
            *(self._watch_instance(instance, urls) for instance in self._instances)
        )
        pump = asyncio.create_task(self._watch_pump(endpoint, resources))
        emulator = asyncio.create_task(self._watch_emulator())
        ends: set[asyncio.Future[Any]] = {instances, emulator}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watcher in (instances, pump, emulator):
                watcher.cancel()
            await asyncio.gather(instances, pump, emulator, return_exceptions=True)
        if self._emulator is not None and self._emulator.returncode is not None:
            raise _DevError(f"the emulator ended ({_ending(self._emulator)}), and with it all data")
        raise _DevError("every instance has ended; their log above says why")

    async def _start_emulator(self) -> str:
        port = str(self._options.emulator_port)
        self._emulator = await self._spawn(
            [*_EMULATOR, "--port", port, "--region", REGION], stdout=PIPE
        )
        assert self._emulator.stdout is not None, "asked for a pipe"
        try:
            line = await asyncio.wait_for(self._emulator.stdout.readline(), EMULATOR_START_S)
        except TimeoutError:
            raise _DevError(f"the emulator did not start within {EMULATOR_START_S:.0f} s") from None
        if not line:
            raise _DevError(f"the emulator did not start ({_ending(self._emulator)})")
        endpoint = str(json.loads(line)["endpoint"])
        self._screen.progress("emulator", endpoint)
        return endpoint

    async def _start_pump(self, endpoint: str, resources: Provisioned) -> None:
        self._pump = await self._spawn([
            *_PUMP,
            *("--endpoint", endpoint, "--region", REGION),
            *("--stream-arn", resources.stream_arn, "--topic-arn", resources.topic_arn),
            *("--topic-shards", str(resources.topic_shards)),
            *(events_options(resources) if resources.events_queue_url else ()),
        ])  # fmt: skip
        self._screen.progress("pump", f"stream Lambda, pid {self._pump.pid}")
        self._screen.progress(
            "instances", f"{self._options.instances} starting, each hears its own queue first"
        )

    def _serve(self, port: int, urls: Iterable[str]) -> Sequence[str]:
        config = () if self._options.config is None else ("--config", self._options.config)
        return [
            *self._options.serve,
            *("--host", self._options.host, "--port", str(port), "--processes", "1"),
            *("--demo", "--peers", ",".join(urls), "--exit-on-stdin-close"),
            *(("--log-level", self._options.log_level) if self._options.log_level else ()),
            *config,
        ]

    async def _spawn(self, command: Sequence[str], stdout: int = _STDERR) -> Process:
        """Starts a child whose stdin ends with this process.

        Its logs go to our stderr. Our stdout is for the ready line.
        """
        return await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=stdout, env=self._environment, start_new_session=True
        )

    async def _become_ready(self, instance: _Instance) -> None:
        """Waits until `instance` reports that it is ready, and records its node's name."""
        name = f"the instance on port {instance.port}"
        give_up_s = time.monotonic() + INSTANCE_START_S
        why = "no answer"
        timeout = aiohttp.ClientTimeout(total=READY_REQUEST_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                if instance.process.returncode is not None:
                    raise _DevError(
                        f"{name} ended ({_ending(instance.process)}) before it was ready; its log "
                        "above says why"
                    )
                try:
                    async with session.get(instance.url + "/health/ready") as response:
                        body = await response.json()
                        if response.status == 200:
                            instance.node = str(body["node"])
                            break
                        why = json.dumps(body)
                except (aiohttp.ClientError, TimeoutError, ValueError):
                    pass  # not listening yet
                if time.monotonic() > give_up_s:
                    raise _DevError(f"{name} is not ready after {INSTANCE_START_S:.0f} s: {why}")
                await asyncio.sleep(READY_POLL_S)
        self._screen.progress(
            "instance", f"{instance.url}  {instance.node}, pid {instance.process.pid}"
        )

    def _announce(self, endpoint: str) -> None:
        assert self._pump is not None, "started before the instances"
        ready = {
            "event": "ready",
            "instances": [
                {"url": instance.url, "pid": instance.process.pid, "node": instance.node}
                for instance in self._instances
            ],
            "aws_endpoint": endpoint,
            "pid": os.getpid(),
            "pump": {"pid": self._pump.pid},
            **({"events": {"queue": self._events_queue_url}} if self._events_queue_url else {}),
        }
        self._screen.text("\nready. Open these side by side; Ctrl-C ends everything:")
        for instance in self._instances:
            self._screen.text(f"  {instance.url}/")
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()

    async def _watch_instance(self, instance: _Instance, urls: Sequence[str]) -> None:
        """Reports the instance's end, and restarts it with --restart.

        Returns when it is gone for good.
        """
        restarts = 0
        while True:
            started_s = time.monotonic()
            await instance.process.wait()
            self._screen.failure(
                f"the instance on port {instance.port} ({instance.node}) ended: "
                f"{_ending(instance.process)}"
            )
            if not self._options.restart:
                return
            if time.monotonic() - started_s > RESTART_FORGIVEN_S:
                restarts = 0
            restarts += 1
            await asyncio.sleep(RESTARTS.pause_s(restarts))
            instance.process = await self._spawn(self._serve(instance.port, urls))
            try:
                await self._become_ready(instance)
            except _DevError as error:
                self._screen.failure(str(error))
                await _end([instance.process], 0.0, self._kill)

    async def _watch_pump(self, endpoint: str, resources: Provisioned) -> None:
        restarts = 0
        while self._pump is not None:
            await self._pump.wait()
            self._screen.failure(
                f"the stream pump ended ({_ending(self._pump)}): nothing gets from one instance to "
                "another"
            )
            if not self._options.restart:
                return
            restarts += 1
            await asyncio.sleep(RESTARTS.pause_s(restarts))
            await self._start_pump(endpoint, resources)

    async def _watch_emulator(self) -> None:
        if self._emulator is None:
            # an emulator that we did not start: the instances' logs show its end
            await asyncio.Event().wait()
        else:
            await self._emulator.wait()

    async def _end_children(self) -> None:
        await _end([instance.process for instance in self._instances], INSTANCE_STOP_S, self._kill)
        for helper in (self._pump, self._emulator):
            if helper is not None:
                await _end([helper], HELPER_STOP_S, self._kill)


def events_options(resources: Provisioned) -> Sequence[str]:
    """The arguments by which the pump makes events as well."""
    return [
        *("--events-queue-url", resources.events_queue_url),
        *("--presence-table", resources.presence_table),
        *("--presence-stream-arn", resources.presence_stream_arn),
    ]


async def _provisioned(endpoint: str, topic_shards: int, *, events: bool) -> Provisioned:
    """Runs `provision` beside the event loop.

    Not `asyncio.to_thread`: Ctrl-C must not wait for its deadlines.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Provisioned] = loop.create_future()

    def settle(resources: Provisioned | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if resources is None:
            done.set_exception(error or AssertionError("neither a result nor an error"))
        else:
            done.set_result(resources)

    def work() -> None:
        resources, error = None, None
        try:
            resources = provision(
                endpoint,
                TABLE_PREFIX,
                region=REGION,
                credentials=DUMMY_CREDENTIALS,
                topic_shards=topic_shards,
                events=events,
                deadline_s=PROVISION_S,
            )
        except Exception as raised:  # noqa: BLE001 - it is raised again where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, resources, error)

    threading.Thread(target=work, name="provision", daemon=True).start()
    return await done


async def _end(processes: Sequence[Process], deadline_s: float, kill: asyncio.Event) -> None:
    """Sends SIGTERM. At the deadline, or when `kill` is set, sends SIGKILL to the process
    groups.
    """
    if not processes:
        return
    ending = asyncio.gather(*(process.wait() for process in processes))
    killing = asyncio.create_task(kill.wait())
    either: set[asyncio.Future[Any]] = {ending, killing}
    for process in processes:
        if process.returncode is None:
            process.terminate()
            # A suspended process would not notice.
            process.send_signal(signal.SIGCONT)
    try:
        await asyncio.wait(either, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        killing.cancel()
        for process in processes:
            if process.returncode is None:
                with suppress(ProcessLookupError):  # it ended, and asyncio has not noticed yet
                    os.killpg(process.pid, signal.SIGKILL)
        await ending
        for process in processes:
            assert process.stdin is not None, "every child has a pipe"
            process.stdin.close()


def _ending(process: Process) -> str:
    if process.returncode is None:
        return "still running"
    if process.returncode < 0:
        return signal.Signals(-process.returncode).name
    return f"exit code {process.returncode}"


def _child_environment(
    inherited: Mapping[str, str], endpoint: str, resources: Provisioned
) -> dict[str, str]:
    """The children's environment. Nothing in it leads to a real AWS account or to a proxy."""
    environment = {name: value for name, value in inherited.items() if not name.startswith("AWS_")}
    direct = ["127.0.0.1", "localhost", urlsplit(endpoint).hostname or ""]
    no_proxy = ",".join(
        filter(None, [inherited.get("NO_PROXY") or inherited.get("no_proxy"), *direct])
    )
    return environment | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": DUMMY_CREDENTIALS.access_key_id,
        "AWS_SECRET_ACCESS_KEY": DUMMY_CREDENTIALS.secret_access_key,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "ROOMCAST_AWS_ENDPOINT_URL": endpoint,
        "ROOMCAST_AWS_REGION": REGION,
        "ROOMCAST_AWS_TABLE_PREFIX": TABLE_PREFIX,
        "ROOMCAST_AWS_TOPIC_ARN": resources.topic_arn,
        "ROOMCAST_AWS_TOPIC_SHARDS": str(resources.topic_shards),
        # Nobody needs a laptop's readings. The AWS tools' own variable turns the instance metadata
        # off.
        "ROOMCAST_AWS_METRICS_NAMESPACE": "",
        # Each instance has one port, and plain HTTP.
        **_NO_SERVER,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _usable_ports(options: DevOptions) -> Sequence[int]:
    """The instances' ports, all of them free a moment ago.

    Raises _DevError before any process was started.
    """
    wanted = [options.port + index if options.port else 0 for index in range(options.instances)]
    if options.emulator_port and options.emulator_port in wanted and options.aws_endpoint is None:
        raise _DevError(
            f"port {options.emulator_port} is wanted twice: choose another --emulator-port"
        )
    with ExitStack() as held:
        # All at once, so that port 0 gives different ports.
        ports = [
            held.enter_context(_bound(options.host, port, "--port")).getsockname()[1]
            for port in wanted
        ]
        if options.emulator_port and options.aws_endpoint is None:
            held.enter_context(_bound("127.0.0.1", options.emulator_port, "--emulator-port"))
    return ports


def _bound(host: str, port: int, option: str) -> socket.socket:
    if port > PORT_MAX:
        raise _DevError(f"there is no port {port}: choose a lower one with {option}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise _DevError(f"host {host} is not known: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    # As the server does: connections that linger from the last run do not count.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _DevError(
                f"port {port} is in use: stop what listens there, or choose another with {option}"
            ) from error
        raise _DevError(f"port {port} of {host} cannot be used: {error.strerror}") from error
    return listener


def _reachable(host: str) -> str:
    """The host that a browser on this machine can open for a server on `host`."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
