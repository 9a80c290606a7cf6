"""Every frame and every stored item of simulated runs,
so that two versions of the code can be compared.

`python -m tests.simulation.record --seeds 200` prints one line a seed:
how many frames and items there were, and the SHA-256 of all of them.
`--show SEED` prints the frames and items themselves, for `diff`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import orjson
import structlog

from roomcast.aws.leases import lease_attributes
from roomcast.aws.presence import entry_item
from tests.simulation.clients import ClientSocket, SimulatedClient
from tests.simulation.scenario import Scenario, perform
from tests.simulation.world import SimulatedWorld

__all__ = ["frames_and_items"]

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def frames_and_items(seed: int) -> list[str]:
    """The frames of the run of `seed` in their order, then the items that it stored."""
    lines: list[str] = []
    scenario = Scenario(seed)
    with _frames(lines.append):
        perform(scenario)
    lines.extend(_items(scenario.world))
    return _with_ids_numbered(lines)


@contextmanager
def _frames(note: Callable[[str], None]) -> Iterator[None]:
    """What clients send and get, as long as the context lasts."""
    sent, written = ClientSocket.send, SimulatedClient._write

    def send(socket: ClientSocket, frame: bytes) -> None:
        if socket.open:
            note(f"{socket.client.name} < {frame!r}")
        sent(socket, frame)

    def write(client: SimulatedClient, frame: bytes) -> None:
        note(f"{client.name} > {frame!r}")
        written(client, frame)

    ClientSocket.send, SimulatedClient._write = send, write  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        ClientSocket.send, SimulatedClient._write = sent, written  # type: ignore[method-assign]


def _items(world: SimulatedWorld) -> Iterator[str]:
    """All log items and heads that there ever were;
    of the other tables what is there at the end.
    """
    for item in world.stream:
        yield _line("log", item.attributes())
    for head in world.heads:
        yield _line("head", head.attributes())
    for _, key in sorted(world.keys.items()):
        yield _line("key", key.attributes())
    for _, lease in sorted(world.leases.items()):
        yield _line("lease", lease_attributes(lease))
    for channel, members in sorted(world.presence.items()):
        for _, member in sorted(members.items()):
            yield _line("member", entry_item(channel, member))


def _with_ids_numbered(lines: list[str]) -> list[str]:
    """Connections' ids are the only thing that no seed repeats:
    `id-1` stands for the first of them.
    """
    numbers: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return numbers.setdefault(found.group(), f"id-{len(numbers) + 1}")

    return [_UUID.sub(number, line) for line in lines]


def _line(kind: str, attributes: dict[str, Any]) -> str:
    return f"{kind} {orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS).decode()}"


def _digest(seed: int) -> str:
    lines = frames_and_items(seed)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    frames = sum(line.startswith("client-") for line in lines)
    return f"{seed} {frames} {len(lines) - frames} {digest}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.record", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=200, metavar="N", help="how many (default: 200)"
    )
    parser.add_argument("--show", type=int, metavar="SEED", help="all frames and items of one run")
    arguments = parser.parse_args()
    quiet = partial(structlog.configure, wrapper_class=structlog.make_filtering_bound_logger(50))
    if arguments.show is not None:
        quiet()
        sys.stdout.write("\n".join(frames_and_items(arguments.show)) + "\n")
        return 0
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        for line in pool.map(_digest, range(arguments.seeds)):
            sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
