"""The measured process of the benchmarks: one node over memory behind a real gateway.

Started by benchmarks/rig.py. It reads JSON lines from standard input, answers each on standard
output, and ends with its input. Beside the product's own way to the sockets it has two others for
comparison, over the same connections: see `WAYS`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import structlog
from aiohttp import WSMsgType, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import WebSocketWriter

from benchmarks.rig import CHANNEL, MARK, NO_PING_S, PATH, TOKEN_KEY, quiet, widen
from roomcast.auth.verifier import TokenVerifier
from roomcast.config import ClientConfig, Config, TokenConfig
from roomcast.gateway.admission import Admission
from roomcast.gateway.door import Door
from roomcast.gateway.keys import HEALTH, NODE
from roomcast.gateway.streams import StreamGateway
from roomcast.gateway.websocket import WebSocketGateway
from roomcast.gateway.writer import Writer, text_frame
from roomcast.node.assembly import Assembly, Ports, assemble, build_core
from roomcast.serve.descriptors import places, widened
from roomcast.system import SystemClock, new_id, random_fraction
from roomcast.testing.memory import (
    MemoryChannelTable,
    MemoryLeases,
    MemoryPresence,
    MemoryQueue,
    MemoryTopic,
    MemoryWorld,
)
from roomcast.wire.channels import ChannelOptions, ChannelRules
from roomcast.wire.codes import code_of
from roomcast.wire.encoding import publication_push, sent_of
from roomcast.wire.publication import Publication

__all__ = ["WAYS", "Bench"]

# The names of the ways in the results.
WAYS: Final = ("floor", "roomcast", "roomcast x10", "send_str")
# Publications sent together in `roomcast x10`.
TOGETHER: Final = 10
# It is looked at, and nobody waits for it.
_COMMANDS_PER_S: Final = 1_000_000.0
_MESSAGE_BYTES_MAX: Final = 65_536


class _NoLease:
    """A NodeLease that writes nothing, because no other node would read it."""

    failures = 0

    async def hold(self, queue: str) -> None:  # noqa: ARG002
        return

    async def newest_canary_elsewhere(self) -> int:
        return 0


class Bench:
    """The node and the ways to its clients."""

    def __init__(
        self, queue_bytes_max: int, ping_interval_s: float = NO_PING_S, *, seen: bool = False
    ) -> None:
        """`seen`: channels have presence, joins and leaves as well."""
        world, clock = MemoryWorld(), SystemClock()
        rules = ChannelRules(
            without_namespace=ChannelOptions(
                history_size=100,
                history_ttl_s=300,
                force_recovery=True,
                presence=seen,
                join_leave=seen,
                force_push_join_leave=seen,
            )
        )
        client = ClientConfig(
            insecure=True,
            token=TokenConfig(hmac_secret_key=TOKEN_KEY),
            ping_interval_s=ping_interval_s,
            queue_max_size=queue_bytes_max,
            # It is looked at, and nobody waits for it.
            command_rate_limit=_COMMANDS_PER_S,
        )
        config = replace(Config(), client=client, channel=rules)
        core = build_core(
            config,
            Ports(
                table=MemoryChannelTable(world, clock),
                presence=MemoryPresence(world),
                leases=MemoryLeases(world),
                queue=MemoryQueue(world, 1.0),
                topic=MemoryTopic(world),
                clock=clock,
                new_id=new_id,
                random=random_fraction,
            ),
            node_id="bench",
        )
        self.assembly: Assembly = assemble(
            core,
            lease=_NoLease(),
            verifier=TokenVerifier(client.token, insecure=True),
            listening=True,
        )
        self._ways: Mapping[str, Callable[[int, str], Awaitable[None]]] = {
            "floor": self._floor,
            "roomcast": self._roomcast,
            "roomcast x10": self._roomcast_together,
            "send_str": self._send_str,
        }
        self._known: set[Writer] = set()

    @property
    def writers(self) -> list[Writer]:
        connections = self.assembly.node._connections  # noqa: SLF001  # a benchmark looks inside
        return [each.socket for each in connections if isinstance(each.socket, Writer)]

    async def subscribed(self, count: int) -> dict[str, Any]:
        """Waits until `count` clients are in the channel."""
        while sum(len(each._subscriptions) for each in self.assembly.node._connections) < count:  # noqa: ASYNC110, SLF001
            await asyncio.sleep(0.01)
        self._known = set(self.writers)
        return {}

    async def broadcast(self, way: str, count: int, pad: str) -> dict[str, Any]:
        """Sends `count` publications to everybody. Returns the CPU seconds of this process (user
        and system) and the wall seconds.
        """
        cpu, wall = time.process_time(), time.perf_counter()
        await self._ways[way](count, pad)
        return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}

    async def publish(self, channel: str, count: int, pad: str) -> dict[str, Any]:
        """As `broadcast`, in `channel` and in the product's own way."""
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            await self.assembly.appender.submit(channel, Publication(MARK + pad), 300_000)
        return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}

    async def _roomcast(self, count: int, pad: str) -> None:
        await self.publish(CHANNEL, count, pad)

    async def _roomcast_together(self, count: int, pad: str) -> None:
        for _ in range(count // TOGETHER):
            waiting = [
                self.assembly.appender.submit(CHANNEL, Publication(MARK + pad), 300_000)
                for _ in range(TOGETHER)
            ]
            await asyncio.gather(*waiting)

    async def _floor(self, count: int, pad: str) -> None:
        """Writes the same, prepared bytes to the transports: the cost of asyncio's own write."""
        transports = [writer._transport for writer in self.writers]  # noqa: SLF001
        frame = text_frame(_push(pad))
        for _ in range(count):
            for transport in transports:
                transport.write(frame)
            await asyncio.sleep(0)

    async def _send_str(self, count: int, pad: str) -> None:
        """Writes in the loop of most servers."""
        # As `send_str` of a WebSocketResponse does.
        protocol = BaseProtocol(asyncio.get_running_loop())
        responses = [WebSocketWriter(protocol, writer._transport) for writer in self.writers]  # noqa: SLF001
        for _ in range(count):
            text = _push(pad).decode()
            for response in responses:
                await response.send_frame(text.encode(), WSMsgType.TEXT)

    async def fill(self, below: int) -> dict[str, Any]:
        """Fills the buffer of the last client, which does not read, up to `below` bytes under the
        bound.

        Each publication is sent to that client first: there it could do most harm.
        """
        [writer] = set(self.writers) - self._known
        [group] = self.assembly.dispatcher._hub._rooms[CHANNEL].groups.values()  # noqa: SLF001
        [stalled] = [each for each in group.members if each.sink is writer]
        group.members = {stalled: writer, **group.members}
        transport, frame = writer._transport, text_frame(b"{}" + b" " * 8190)  # noqa: SLF001
        while transport.get_write_buffer_size() + len(frame) < writer.queue_bytes_max - below:
            transport.write(frame)
            # The kernel takes as many bytes as it has room for.
            await asyncio.sleep(0)
        return {"waits": transport.get_write_buffer_size()}

    async def gone(self) -> dict[str, Any]:
        """Waits until the client that was cut off is gone. Returns how it was closed."""
        [writer] = set(self.writers) - self._known
        why = writer.closed_with
        while writer in self.writers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return {"closed_with": None if why is None else code_of(why).code}

    async def do(self, command: str) -> dict[str, Any]:
        asked = json.loads(command)
        answer: dict[str, Any] = await getattr(self, asked.pop("do"))(**asked)
        return answer


def _push(pad: str) -> bytes:
    return publication_push(CHANNEL, sent_of(Publication(MARK + pad, offset=1000), 0).line)


async def main(queue_bytes_max: int, core: int, *, seen: bool = False) -> None:
    """Serves until the end of standard input."""
    widen(core)
    quiet(structlog)
    bench = Bench(queue_bytes_max, seen=seen)
    # Otherwise joins and leaves wait for it, and soon find no room.
    bench.assembly.allowance.share(1)
    sending = asyncio.create_task(bench.assembly.broadcaster.run())
    app = web.Application()
    app[NODE], app[HEALTH] = bench.assembly.node, bench.assembly.node.health
    admission = Admission(allowed_origins=())
    gateway = WebSocketGateway(
        admission, message_size_limit=_MESSAGE_BYTES_MAX, queue_bytes_max=queue_bytes_max
    )
    app.router.add_get(PATH, gateway.handle)
    app.router.add_get("/connection/uni_websocket", gateway.handle_unidirectional)
    StreamGateway(
        admission, message_size_limit=_MESSAGE_BYTES_MAX, queue_bytes_max=queue_bytes_max
    ).add_routes(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    assert runner.server is not None
    Door(runner.server, listening, places_max=places(widened(), 0).sockets).open()
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _answer({"port": listening.getsockname()[1], "pid": os.getpid()})
    while line := await commands.readline():
        _answer(await bench.do(line.decode()))
    assert not sending.done()
    # The clients are other processes and may be gone already: no clean-up is needed.
    os._exit(0)


def _answer(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), seen=sys.argv[3:] == ["seen"]))
