"""What was read of an account and a region, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bucket", "Identity", "Key", "Quota"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: the account's number, and the ARN of the user or role."""

    account: str
    arn: str
    region: str


@dataclass(frozen=True, slots=True)
class Quota:
    """One quota of the account in the region, as Service Quotas has it."""

    service: str
    code: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Key:
    """A key of KMS. `users`: principals of grants. `policy`: JSON text."""

    arn: str
    is_customers: bool
    is_enabled: bool
    policy: str
    users: Sequence[str]


@dataclass(frozen=True, slots=True)
class Bucket:
    """`key`: the KMS key that new objects are under; "" = S3's own."""

    region: str
    key: str
