"""`roomcast nodes`: lists the fleet from its leases."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.cli.over_aws import connected
from roomcast.cli.terminal import Failed, has_colours, span, table
from roomcast.config import Config, load
from roomcast.observe.redaction import json_printable

if TYPE_CHECKING:
    from roomcast.fleet.lease_record import Lease

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast nodes --config /etc/roomcast.toml
  roomcast nodes --json | jq '.[] | select(.standing == "live") | .node'

One line a lease. live: heard of within node.lease_ttl_s. expired: not, so it will be cleaned up
after. reaped: somebody is doing that.
LAG is how late the newest message came out of the node's queue, SKEW how far the node's clock is
ahead of the queue's ("-": behind). Leases go by clocks: seconds are a matter for NTP.
"""

_NODE_COLUMNS: Final = (
    "NODE", "STANDING", "STATE", "INSTANCE", "VERSION", "AGE",
    "HEARTBEAT", "CONNECTIONS", "CHANNELS", "LAG", "SKEW", "QUEUE",
)  # fmt: skip
_STANDING_COLOURS: Final = {"live": "green", "expired": "red", "reaped": "yellow"}
# As long as the names of queues may be. A row that another program wrote must not make the columns
# of all others wider than that.
_CELL_CHARS_MAX: Final = 80
# Live nodes come first.
_STANDING_ORDER: Final = ("live", "expired", "reaped")


def add(commands: Subparsers) -> None:
    """Adds `roomcast nodes`."""
    parser = add_command(
        commands,
        "nodes",
        nodes,
        "list the nodes: which live, what they hold, how far behind they are",
        _EXAMPLES,
    )
    parser.add_argument(
        "--json", action="store_true", help="print an array with an object for each lease"
    )


def nodes(arguments: argparse.Namespace) -> int:
    """Prints the leases. Raises ConfigError and Failed."""
    config = load(arguments.config, os.environ)
    from roomcast.system import SystemClock

    leases = asyncio.run(_leases(config))
    rows = _told(leases, SystemClock().now_ms())
    if arguments.json:
        print(json_printable(json.dumps(rows, ensure_ascii=False, indent=2)))
    elif rows:
        print(_nodes_table(rows, SystemClock().now_ms()))
    else:
        print("No node has a lease.")
    return 0


async def _leases(config: Config) -> Sequence[Lease]:
    from roomcast.aws.leases import DynamoLeases
    from roomcast.aws.schema import nodes_table
    from roomcast.ports import PortError

    name = nodes_table(config.aws.table_prefix)
    async with connected(config) as clients:
        try:
            return await DynamoLeases(clients.tables, name).all()
        except PortError as error:
            # AWS's own messages seldom name the missing table.
            raise Failed(f"table {name}: {error}") from error


def _told(leases: Sequence[Lease], now_ms: int) -> list[dict[str, Any]]:
    """The rows for the leases: live nodes first, and the oldest of them first."""
    from roomcast.fleet.lease_record import standing

    found = [asdict(lease) | {"standing": standing(lease, now_ms)} for lease in leases]
    return sorted(
        found,
        key=lambda row: (_STANDING_ORDER.index(row["standing"]), row["started_at"], row["node"]),
    )


def _nodes_table(rows: Sequence[Mapping[str, Any]], now_ms: int) -> str:
    cells = [
        (
            row["node"],
            row["standing"],
            row["state"],
            row["instance"],
            row["version"],
            span(now_ms - row["started_at"]),
            span(now_ms - row["heartbeat_at"]),
            str(row["connections"]),
            str(row["channels"]),
            f"{row['lag_ms']} ms",
            f"{row['skew_ms']:+} ms",
            row["queue"],
        )
        for row in rows
    ]
    colours = (lambda row: _STANDING_COLOURS[row[1]]) if has_colours(sys.stdout) else None
    return table(_NODE_COLUMNS, [[_cut(cell) for cell in row] for row in cells], colours)


def _cut(cell: str) -> str:
    """The cell, or its beginning: `--json` has the whole."""
    return cell if len(cell) <= _CELL_CHARS_MAX else f"{cell[: _CELL_CHARS_MAX - 1]}…"
