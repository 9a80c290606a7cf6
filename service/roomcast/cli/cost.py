"""`roomcast cost`: what a fleet costs a month, by service."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from roomcast.cli.arguments import Subparsers, UsageError, add_command, number, whole
from roomcast.cli.terminal import Failed, table
from roomcast.config import Config, load
from roomcast.config.options import (
    MESSAGE_SIZE_LIMIT_MAX,
    PROCESSES_MAX,
    RECEIVE_PAUSE_MS_MAX,
    TOPIC_SHARDS_MAX,
)
from roomcast.cost.bill import COMPUTES, NETWORKS, Bill, Setup, bill_of
from roomcast.cost.calls import Load, Pace, calls_of
from roomcast.cost.prices import INSTANCE_TYPE, PRICES, REGION, Price, UnknownPrice, prices_with

__all__ = ["add"]

_INSTANCES_MAX: Final = 1000
_RATE_MAX: Final = 1e6
_MANY: Final = 100_000_000
_MINUTES_MAX: Final = 100_000
_DAYS_MAX: Final = 3650
_TASK_MAX: Final = 120
_FILE_BYTES_MAX: Final = 64 * 1024
_EXAMPLES: Final = f"""\
examples:
  roomcast cost --instances 2 --rate 10 --channels 100 --clients 1000
  roomcast cost --clients 200 --rate 1 --network shared --instances 1    the VPC has endpoints
  roomcast cost --instances 20 --clients 100000 --rate 500 --formulas
  roomcast cost --prices eu.json --json

Rates are averages over the month. Prices are AWS's of {REGION}, for {INSTANCE_TYPE}, without free
tiers and discounts. --prices takes a JSON object of those that differ, such as
{{"instance_hour": 0.0725, "sns_million": 0.60}}. docs/cost.md has them all, the formulas, what is
counted against them, and what a small team can leave out.
Nothing is asked of AWS.
"""


def add(commands: Subparsers) -> None:
    """Adds `roomcast cost`."""
    parser = add_command(
        commands, "cost", cost, "what a fleet costs in AWS, in dollars a month", _EXAMPLES
    )
    load_of, setup, default = (
        parser.add_argument_group("the load"),
        parser.add_argument_group("the set-up"),
        Load(),
    )

    def count(name: str, of: Any, value: float, kind: Any, about: str) -> None:
        of.add_argument(
            f"--{name}",
            type=kind,
            default=None if value < 0 else value,
            metavar="N",
            help=about if value < 0 else f"{about} (default: {value:g})",
        )

    rate = number(0, _RATE_MAX)
    many = whole(1, _MANY)
    count("rate", load_of, default.publications_s, rate, "publications a second, of all")
    count("channels", load_of, default.channels, many, "that they are spread over")
    count("clients", load_of, default.clients, whole(0, _MANY), "connected at the same time")
    count("subscriptions", load_of, default.subscriptions, many, "channels of each client")
    size = whole(0, MESSAGE_SIZE_LIMIT_MAX)
    count("size", load_of, default.payload_bytes, size, "bytes of a publication")
    stay = number(0.1, _MINUTES_MAX)
    count("stay", load_of, default.stay_s / 60, stay, "minutes that a client stays connected")
    writers = whole(1, _INSTANCES_MAX)
    count("writers", load_of, -1, writers, "nodes that publish in one channel (default: all)")
    load_of.add_argument("--no-history", action="store_true", help="publications are not stored")
    load_of.add_argument("--presence", action="store_true", help="channels have presence")
    load_of.add_argument("--joins", action="store_true", help="channels tell joins and leaves")
    load_of.add_argument("--express", action="store_true", help="channels have express hints")
    count("instances", setup, default.instances, whole(1, _INSTANCES_MAX), "machines, or tasks")
    setup.add_argument("--compute", choices=COMPUTES, default="ec2", help="(default: ec2)")
    setup.add_argument(
        "--network",
        choices=NETWORKS,
        default="endpoints",
        help="how nodes reach AWS: endpoints of their own, those that the VPC shares, a nat "
        "gateway in each zone, or public addresses (default: endpoints)",
    )
    count("zones", setup, 2, whole(1, 6), "availability zones")
    setup.add_argument("--no-load-balancer", action="store_true", help="clients come by themselves")
    setup.add_argument("--internal", action="store_true", help="clients are within AWS")
    count("days", setup, 1, number(0, _DAYS_MAX), "the longest history_ttl")
    count("vcpus", setup, 1, number(0.25, _TASK_MAX), "of a Fargate task")
    count("memory", setup, 2, number(0.5, _TASK_MAX), "GB of a Fargate task")
    of_config = parser.add_argument_group("otherwise as the configuration says")
    processes = whole(1, PROCESSES_MAX)
    count("processes", of_config, -1, processes, "of each instance (node.processes)")
    shards = whole(1, TOPIC_SHARDS_MAX)
    count("topic-shards", of_config, -1, shards, "(aws.topic_shards)")
    pause = whole(0, RECEIVE_PAUSE_MS_MAX)
    count("receive-pause", of_config, -1, pause, "ms (aws.receive_pause_ms)")
    parser.add_argument("--prices", metavar="FILE", help="JSON object of prices that differ")
    parser.add_argument("--formulas", action="store_true", help="print how each line comes about")
    parser.add_argument("--json", action="store_true", help="print an object with everything")


def cost(arguments: argparse.Namespace) -> int:
    """Prints the bill. Raises ConfigError, UsageError and Failed."""
    config = load(arguments.config, os.environ)
    prices = _prices(arguments.prices)
    of, setup = _load(arguments, config), _setup(arguments)
    if setup.compute == "fargate" and of.processes > 1:
        raise UsageError("a task of Fargate has one process: --processes 1, and more --instances")
    bill = bill_of(of, setup, prices, calls_of(of, _pace(arguments, config)))
    print(_json(of, setup, bill, prices) if arguments.json else _text(bill, arguments.formulas))
    return 0


def _load(arguments: argparse.Namespace, config: Config) -> Load:
    return Load(
        instances=arguments.instances,
        # 0 = one for each core, which nobody here knows.
        processes=arguments.processes or config.node.processes or 1,
        publications_s=arguments.rate,
        channels=arguments.channels,
        clients=arguments.clients,
        subscriptions=arguments.subscriptions,
        payload_bytes=arguments.size,
        history=not arguments.no_history,
        presence=arguments.presence,
        joins_and_leaves=arguments.joins,
        express=arguments.express,
        topic_shards=arguments.topic_shards or config.aws.topic_shards,
        writers=arguments.writers or 0,
        stay_s=arguments.stay * 60,
    )


def _setup(arguments: argparse.Namespace) -> Setup:
    return Setup(
        compute=arguments.compute,
        network=arguments.network,
        zones=arguments.zones,
        load_balancer=not arguments.no_load_balancer,
        internet=not arguments.internal,
        vcpus=arguments.vcpus,
        memory_gb=arguments.memory,
        kept_days=arguments.days,
    )


def _pace(arguments: argparse.Namespace, config: Config) -> Pace:
    pause_ms = arguments.receive_pause
    return Pace(
        receive_pause_s=(config.aws.receive_pause_ms if pause_ms is None else pause_ms) / 1000,
        heartbeat_s=config.node.heartbeat_s,
        canary_interval_s=config.node.canary_interval_s,
        tail_check_s=config.node.tail_check_s,
        express_rate_limit=config.aws.express_rate_limit,
    )


def _prices(name: str | None) -> Mapping[str, Price]:
    if name is None:
        return PRICES
    try:
        with Path(name).open("rb") as file:
            found = json.loads(file.read(_FILE_BYTES_MAX))
        if not isinstance(found, dict):
            raise UnknownPrice("it must hold a JSON object")
        return prices_with(found)
    except (ValueError, RecursionError) as error:
        # UnknownPrice says what is wrong; JSON's own errors say where.
        raise Failed(f"{name}: {error}") from error


def _text(bill: Bill, formulas: bool) -> str:
    headings = ["SERVICE", "WHAT", "USD", *(["FORMULA"] if formulas else [])]
    rows: Sequence[Sequence[str]] = [
        [line.service, line.what, f"{line.usd:.2f}", *([line.formula] if formulas else [])]
        for line in bill.lines
    ]
    total = (
        f"{bill.total:,.2f} USD a month: {bill.fixed:,.2f} for the set-up, "
        f"{bill.total - bill.fixed:,.2f} for the load."
    )
    return f"{table(headings, rows, None)}\n\n{total}"


def _json(of: Load, setup: Setup, bill: Bill, prices: Mapping[str, Price]) -> str:
    return json.dumps(
        {
            "load": asdict(of),
            "setup": asdict(setup),
            "calls_a_second": bill.calls.operations,
            "lines": [
                asdict(line) | {"unit": prices[line.price].unit, "at": prices[line.price].usd}
                for line in bill.lines
            ],
            "fixed_usd": bill.fixed,
            "total_usd": bill.total,
        },
        ensure_ascii=False,
        indent=2,
    )
