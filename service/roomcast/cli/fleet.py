"""`roomcast nodes` and `roomcast reap`: the fleet as its leases tell, and what dead nodes left behind."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from roomcast.cli.terminal import Failed, has_colours, progress, span, table
from roomcast.config import Config, ConfigError, load
from roomcast.observe.redaction import json_printable

if TYPE_CHECKING:
    from roomcast.aws.clients import AwsClients
    from roomcast.fleet.holdings import Lease
    from roomcast.reaper.reaper import Report

__all__ = ["EXAMPLES", "nodes", "reap"]

EXAMPLES: Final[Mapping[str, str]] = {
    "nodes": """\
examples:
  roomcast nodes --config /etc/roomcast.toml
  roomcast nodes --json | jq '.[] | select(.standing == "live") | .node'

One line a lease. live: heard of within node.lease_ttl_s. expired: not, so it will be cleaned up after.
reaped: somebody is doing that. LAG is how late the newest message came out of the node's queue, SKEW how far
the node's clock is ahead of the queue's ("-": behind). Leases go by clocks: seconds are a matter for NTP.
""",
    "reap": """\
examples:
  roomcast reap --dry-run --config /etc/roomcast.toml    what would be removed, and why
  roomcast reap --config /etc/roomcast.toml

Removes what dead nodes left behind: queues, subscriptions, presence entries, leases. A node is dead when its
lease ended half a minute ago. Queues without a lease go when their tags say that they are of this
deployment, and they are older than 15 minutes. It may run at any time, and more than once.
Exit code 1 when a step failed; the next run tries again.
""",
}

_NODE_COLUMNS: Final = (
    "NODE", "STANDING", "STATE", "INSTANCE", "VERSION", "AGE", "HEARTBEAT", "CONNECTIONS", "CHANNELS", "LAG", "SKEW", "QUEUE",
)  # fmt: skip
_STANDING_COLOURS: Final = {"live": "green", "expired": "red", "reaped": "yellow"}
_OUTCOME_COLOURS: Final = {"found": "yellow", "removed": "green", "spared": "", "failed": "red"}
# Those that serve first.
_STANDING_ORDER: Final = ("live", "expired", "reaped")


def nodes(arguments: argparse.Namespace) -> int:
    """Print the leases. Raises ConfigError and Failed."""
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


def reap(arguments: argparse.Namespace) -> int:
    """Clean up, or say what would be. Raises ConfigError, and Failed when a step failed."""
    config = load(arguments.config, os.environ)
    if not config.aws.topic_arn:
        raise ConfigError(
            "aws.topic_arn is not set: it tells this deployment's queues from others'"
        )
    report = asyncio.run(_reap(config, dry_run=arguments.dry_run))
    if arguments.json:
        print(json_printable(json.dumps(report.as_json(), ensure_ascii=False, indent=2)))
    else:
        print(_report_text(report))
    if report.failed:
        first = report.failures[0]
        steps = "1 step" if report.failed == 1 else f"{report.failed} steps"
        raise Failed(f"{steps} failed; first {first.step} of {first.what}: {first.reason}")
    return 0


@asynccontextmanager
async def _aws(config: Config) -> AsyncIterator[AwsClients]:
    from roomcast.aws.clients import connect
    from roomcast.serve.aws_ports import region_of

    async with connect(
        region=region_of(config.aws), endpoint_url=config.aws.endpoint_url or None
    ) as clients:
        yield clients


async def _leases(config: Config) -> Sequence[Lease]:
    from roomcast.aws.leases import DynamoLeases
    from roomcast.aws.schema import nodes_table
    from roomcast.ports import PortError

    name = nodes_table(config.aws.table_prefix)
    async with _aws(config) as clients:
        try:
            return await DynamoLeases(clients.tables, name).all()
        except PortError as error:
            # AWS's own words seldom name what is missing.
            raise Failed(f"table {name}: {error}") from error


async def _reap(config: Config, *, dry_run: bool) -> Report:
    from roomcast.aws.schema import nodes_table
    from roomcast.fleet.holdings import Deployment
    from roomcast.ports import PortError
    from roomcast.reaper.over_aws import reaper_over_aws
    from roomcast.system import SystemClock

    deployment = Deployment(config.aws.topic_arn, config.aws.queue_prefix)
    name = nodes_table(config.aws.table_prefix)
    async with _aws(config) as clients:
        reaper = reaper_over_aws(
            deployment,
            config.aws.table_prefix,
            SystemClock(),
            dynamodb=clients.tables,
            sns=clients.sns,
            sqs=clients.sqs,
            tell=progress(),
        )
        try:
            return await reaper.run(dry_run=dry_run)
        except PortError as error:
            raise Failed(f"table {name}: {error}") from error


def _told(leases: Sequence[Lease], now_ms: int) -> list[dict[str, Any]]:
    """What is told of each lease, those that serve first, the oldest of them first."""
    from roomcast.fleet.holdings import standing

    told = [asdict(lease) | {"standing": standing(lease, now_ms)} for lease in leases]
    return sorted(
        told,
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
    return table(_NODE_COLUMNS, cells, colours)


def _report_text(report: Report) -> str:
    rows = [(each.outcome, "node", each.node, each.why, _holdings(each)) for each in report.nodes]
    rows += [(each.outcome, "queue", each.queue, each.why, "") for each in report.queues]
    rows += [
        (each.outcome, "subscription", each.queue, each.why, "") for each in report.subscriptions
    ]
    live = "1 node lives" if report.live == 1 else f"{report.live} nodes live"
    if not rows:
        return f"Nothing to clean up; {live}."
    colours = (lambda row: _OUTCOME_COLOURS[row[0]]) if has_colours(sys.stdout) else None
    ending = (
        f"Nothing was changed (--dry-run); {live}."
        if report.dry_run
        else f"{live[0].upper()}{live[1:]}."
    )
    return f"{table(('OUTCOME', 'WHAT', 'NAME', 'WHY', 'WITH'), rows, colours)}\n{ending}"


def _holdings(node: Any) -> str:
    """What goes with a node, in words."""
    parts = [f"queue {node.queue}"] if node.queue else []
    for count, what in (
        (len(node.subscriptions), "subscription"),
        (node.channels, "channel"),
        (node.members, "member"),
    ):
        if count:
            parts.append(f"{count} {what}{'s' if count > 1 else ''}")
    return ", ".join(parts)
