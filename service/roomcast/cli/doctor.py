"""`roomcast doctor`: tests configuration, permissions and the whole pipeline."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from roomcast.cli.arguments import Subparsers, UsageError, add_command, number, text, whole
from roomcast.cli.over_aws import connected
from roomcast.cli.terminal import COLOURS, Failed, has_colours
from roomcast.config import Config, ConfigError, load
from roomcast.observe.redaction import json_printable, printable, without_passwords

if TYPE_CHECKING:
    from roomcast.account.rules import Finding, Needed
    from roomcast.cli.doctor_checks import Check

__all__ = ["add"]

_EXAMPLES: Final = """\
examples:
  roomcast doctor --account --instances 4      before the first deployment, from anywhere
  roomcast doctor --config /etc/roomcast.toml
  roomcast doctor --json | jq '.[] | select(.outcome | IN("warning", "failed", "skipped"))'

Does what an instance does, under the same credentials: reads and writes the tables, makes a queue
and subscribes it, and sends a message and an item round. Then it removes what it made, and says
what one channel can take. Run it where instances run, as they run.

With --account it reads the account and the region in place of that, and changes nothing: quotas,
zones, endpoints, keys; with a command that asks for what is missing. Nothing need be there yet.
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


_INSTANCES_MAX: Final = 1000
_TASK_VCPUS_MAX: Final = 16
# Options by name: their type, their default as text, and what they are.
_OF_ACCOUNT: Final[dict[str, tuple[Any, str, str]]] = {
    "instances": (whole(1, _INSTANCES_MAX), "10", "at most (MaxInstances), or tasks"),
    "instance-type": (text, "c7g.medium", "InstanceType"),
    "bucket": (text, "", "ArtifactBucket, if it is there"),
    "vcpus": (number(0.25, _TASK_VCPUS_MAX), "1", "of a task, with --fargate"),
}
_SWITCHES: Final[dict[str, str]] = {
    "existing-vpc": "the deployment goes into a VPC that has its endpoints",
    "nat": "that VPC gets a NAT gateway in each of two zones",
    "fargate": "on Fargate in place of EC2",
}


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
    parser.add_argument(
        "--account",
        action="store_true",
        help="check the account and the region before the first deployment",
    )
    account = parser.add_argument_group("with --account")
    for name, about in _OF_ACCOUNT.items():
        kind, value, help_ = about
        account.add_argument(
            f"--{name}",
            type=kind,
            metavar="N" if kind is not text else "NAME",
            help=f"{help_} (default: {value})" if value else help_,
        )
    for name, help_ in _SWITCHES.items():
        account.add_argument(f"--{name}", action="store_true", help=help_)


def doctor(arguments: argparse.Namespace) -> int:
    """Runs the checks. Raises ConfigError, UsageError, and Failed when a check failed."""
    config = load(arguments.config, os.environ)
    if arguments.account:
        return _account(arguments, config)
    for name in (*_OF_ACCOUNT, *_SWITCHES):
        if getattr(arguments, name.replace("-", "_")):
            raise UsageError(f"--{name} goes with --account")
    if not config.aws.topic_arn:
        raise ConfigError(
            "aws.topic_arn is not set: give the ARN of the SNS topic that connects the instances"
        )
    # The checks report every failure, and the log would repeat it.
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    checks = asyncio.run(_checks(config, as_json=arguments.json))
    return _end(checks, as_json=arguments.json)


def _end(checks: Sequence[Check] | Sequence[Finding], *, as_json: bool) -> int:
    if as_json:
        told = json.dumps([asdict(check) for check in checks], ensure_ascii=False, indent=2)
        print(json_printable(without_passwords(told)))
    failed = [check.name for check in checks if check.outcome == "failed"]
    if failed:
        tried = sum(check.outcome != "note" for check in checks)
        raise Failed(f"{len(failed)} of {tried} checks failed: {', '.join(failed)}")
    return 0


def _account(arguments: argparse.Namespace, config: Config) -> int:
    """Reads the account. Raises Failed when something is missing."""
    from roomcast.account.rules import Needed

    default = Needed()
    most = arguments.instances or default.most
    needed = Needed(
        instance_type=arguments.instance_type or default.instance_type,
        desired=min(default.desired, most),
        most=most,
        makes_vpc=not arguments.existing_vpc,
        has_nat=arguments.nat,
        on_fargate=arguments.fargate,
        vcpus=arguments.vcpus or default.vcpus,
        bucket=arguments.bucket or "",
    )
    findings = asyncio.run(_findings(config, needed, as_json=arguments.json))
    return _end(findings, as_json=arguments.json)


async def _findings(config: Config, needed: Needed, *, as_json: bool) -> list[Finding]:
    from roomcast.account.checks import AccountChecks
    from roomcast.aws.account import read_account
    from roomcast.serve.aws_ports import region_of

    async with read_account(
        region=region_of(config.aws), endpoint_url=config.aws.endpoint_url or None
    ) as account:
        return await AccountChecks(account, needed, _unseen if as_json else _print).run()


async def _checks(config: Config, *, as_json: bool) -> list[Check]:
    from roomcast.cli.doctor_checks import Doctor
    from roomcast.serve.aws_ports import aws_ports, instance_queue
    from roomcast.system import SystemClock, new_nonce

    node = f"doctor-{new_nonce()}"
    async with connected(config) as clients:
        queue = instance_queue(config.aws, clients, lambda: node)
        ports = aws_ports(config, clients, SystemClock(), queue)
        return await Doctor(config, ports, node=node, tell=_unseen if as_json else _print).run()


def _print(check: Check | Finding) -> None:
    """Prints at once, because some checks take seconds."""
    outcome = f"{check.outcome:{_OUTCOME_CHARS}}"
    if has_colours(sys.stdout):
        outcome = f"\x1b[{COLOURS[_COLOURS[check.outcome]]}m{outcome}\x1b[0m"
    took_ms = getattr(check, "took_ms", None)
    is_timed = check.outcome in ("ok", "warning") and took_ms is not None
    took = f" ({took_ms} ms)" if is_timed else ""
    told = printable(without_passwords(check.told))
    print(f"{outcome}  {check.name:{_NAME_CHARS}}  {told}{took}", flush=True)
    if ask := getattr(check, "ask", ""):
        print(f"{'':{_OUTCOME_CHARS}}  {printable(ask)}", flush=True)


def _unseen(check: Check | Finding) -> None:
    pass
