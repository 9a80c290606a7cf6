"""Measures the CPU of a delivery to subscribers of all forms, beside one to plain subscribers only.

The node is `roomcast serve` as it is run, against benchmarks/aws_stub.py. Of a thousand subscribers
of one channel, all take plain JSON. Of as many of another, a quarter each takes plain JSON,
Protobuf, numbers in place of the channel's name, and differences. Publications come over HTTP, one
after the other, to each of them in turn and to a channel that nobody reads. What these cost is
taken off.

    python -m benchmarks.mixed --rounds 9
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import select
import socket
import statistics
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Final

from benchmarks.figures import Figure
from benchmarks.http_api import Caller
from benchmarks.rig import (
    NO_PING_S,
    PATH,
    Process,
    carry_out_lines,
    end_in_time,
    make_room,
    masked,
    options_of,
    say,
    widen,
)
from benchmarks.serving import WAYS as AWS_WAYS
from benchmarks.serving import Measured, kept, node
from roomcast.wire.protobuf_schema import message_class

__all__ = ["CHANNELS", "FORMS", "Costs", "figures", "filtered", "measure", "measured", "serve"]

ROUNDS: Final = 9
ROUNDS_MAX: Final = 50
SUBSCRIBERS: Final = 1000
PUBLICATIONS: Final = 40
PAD: Final = "x" * 150
# The ratio that is aimed at.
MIXED_MAX: Final = 1.3
FORMS: Final = ("plain", "protobuf", "numbers", "differences")
# A form that is the JSON of a filter.
_FILTER: Final = "filter "
# The forms of each channel's subscribers.
CHANNELS: Final[Mapping[str, Sequence[str]]] = {
    "plain": ("plain",),
    "mixed": FORMS,
    "nobody": (),
}
_OPTIONS: Final = """allow_channel_compaction = true
allowed_delta_types = ["fossil"]
delta_publish = true
"""
# No answer to a ping comes, and nobody is closed for that while this lasts.
_CLIENT: Final = f"ping_interval_s = {NO_PING_S}"
_ANSWER_S: Final = 30.0
_START_S: Final = 120
_ROUND_S: Final = 30
_READ_BYTES: Final = 64 * 1024
# Longer frames than a ping.
_FRAME_BYTES_MIN: Final = 16


# ---- the subscribers, in a process of their own


class Subscribers:
    """Sockets that count the frames that come."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._unread: dict[int, bytes] = {}
        self._frames = 0

    def come(self, channel: str, forms: Sequence[str], count: int) -> dict[str, Any]:
        """Subscribes `count` clients, in turn in each of `forms`."""
        for number in range(count):
            connected = self._subscribed(channel, forms[number % len(forms)])
            connected.setblocking(False)
            self._sockets[connected.fileno()] = connected
            self._unread[connected.fileno()] = b""
            self._poll.register(connected.fileno(), select.EPOLLIN)
        return {}

    def read(self, frames: int) -> dict[str, Any]:
        """Reads until so many frames came to all of them together."""
        until = time.monotonic() + _ANSWER_S
        while self._frames < frames and time.monotonic() < until:
            for descriptor, _ in self._poll.poll(1.0):
                part = self._sockets[descriptor].recv(_READ_BYTES)
                if not part:
                    raise SystemExit("the node closed a connection")
                self._count(descriptor, part)
        missing, self._frames = frames - self._frames, 0
        return {"missing": missing}

    def _count(self, descriptor: int, part: bytes) -> None:
        unread, at = self._unread[descriptor] + part, 0
        while (frame := _frame(unread, at)) is not None:
            beginning, at = frame
            self._frames += at - beginning > _FRAME_BYTES_MIN
        self._unread[descriptor] = unread[at:]

    def _subscribed(self, channel: str, form: str) -> socket.socket:
        connected = socket.create_connection(self._address)
        key = base64.b64encode(os.urandom(16)).decode()
        protocol = "protobuf" if form == "protobuf" else "json"
        connected.sendall(
            (
                f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Protocol: centrifuge-{protocol}\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
            ).encode()
        )
        opcode, payload = _commands(channel, form)
        connected.sendall(masked(payload, 0x80 | opcode))
        unread = b""
        while b"\r\n\r\n" not in unread:
            unread += connected.recv(4096)
        unread = unread.partition(b"\r\n\r\n")[2]
        # Two answers, in one frame or two.
        answers, at = 0, 0
        while answers < 2:
            if (frame := _frame(unread, at)) is None:
                unread += connected.recv(4096)
                continue
            beginning, at = frame
            answers += _answers(unread[beginning:at], protocol)
        return connected


def _frame(unread: bytes, at: int) -> tuple[int, int] | None:
    """Where the payload of the frame at `at` begins and ends; None = it is not whole."""
    if len(unread) < at + 2:
        return None
    length, beginning = unread[at + 1], at + 2
    if length > 125:
        if len(unread) < at + 4:
            return None
        [length], beginning = struct.unpack_from("!H", unread, at + 2), at + 4
    end = beginning + length
    return (beginning, end) if end <= len(unread) else None


def _answers(payload: bytes, protocol: str) -> int:
    if protocol == "json":
        lines = [json.loads(line) for line in payload.split(b"\n")]
        if any("error" in line for line in lines):
            raise SystemExit(f"the node answered {payload!r}")
        return len(lines)
    # Each is shorter than 128 bytes, and so its length is one byte.
    answers, at = 0, 0
    while at < len(payload):
        reply: Any = message_class("Reply")()
        reply.ParseFromString(payload[at + 1 : at + 1 + payload[at]])
        if reply.HasField("error"):
            raise SystemExit(f"the node answered {reply}")
        at += 1 + payload[at]
        answers += 1
    return answers


def _commands(channel: str, form: str) -> tuple[int, bytes]:
    """The type of a frame that subscribes, and its payload."""
    if form == "protobuf":
        encoded = b""
        for number, method in ((1, "connect"), (2, "subscribe")):
            command: Any = message_class("Command")()
            command.id = number
            getattr(command, method).SetInParent()
            if method == "subscribe":
                command.subscribe.channel = channel
            message = command.SerializeToString()
            encoded += bytes([len(message)]) + message
        return 0x2, encoded
    commands = (
        {"id": 1, "connect": {}},
        {"id": 2, "subscribe": {"channel": channel, **_asked(form)}},
    )
    return 0x1, "\n".join(json.dumps(command) for command in commands).encode()


def filtered(node: Mapping[str, Any]) -> str:
    """The form of plain subscribers with this filter."""
    return _FILTER + json.dumps(node)


def _asked(form: str) -> Mapping[str, Any]:
    """What a subscriber asks for, in JSON."""
    if form.startswith(_FILTER):
        return {"tf": json.loads(form.removeprefix(_FILTER))}
    more: Mapping[str, Mapping[str, Any]] = {
        "plain": {},
        "numbers": {"flag": 1},
        "differences": {"delta": "fossil"},
    }
    return more[form]


# ---- a round

Costs = dict[str, list[float]]


async def publish(port: int, channel: str, count: int, tags: Mapping[str, str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        caller = Caller(reader, writer)
        for number in range(count):
            data = {"text": PAD, "number": number}
            await caller.ask("publish", {"channel": channel, "data": data, "tags": tags})
    finally:
        writer.close()


def publication_us(
    its: Measured, clients: Process, channel: str, count: int, tags: Mapping[str, str]
) -> float:
    """CPU µs of the node for one publication in `channel`, which has `count` subscribers."""
    before_s = its.cpu_s()
    if count:
        clients.begin("read", frames=PUBLICATIONS * count)
    asyncio.run(publish(its.port, channel, PUBLICATIONS, tags))
    if count and (missing := clients.answer()["missing"]):
        raise SystemExit(f"{missing} frames did not come")
    return (its.cpu_s() - before_s) / PUBLICATIONS * 1e6


def measured(
    rounds: int,
    subscribers: int = SUBSCRIBERS,
    *,
    module: str = "benchmarks.mixed",
    channels: Mapping[str, Sequence[str]] = CHANNELS,
    options: str = _OPTIONS,
    tags: Mapping[str, str] | None = None,
) -> Costs:
    """CPU µs of a delivery by channel, round by round.

    `module`: whose `main` calls `serve`. `channels`: the forms of each channel's subscribers, of
    whom one has none. `options`: of all channels. `tags`: of each publication.
    """
    make_room()
    costs: Costs = {channel: [] for channel, forms in channels.items() if forms}
    with ExitStack() as stack:
        cloud = stack.enter_context(kept())
        its = stack.enter_context(node(cloud, AWS_WAYS["lean"], client=_CLIENT, channel=options))
        clients = Process(module, "clients", its.port)
        stack.callback(clients.end)
        for channel in costs:
            clients.ask("come", channel=channel, forms=channels[channel], count=subscribers)
        for number in range(-1, rounds):
            turn = list(channels)[:: -1 if number % 2 else 1]
            us = {
                each: publication_us(
                    its, clients, each, subscribers if channels[each] else 0, tags or {}
                )
                for each in turn
            }
            if number < 0:
                # The first publications look for the end of the log.
                continue
            for channel, cost in costs.items():
                cost.append((us[channel] - us["nobody"]) / subscribers)
            sys.stderr.write(f"{module}: round {number + 1} of {rounds}\n")
    return costs


def figures(costs: Costs) -> list[Figure]:
    """What is told of `costs`."""
    return [
        Figure(
            f"fan-out to {SUBSCRIBERS:,} of all forms, CPU of a delivery",
            statistics.median(costs["mixed"]),
            statistics.median(costs["plain"]),
            "us",
            "plain subscribers",
            MIXED_MAX,
            rounds=len(costs["mixed"]),
        )
    ]


def measure(short: bool) -> list[Figure]:
    """For the suite. `short`: few rounds."""
    return figures(measured(3 if short else ROUNDS))


def main(arguments: Sequence[str]) -> int:
    """Prints µs, which depend on this machine, and their ratio, which depends on it less."""
    if arguments[:1] == ["clients"]:
        serve(int(arguments[1]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = options_of(parser, arguments, ROUNDS, ROUNDS_MAX)
    end_in_time(_START_S + options.rounds * _ROUND_S)
    costs = measured(options.rounds)
    [found] = figures(costs)
    if options.json:
        sys.stdout.write(json.dumps(asdict(found) | {"ratio": found.ratio}, indent=2) + "\n")
        return 0
    for channel, cost in costs.items():
        say(f"{channel}: server CPU of a delivery", cost, " us")
    ratios = [mixed / plain for mixed, plain in zip(costs["mixed"], costs["plain"], strict=True)]
    say("mixed / plain", ratios)
    return 0


def serve(port: int) -> None:
    """The subscribers' process. Carries out the lines of standard input until they end."""
    widen(1)
    carry_out_lines(Subscribers(port))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
