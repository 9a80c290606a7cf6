"""The bill of a load and a set-up: dollars a month, by service.

Pure: numbers in, lines out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from roomcast.cost.calls import Calls, Load, calls_of
from roomcast.cost.prices import Price

__all__ = [
    "ALARMS",
    "COMPUTES",
    "ENDPOINTS",
    "HOURS_A_MONTH",
    "METRICS",
    "NETWORKS",
    "VOLUME_GB",
    "Bill",
    "Compute",
    "Line",
    "Network",
    "Setup",
    "bill_of",
]

Compute = Literal["ec2", "fargate"]
Network = Literal["endpoints", "shared", "nat", "public"]
COMPUTES: Final[tuple[Compute, ...]] = ("ec2", "fargate")
NETWORKS: Final[tuple[Network, ...]] = ("endpoints", "shared", "nat", "public")

HOURS_A_MONTH: Final = 730.0
_SECONDS_A_MONTH: Final = HOURS_A_MONTH * 3600
_MILLION: Final = 1e6
_GB: Final = 1e9
# What deploy/template.yaml makes; a test compares them.
ENDPOINTS: Final[Mapping[Compute, int]] = {"ec2": 7, "fargate": 6}
ALARMS: Final = 21
VOLUME_GB: Final = 12
# Custom metrics: those that a node's report has, and the reaper's.
METRICS: Final = 21
# The stream Lambda: memory, with topic shards and without, and a typical run.
_LAMBDA_GB: Final = 0.25
_LAMBDA_GB_SHARDS: Final = 1.0
_LAMBDA_S: Final = 0.02
# The reaper runs once a minute for about a second, and makes some calls.
_REAPER_GB: Final = 1.0
_REAPER_S: Final = 1.0
_REAPER_RUNS_S: Final = 1 / 60
# Bytes of a delivery beside its payload: the push around it, WebSocket, TLS, TCP and IP; and of a
# ping and its pong.
_FRAME_BYTES: Final = 150
_PING_BYTES: Final = 220
_PING_INTERVAL_S: Final = 25.0
# Bytes of a node's log lines for one connection, of all else in a second, and of one report: with
# the values of seven durations, of which a busy node tells a hundred each.
_LOG_BYTES_A_CONNECT: Final = 700
_LOG_BYTES_S: Final = 5
_REPORT_BYTES: Final = 7000
# An item is kept for a day or longer, and TTL takes up to some days to delete it.
_KEPT_DAYS_MIN: Final = 1.0
_TTL_LATE_DAYS: Final = 1.0
_DAY_S: Final = 86_400
# What one load balancer capacity unit has room for.
_UNIT_CONNECTS_S: Final = 25.0
_UNIT_CONNECTIONS: Final = 3000.0
_UNIT_BYTES_HOUR: Final = 1e9


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how a fleet runs.

    `network`: how nodes reach AWS. endpoints: interface endpoints of their own, as the template
    makes them; shared: those that the VPC has already; nat: a NAT gateway in each zone; public: an
    address of their own. `internet`: whether clients come from the internet. `vcpus`,
    `memory_gb`: of a Fargate task. `kept_days`: the longest `history_ttl`.
    """

    compute: Compute = "ec2"
    network: Network = "endpoints"
    zones: int = 2
    load_balancer: bool = True
    internet: bool = True
    vcpus: float = 1.0
    memory_gb: float = 2.0
    kept_days: float = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `quantity` of what `price`, a name of PRICES, is for. `fixed`: whether it is the
    same without any publication and any client.
    """

    service: str
    what: str
    quantity: float
    price: str
    usd: float
    fixed: bool
    formula: str


@dataclass(frozen=True, slots=True)
class Bill:
    """All lines of a month. In US dollars."""

    lines: tuple[Line, ...]
    calls: Calls

    @property
    def fixed(self) -> float:
        """What the set-up costs without any load."""
        return sum(line.usd for line in self.lines if line.fixed)

    @property
    def total(self) -> float:
        """All of it."""
        return sum(line.usd for line in self.lines)


def bill_of(
    load: Load, setup: Setup, prices: Mapping[str, Price], calls: Calls | None = None
) -> Bill:
    """The bill of a month. `calls`: those of the load; None = at AWS's typical pace."""
    calls = calls or calls_of(load)
    lines = (
        Line(service, what, quantity, price, quantity * prices[price].usd, fixed, formula)
        for service, what, quantity, price, fixed, formula in (
            *_machines(load, setup),
            *_network(load, setup, calls),
            *_tables(setup, calls),
            *_messages(load, calls),
            *_watching(load, calls),
        )
    )
    return Bill(tuple(line for line in lines if line.quantity > 0), calls)


_Row = tuple[str, str, float, str, bool, str]


def _machines(load: Load, setup: Setup) -> Iterator[_Row]:
    hours = load.instances * HOURS_A_MONTH
    if setup.compute == "fargate":
        # A task has one process.
        tasks = load.nodes * HOURS_A_MONTH
        vcpus, memory = tasks * setup.vcpus, tasks * setup.memory_gb
        yield "Fargate", "vCPUs", vcpus, "fargate_vcpu_hour", True, "tasks × 730 h × vCPUs"
        yield "Fargate", "memory", memory, "fargate_gb_hour", True, "tasks × 730 h × GB"
        return
    yield "EC2", "instances", hours, "instance_hour", True, "N × 730 h"
    volumes = float(load.instances * VOLUME_GB)
    yield "EC2", "volumes", volumes, "volume_gb_month", True, f"N × {VOLUME_GB} GB"


def _network(load: Load, setup: Setup, calls: Calls) -> Iterator[_Row]:
    out_bytes_s = load.deliveries_s * (load.payload_bytes + _FRAME_BYTES)
    out_bytes_s += load.clients / _PING_INTERVAL_S * _PING_BYTES
    out_gb = out_bytes_s * _SECONDS_A_MONTH / _GB
    aws_gb = (calls.received_bytes + calls.sent_bytes) * _SECONDS_A_MONTH / _GB
    zone_hours = setup.zones * HOURS_A_MONTH
    if setup.load_balancer:
        yield "Load balancer", "hours", HOURS_A_MONTH, "load_balancer_hour", True, "730 h"
        units = max(
            load.connects_s / _UNIT_CONNECTS_S,
            load.clients / _UNIT_CONNECTIONS,
            out_bytes_s * 3600 / _UNIT_BYTES_HOUR,
        )
        yield (
            "Load balancer",
            "capacity units",
            units * HOURS_A_MONTH,
            "load_balancer_unit_hour",
            False,
            "730 h × max(connects/s ÷ 25, K ÷ 3,000, GB/h out)",
        )
        connects = load.connects_s * _SECONDS_A_MONTH / _MILLION
        yield "WAF", "web ACL", 1.0, "web_acl_month", True, "one"
        yield "WAF", "rule", 1.0, "web_acl_rule_month", True, "one"
        yield "WAF", "requests", connects, "web_acl_million", False, "connects/s a month"
    public = load.nodes if setup.compute == "fargate" else load.instances
    addresses = setup.zones * (setup.load_balancer and setup.internet) + (
        public * (setup.network == "public") + setup.zones * (setup.network == "nat")
    )
    yield (
        "VPC",
        "public addresses",
        addresses * HOURS_A_MONTH,
        "address_hour",
        True,
        "730 h × (zones of the load balancer, of NAT gateways; public machines)",
    )
    if setup.network == "endpoints":
        endpoints = ENDPOINTS[setup.compute]
        hours = endpoints * zone_hours
        yield "VPC", "endpoints", hours, "endpoint_hour", True, f"{endpoints} × zones × 730 h"
        yield "VPC", "data of endpoints", aws_gb, "endpoint_gb", False, "GB of SQS and SNS"
    if setup.network == "nat":
        yield "VPC", "NAT gateways", zone_hours, "nat_hour", True, "zones × 730 h"
        yield "VPC", "data of NAT", aws_gb, "nat_gb", False, "GB of SQS and SNS"
    if setup.internet:
        yield (
            "Internet",
            "data out",
            out_gb,
            "internet_gb",
            False,
            "GB of R × K × S ÷ C deliveries of (payload + 150) bytes, and of K pings in 25 s",
        )


def _tables(setup: Setup, calls: Calls) -> Iterator[_Row]:
    writes = calls.write_units * _SECONDS_A_MONTH / _MILLION
    reads = (calls.read_units + 2 * _REAPER_RUNS_S) * _SECONDS_A_MONTH / _MILLION
    kept_s = (max(setup.kept_days, _KEPT_DAYS_MIN) + _TTL_LATE_DAYS) * _DAY_S
    stored_gb = calls.stored_bytes * kept_s / _GB
    yield (
        "DynamoDB",
        "writes",
        writes,
        "write_units_million",
        False,
        "(appends × (2 − 1 ÷ W) × ⌈item ÷ 1 KiB⌉ + presence + heartbeats + canaries) a month",
    )
    yield (
        "DynamoDB",
        "reads",
        reads,
        "read_units_million",
        False,
        "(appends where W > 1 + tail checks + openings + reaper) a month",
    )
    yield "DynamoDB", "storage", stored_gb, "table_gb_month", False, "GB/s × (days kept + 1)"
    yield "DynamoDB", "backups", stored_gb, "backup_gb_month", False, "the same GB"


def _messages(load: Load, calls: Calls) -> Iterator[_Row]:
    runs = calls.of("lambda.Invoke") * _SECONDS_A_MONTH
    memory_gb = _LAMBDA_GB_SHARDS if load.topic_shards > 1 else _LAMBDA_GB
    yield "Lambda", "runs", runs / _MILLION, "lambda_million", False, "invocations a month"
    yield (
        "Lambda",
        "memory",
        runs * memory_gb * _LAMBDA_S,
        "lambda_gb_second",
        False,
        "invocations × 0.02 s × 0.25 GB (1 GB with topic shards)",
    )
    reaper = _REAPER_RUNS_S * _SECONDS_A_MONTH
    yield "Lambda", "reaper's runs", reaper / _MILLION, "lambda_million", True, "one a minute"
    yield (
        "Lambda",
        "reaper's memory",
        reaper * _REAPER_GB * _REAPER_S,
        "lambda_gb_second",
        True,
        "one a minute × 1 s × 1 GB",
    )
    yield (
        "SNS",
        "messages",
        (calls.sns_requests + _REAPER_RUNS_S) * _SECONDS_A_MONTH / _MILLION,
        "sns_million",
        False,
        "(Lambda's + signals + hints) × ⌈bytes ÷ 64 KiB⌉ a month",
    )
    yield (
        "SQS",
        "receives and deletes",
        (calls.sqs_requests + _REAPER_RUNS_S) * _SECONDS_A_MONTH / _MILLION,
        "sqs_million",
        False,
        "N × (receives × ⌈bytes ÷ 64 KiB⌉ + deletes) a month",
    )


def _watching(load: Load, calls: Calls) -> Iterator[_Row]:
    if calls.reports_s:
        yield (
            "CloudWatch",
            "metrics",
            float(METRICS),
            "metric_month",
            True,
            "a node's + the reaper's",
        )
        report_gb = calls.reports_s * _REPORT_BYTES * _SECONDS_A_MONTH / _GB
        yield "CloudWatch", "reports", report_gb, "logs_gb", True, "N × 7,000 bytes a minute"
    yield "CloudWatch", "alarms", float(ALARMS), "alarm_month", True, f"{ALARMS}"
    yield "CloudWatch", "dashboard", 1.0, "dashboard_month", True, "1"
    log_bytes_s = load.connects_s * _LOG_BYTES_A_CONNECT + load.nodes * _LOG_BYTES_S
    log_gb = log_bytes_s * _SECONDS_A_MONTH / _GB
    yield "CloudWatch", "logs", log_gb, "logs_gb", False, "connects × 700 bytes + N × 5 bytes/s"
    yield "Secrets Manager", "secrets", 1.0, "secret_month", True, "1"
