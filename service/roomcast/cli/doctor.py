"""`roomcast doctor`: reads the set-up, and tests permissions and the whole pipeline."""

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

from roomcast.cli.arguments import (
    LOOPBACK,
    PORT_MAX,
    Subparsers,
    UsageError,
    add_command,
    number,
    text,
    whole,
)
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
  roomcast doctor --port 8000                  also: could an instance listen there?
  roomcast doctor --json | jq '.[] | select(.outcome | IN("warning", "failed", "skipped"))'

Reads how the deployment is set up, as far as these credentials may: tables, stream, Lambda, topic,
queues of the nodes, keys, clocks, releases. What is wrong has the command that mends it below.
Then it does what an instance does: reads and writes the tables, makes a queue and subscribes it,
and sends a message and an item round. It removes what it made, and says what one channel can take.
Run it where instances run, as they run; and where it may not read the set-up, once more as somebody
who may.

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
        "--port",
        type=whole(1, PORT_MAX),
        metavar="N",
        help="look whether an instance could listen at this port",
    )
    parser.add_argument(
        "--host",
        type=text,
        metavar="HOST",
        help=f"with --port: at this address (default: {LOOPBACK})",
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
    if arguments.host is not None and arguments.port is None:
        raise UsageError("--host goes with --port")
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
    found = asyncio.run(_set_up(config, as_json=arguments.json))
    if arguments.port is not None:
        found.append(_port(arguments.host or LOOPBACK, arguments.port, as_json=arguments.json))
    checks = asyncio.run(_checks(config, as_json=arguments.json))
    return _end([*found, *checks], as_json=arguments.json)


def _end(checks: Sequence[Check | Finding], *, as_json: bool) -> int:
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


async def _set_up(config: Config, *, as_json: bool) -> list[Finding]:
    """What was read of the set-up. Before the checks, whose canary would hide another's."""
    from roomcast import __version__
    from roomcast.auth.verifier import HMAC_KEY_BYTES_MIN
    from roomcast.aws.schema import channels_table, presence_table, table_schemas
    from roomcast.aws.setup import read_setup
    from roomcast.serve.aws_ports import aws_ports, instance_queue, region_of
    from roomcast.setup.checks import SetupChecks, WantedTable
    from roomcast.system import SystemClock

    aws, region = config.aws, region_of(config.aws)
    tables = [
        WantedTable(
            schema.name,
            schema.name == channels_table(aws.table_prefix),
            schema.ttl_attribute or "",
            has_events=schema.name == presence_table(aws.table_prefix),
        )
        for schema in table_schemas(aws.table_prefix)
    ]
    clock = SystemClock()
    async with (
        connected(config) as clients,
        read_setup(region=region, endpoint_url=aws.endpoint_url or None) as reader,
    ):
        ports = aws_ports(config, clients, clock, instance_queue(aws, clients, lambda: ""))
        checks = SetupChecks(
            config,
            reader,
            ports.leases,
            ports.table,
            clock,
            tables,
            _unseen if as_json else _print,
            region=region or "this region",
            version=__version__,
            key_bytes_min=HMAC_KEY_BYTES_MIN,
        )
        return await checks.run()


def _port(host: str, port: int, *, as_json: bool) -> Finding:
    from roomcast.cli.listening import port_finding

    finding = port_finding(host, port)
    if not as_json:
        _print(finding)
    return finding


async def _checks(config: Config, *, as_json: bool) -> list[Check]:
    from roomcast.cli.doctor_checks import Doctor
    from roomcast.serve.aws_ports import aws_ports, instance_queue
    from roomcast.setup.rules import DOCTOR
    from roomcast.system import SystemClock, new_nonce

    node = f"{DOCTOR}{new_nonce()}"
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
    if ask := check.ask:
        print(f"{'':{_OUTCOME_CHARS}}  {printable(without_passwords(ask))}", flush=True)


def _unseen(check: Check | Finding) -> None:
    pass
