"""What AWS asks, in US dollars, in us-east-1, and when that was read.

Free tiers, discounts and taxes are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["INSTANCE_TYPE", "PRICES", "REGION", "Price", "UnknownPrice", "prices_with"]

REGION: Final = "us-east-1"
# The instance type that "instance_hour" is the price of: that of deploy/template.yaml.
INSTANCE_TYPE: Final = "c7g.medium"
# A price above it is a mistake of units.
_USD_MAX: Final = 1_000_000.0


class UnknownPrice(ValueError):
    """A file of prices has what is no price. One line."""


@dataclass(frozen=True, slots=True)
class Price:
    """`usd` for one `unit`. `page`: where AWS says it now. `read`: the month of the copy that the
    figure is from.
    """

    usd: float
    unit: str
    page: str
    read: str


_EC2: Final = "https://aws.amazon.com/ec2/pricing/on-demand/"
_VPC: Final = "https://aws.amazon.com/vpc/pricing/"
_ELB: Final = "https://aws.amazon.com/elasticloadbalancing/pricing/"
_DYNAMODB: Final = "https://aws.amazon.com/dynamodb/pricing/on-demand/"
_LAMBDA: Final = "https://aws.amazon.com/lambda/pricing/"
_WAF: Final = "https://aws.amazon.com/waf/pricing/"
_CLOUDWATCH: Final = "https://aws.amazon.com/cloudwatch/pricing/"

PRICES: Final[Mapping[str, Price]] = {
    "instance_hour": Price(0.0363, f"hour of a {INSTANCE_TYPE}", _EC2, "2026-09"),
    "volume_gb_month": Price(
        0.08, "GB of gp3, a month", "https://aws.amazon.com/ebs/pricing/", "2026-09"
    ),
    "fargate_vcpu_hour": Price(
        0.03238, "vCPU-hour, arm64", "https://aws.amazon.com/fargate/pricing/", "2026-03"
    ),
    "fargate_gb_hour": Price(
        0.00356, "GB-hour, arm64", "https://aws.amazon.com/fargate/pricing/", "2026-03"
    ),
    "load_balancer_hour": Price(0.0225, "hour", _ELB, "2026-05"),
    "load_balancer_unit_hour": Price(0.008, "LCU-hour", _ELB, "2026-05"),
    "web_acl_month": Price(5.00, "web ACL, a month", _WAF, "2026-11"),
    "web_acl_rule_month": Price(1.00, "rule of a web ACL, a month", _WAF, "2026-11"),
    "web_acl_million": Price(0.60, "million requests that WAF looks at", _WAF, "2026-11"),
    "address_hour": Price(0.005, "hour of a public IPv4 address", _VPC, "2026-03"),
    "endpoint_hour": Price(
        0.01, "hour of an interface endpoint in a zone", "https://aws.amazon.com/privatelink/pricing/",
        "2026-06",
    ),
    "endpoint_gb": Price(0.01, "GB", "https://aws.amazon.com/privatelink/pricing/", "2026-06"),
    "nat_hour": Price(0.045, "hour of a NAT gateway", _VPC, "2026-06"),
    "nat_gb": Price(0.045, "GB", _VPC, "2026-06"),
    "internet_gb": Price(0.09, "GB to the internet", _EC2, "2026-09"),
    "write_units_million": Price(0.625, "million write request units", _DYNAMODB, "2025-07"),
    "read_units_million": Price(0.125, "million read request units", _DYNAMODB, "2025-07"),
    "table_gb_month": Price(0.25, "GB stored, a month", _DYNAMODB, "2026-08"),
    "backup_gb_month": Price(0.20, "GB of point-in-time recovery, a month", _DYNAMODB, "2026-08"),
    "lambda_million": Price(0.20, "million invocations", _LAMBDA, "2026-08"),
    "lambda_gb_second": Price(0.0000133334, "GB-second, arm64", _LAMBDA, "2026-08"),
    "sns_million": Price(
        0.50, "million requests of 64 KB", "https://aws.amazon.com/sns/pricing/", "2026-06"
    ),
    "sqs_million": Price(
        0.40, "million requests of 64 KB", "https://aws.amazon.com/sqs/pricing/", "2026-06"
    ),
    "metric_month": Price(0.30, "custom metric, a month", _CLOUDWATCH, "2026-06"),
    "alarm_month": Price(0.10, "alarm, a month", _CLOUDWATCH, "2026-06"),
    "dashboard_month": Price(3.00, "dashboard, a month", _CLOUDWATCH, "2026-06"),
    "logs_gb": Price(0.50, "GB of logs taken in", _CLOUDWATCH, "2026-06"),
    "secret_month": Price(
        0.40, "secret, a month", "https://aws.amazon.com/secrets-manager/pricing/", "2026-06"
    ),
}  # fmt: skip


def prices_with(overrides: Mapping[str, object]) -> Mapping[str, Price]:
    """PRICES with other figures, by name. Raises UnknownPrice."""
    prices = dict(PRICES)
    for name, found in overrides.items():
        if name not in prices:
            raise UnknownPrice(f"{name!r} is no price; these are: {', '.join(PRICES)}")
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise UnknownPrice(f"{name} must be a number of US dollars; found {found!r}")
        if not 0 <= found <= _USD_MAX:
            raise UnknownPrice(f"{name} must be from 0 to {_USD_MAX:,.0f} US dollars")
        prices[name] = replace(prices[name], usd=float(found), page="given", read="")
    return prices
