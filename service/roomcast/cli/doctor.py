"""`roomcast doctor`: tests configuration, permissions and the whole pipeline."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from roomcast.cli.arguments import Subparsers, add_command
from roomcast.cli.over_aws import connected
from roomcast.cli.terminal import COLOURS, Failed, has_colours
from roomcast.config import Config, ConfigError, load
from roomcast.observe.redaction import json_printable, printable, without_passwords

if TYPE_CHECKING:
    from roomcast.cli.doctor_checks import Check

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast doctor --config /etc/roomcast.toml
  roomcast doctor --json | jq '.[] | select(.outcome | IN("warning", "failed", "skipped"))'

Does what an instance does, under the same credentials: reads and writes the tables, makes a queue
and subscribes it, and sends a message and an item round. Then it removes what it made, and says
what one channel can take. Run it where instances run, as they run.
Exit code 1 when a check failed.
"""

_COLOURS: Final = {
    "ok": "green",
    "warning": "yellow",
    "failed": "red",
    "skipped": "yellow",
    "note": "bold",
}
_OUTCOME_CHARS: Final = 7
_NAME_CHARS: Final = 30


def add(commands: Subparsers) -> None:
    """Adds `roomcast doctor`."""
    parser = add_command(
        commands,
        "doctor",
        doctor,
        "try out configuration, permissions and the pipeline from end to end",
        _EXAMPLES,
    )
    parser.add_argument(
        "--json", action="store_true", help="print an array with an object for each check"
    )


def doctor(arguments: argparse.Namespace) -> int:
    """Runs the checks. Raises ConfigError, and Failed when a check failed."""
    config = load(arguments.config, os.environ)
    if not config.aws.topic_arn:
        raise ConfigError(
            "aws.topic_arn is not set: give the ARN of the SNS topic that connects the instances"
        )
    # The checks report every failure, and the log would repeat it.
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    checks = asyncio.run(_checks(config, as_json=arguments.json))
    if arguments.json:
        told = json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=2)
        print(json_printable(without_passwords(told)))
    failed = [check.name for check in checks if check.outcome == "failed"]
    if failed:
        tried = sum(check.outcome != "note" for check in checks)
        raise Failed(f"{len(failed)} of {tried} checks failed: {', '.join(failed)}")
    return 0


async def _checks(config: Config, *, as_json: bool) -> list[Check]:
    from roomcast.cli.doctor_checks import Doctor
    from roomcast.serve.aws_ports import aws_ports, instance_queue
    from roomcast.system import SystemClock, new_nonce

    node = f"doctor-{new_nonce()}"
    async with connected(config) as clients:
        queue = instance_queue(config.aws, clients, lambda: node)
        ports = aws_ports(config, clients, SystemClock(), queue)
        return await Doctor(config, ports, node=node, tell=_unseen if as_json else _print).run()


def _print(check: Check) -> None:
    """Prints at once, because some checks take seconds."""
    outcome = f"{check.outcome:{_OUTCOME_CHARS}}"
    if has_colours(sys.stdout):
        outcome = f"\x1b[{COLOURS[_COLOURS[check.outcome]]}m{outcome}\x1b[0m"
    took = f" ({check.took_ms} ms)" if check.outcome in ("ok", "warning") else ""
    told = printable(without_passwords(check.told))
    print(f"{outcome}  {check.name:{_NAME_CHARS}}  {told}{took}", flush=True)


def _unseen(check: Check) -> None:
    pass
