"""`roomcast drain`: has one node drain and end, through any server's HTTP API."""

from __future__ import annotations

import argparse
import json
import time
from typing import Final

from roomcast.cli.arguments import Subparsers, add_address, add_command, text, whole
from roomcast.cli.server_api import add_key, call, understood
from roomcast.cli.terminal import Failed, progress_line
from roomcast.observe.redaction import json_printable, printable

__all__ = ["LOOK_S", "WAIT_S", "add"]

_EXAMPLES: Final = """\
examples:
  roomcast drain 6f2c1f0e-…
  roomcast drain 6f2c1f0e-… --wait 0 --url http://10.0.0.5:8000

NODE is what `roomcast nodes` shows. The server at --url passes the order on to it, so it need not
be that node. It then does what it does at SIGTERM: it lets nobody in, closes its clients over
node.drain_s, gives everything back and ends with exit code 0. Whoever starts nodes decides what
follows: systemd and the supervisor of --processes leave it, ECS starts another task.
Waits until the node is gone, unless --wait says otherwise. The key as for `roomcast publish`.
"""

# Seconds between two looks at how far it is: each costs a read of the leases.
LOOK_S: Final = 2.0
# Longer than the longest drain by default, also when calls of AWS hang.
WAIT_S: Final = 300
_WAIT_MAX_S: Final = 24 * 3600


def add(commands: Subparsers) -> None:
    """Adds `roomcast drain`."""
    parser = add_command(
        commands, "drain", drain, "have one node drain and end, through any server", _EXAMPLES
    )
    parser.add_argument("node", type=text, metavar="NODE", help="its id, as `roomcast nodes` tells")
    add_address(parser)
    add_key(parser)
    parser.add_argument(
        "--wait",
        type=whole(0, _WAIT_MAX_S),
        default=WAIT_S,
        metavar="S",
        help=f"seconds to wait until it is gone; 0 = only give the order (default: {WAIT_S})",
    )


def drain(arguments: argparse.Namespace) -> int:
    """Gives the order, and waits for the end. Raises ConfigError and Failed."""
    answer = call(arguments, "drain", {"node": arguments.node})
    with understood(arguments.url):
        connections, is_here = int(answer["num_clients"]), bool(answer["here"])
    # Who drains takes no further requests, so there is nobody to ask.
    has_ended = not is_here and bool(arguments.wait) and _ended(arguments, connections)
    if arguments.json:
        told = {
            "node": arguments.node,
            "num_clients": connections,
            "here": is_here,
            "ended": has_ended,
        }
        print(json_printable(json.dumps(told, ensure_ascii=False)))
        return 0
    had = f"it had {_counted(connections)}"
    if has_ended:
        print(printable(f"{arguments.node} has ended; {had}."))
    elif is_here:
        print(printable(f"{arguments.node} drains; {had}. It answered itself: ask another server."))
    else:
        print(printable(f"{arguments.node} drains; {had}."))
    return 0


def _ended(arguments: argparse.Namespace, left: int) -> bool:
    """Waits until the node has ended. Raises Failed when it takes too long."""
    until_s, at_first = time.monotonic() + arguments.wait, left
    with progress_line() as draw:
        while True:
            draw(1 - left / max(at_first, left, 1), f"{_counted(left)} left")
            if time.monotonic() >= until_s:
                raise Failed(
                    f"{arguments.node} has not ended within {arguments.wait} s: {_counted(left)} "
                    "left"
                )
            time.sleep(LOOK_S)
            with understood(arguments.url):
                nodes = call(arguments, "info", {})["nodes"]
                if all(node["uid"] != arguments.node for node in nodes):
                    return True
            left = _left(arguments, left)


def _left(arguments: argparse.Namespace, before: int) -> int:
    """How many connections it has left. `before`: the answer if it does not say, as at its end."""
    try:
        with understood(arguments.url):
            # The lease is as old as the last heartbeat; the node knows better.
            return int(call(arguments, "drain", {"node": arguments.node})["num_clients"])
    except Failed:
        return before


def _counted(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"
