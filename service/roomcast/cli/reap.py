"""`roomcast reap`: removes the remains of dead nodes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.cli.over_aws import connected
from roomcast.cli.terminal import Failed, has_colours, progress, table
from roomcast.config import Config, ConfigError, load
from roomcast.observe.redaction import json_printable, without_passwords

if TYPE_CHECKING:
    from roomcast.reaper.reaper import Report

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast reap --dry-run --config /etc/roomcast.toml    what would be removed, and why
  roomcast reap --config /etc/roomcast.toml

Removes what dead nodes left behind: queues, subscriptions, presence entries, leases. A node is dead
when its lease ended half a minute ago. Queues without a lease go when their tags say that they are
of this deployment, and they are older than 15 minutes. It may run at any time, and more than once.
Exit code 1 when a step failed; the next run tries again.
"""

_OUTCOME_COLOURS: Final = {"found": "yellow", "removed": "green", "spared": "", "failed": "red"}


def add(commands: Subparsers) -> None:
    """Adds `roomcast reap`."""
    parser = add_command(
        commands,
        "reap",
        reap,
        "clean up after nodes that died: queues, subscriptions, presence, leases",
        _EXAMPLES,
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be removed, and why"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was found and done as an object"
    )


def reap(arguments: argparse.Namespace) -> int:
    """Cleans up, or lists what it would remove. Raises ConfigError, and Failed when a step
    failed.
    """
    config = load(arguments.config, os.environ)
    if not config.aws.topic_arn:
        raise ConfigError(
            "aws.topic_arn is not set: it tells this deployment's queues from others'"
        )
    report = asyncio.run(_reap(config, dry_run=arguments.dry_run))
    if arguments.json:
        text = json.dumps(report.as_json(), ensure_ascii=False, indent=2)
        print(json_printable(without_passwords(text)))
    else:
        print(_report_text(report))
    if report.failed:
        first = report.failures[0]
        steps = "1 step" if report.failed == 1 else f"{report.failed} steps"
        raise Failed(f"{steps} failed; first {first.step} of {first.what}: {first.reason}")
    return 0


async def _reap(config: Config, *, dry_run: bool) -> Report:
    from roomcast.aws.schema import nodes_table
    from roomcast.fleet.deployment import Deployment
    from roomcast.ports import PortError
    from roomcast.reaper.over_aws import reaper_over_aws
    from roomcast.system import SystemClock

    deployment = Deployment(config.aws.topic_arn, config.aws.queue_prefix, config.aws.topic_shards)
    name = nodes_table(config.aws.table_prefix)
    async with connected(config) as clients:
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


def _report_text(report: Report) -> str:
    rows = [(each.outcome, "node", each.node, each.why, _resources(each)) for each in report.nodes]
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


def _resources(node: Any) -> str:
    """The resources that go with a node, in words."""
    parts = [f"queue {node.queue}"] if node.queue else []
    for count, what in (
        (len(node.subscriptions), "subscription"),
        (node.channels, "channel"),
        (node.members, "member"),
    ):
        if count:
            parts.append(f"{count} {what}{'s' if count > 1 else ''}")
    return ", ".join(parts)
