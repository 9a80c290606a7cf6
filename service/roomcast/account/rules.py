"""What the template needs of an account and a region, and what to ask for where it is missing.

Pure: readings in, findings out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from roomcast.account.readings import Bucket, Identity, Key, Quota

__all__ = [
    "ADDRESSES",
    "COUNTED",
    "FARGATE_VCPUS",
    "GATEWAY_ENDPOINTS",
    "GATEWAY_SERVICES",
    "INSTANCE_SERVICES",
    "INTERFACE_ENDPOINTS",
    "INTERFACE_SERVICES",
    "INTERNET_GATEWAYS",
    "LAMBDA_CONCURRENCY",
    "LOAD_BALANCERS",
    "STANDARD_FAMILIES",
    "STANDARD_VCPUS",
    "TASK_SERVICES",
    "VPCS",
    "Finding",
    "Needed",
    "Outcome",
    "QuotaCode",
    "bucket_finding",
    "concurrency_finding",
    "endpoints_finding",
    "interface_services",
    "is_standard",
    "key_finding",
    "quota_finding",
    "raise_command",
    "sns_finding",
    "type_finding",
    "vcpus_finding",
]

Outcome = Literal["ok", "warning", "failed", "skipped", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `outcome`: as those of `roomcast doctor`; skipped = could not be checked.

    `ask`: a command that asks for what is missing, or mends it; "" = none.
    """

    name: str
    outcome: Outcome
    told: str
    ask: str = ""


@dataclass(frozen=True, slots=True)
class Needed:
    """What is to be deployed. `desired`, `most`: instances, or tasks of `vcpus` each. `bucket`: for
    what is built; "" = it is not looked at.
    """

    instance_type: str = "c7g.medium"
    desired: int = 2
    most: int = 10
    makes_vpc: bool = True
    has_nat: bool = False
    on_fargate: bool = False
    vcpus: float = 1.0
    bucket: str = ""


@dataclass(frozen=True, slots=True)
class QuotaCode:
    """Where Service Quotas has a quota. `counted`: what is in use, for `AccountReader.count`."""

    service: str
    code: str
    about: str
    counted: str = ""


# https://docs.aws.amazon.com/general/latest/gr/aws-service-information.html has the pages of all.
STANDARD_VCPUS: Final = QuotaCode("ec2", "L-1216C47A", "vCPUs on demand")
FARGATE_VCPUS: Final = QuotaCode("fargate", "L-3032A538", "vCPUs of Fargate")
LAMBDA_CONCURRENCY: Final = QuotaCode("lambda", "L-B99A9384", "Lambda at once")
VPCS: Final = QuotaCode("vpc", "L-F678F1CE", "VPCs", "vpcs")
INTERNET_GATEWAYS: Final = QuotaCode("vpc", "L-A4707A72", "internet gateways", "internet_gateways")
GATEWAY_ENDPOINTS: Final = QuotaCode("vpc", "L-1B52E74A", "gateway endpoints", "gateway_endpoints")
INTERFACE_ENDPOINTS: Final = QuotaCode("vpc", "L-29B6F2EB", "interface endpoints")
LOAD_BALANCERS: Final = QuotaCode(
    "elasticloadbalancing", "L-53DA6B97", "load balancers", "load_balancers"
)
ADDRESSES: Final = QuotaCode("ec2", "L-0263D0A3", "Elastic IP addresses", "addresses")
COUNTED: Final = frozenset(
    each.counted for each in (VPCS, INTERNET_GATEWAYS, GATEWAY_ENDPOINTS, LOAD_BALANCERS, ADDRESSES)
)
# What deploy/template.yaml makes endpoints for; a test compares them.
INTERFACE_SERVICES: Final = ("sqs", "sns", "logs", "secretsmanager")
INSTANCE_SERVICES: Final = ("autoscaling", "ssm", "ssmmessages")
TASK_SERVICES: Final = ("ecr.api", "ecr.dkr")
GATEWAY_SERVICES: Final = ("dynamodb", "s3")
# The families whose vCPUs count together.
STANDARD_FAMILIES: Final = "acdhimrtz"
# Families that begin with one of these letters, and count apart.
_OTHER_FAMILIES: Final = ("dl", "hpc", "inf", "mac", "trn")
# The template's subnets are in the first two zones.
_ZONES: Final = 2
# An update adds a tenth of the fleet, and one instance at least, before it removes one.
_SURGE: Final = 0.1
# So many concurrent executions nobody can reserve, in accounts of the usual size; in new ones,
# which have 10 in all, they are these 10.
_UNRESERVED_MAX: Final = 100
_CONCURRENCY_USUAL: Final = 1000
# Shards of the table's stream that one may expect, and the reaper.
_CONCURRENCY_NEEDED: Final = 10
# Messages a second to SNS below which the Lambda's packing matters.
_SNS_SMALL: Final = 300.0
_ROLE: Final = "AWSServiceRoleForAutoScaling"
_GRANTED: Final = (
    "Encrypt Decrypt ReEncryptFrom ReEncryptTo GenerateDataKey GenerateDataKeyWithoutPlaintext "
    "DescribeKey CreateGrant"
)


def is_standard(instance_type: str) -> bool:
    """Whether the type counts for STANDARD_VCPUS."""
    return instance_type[:1] in STANDARD_FAMILIES and not instance_type.startswith(_OTHER_FAMILIES)


def raise_command(code: QuotaCode, region: str, value: float) -> str:
    """The command that asks for a higher quota."""
    return (
        "aws service-quotas request-service-quota-increase "
        f"--service-code {code.service} --quota-code {code.code} "
        f"--desired-value {ceil(value)} --region {region}"
    )


def quota_finding(
    code: QuotaCode, quota: Quota | None, used: int, needed: float, region: str
) -> Finding:
    """Whether `needed` more fit beside `used`."""
    name = f"quota: {code.about}"
    if quota is None:
        return _unknown(code, name)
    told = f"{quota.value:g} ({code.code}), {used:g} in use, {needed:g} more are needed"
    if used + needed <= quota.value:
        return Finding(name, "ok", told)
    return Finding(name, "failed", told, raise_command(code, region, used + needed))


def vcpus_finding(
    code: QuotaCode, quota: Quota | None, used: int, each: float, needed: Needed, region: str
) -> Finding:
    """Whether the first instances have room, with one more for an update; and all of them."""
    name = f"quota: {code.about}"
    if quota is None:
        return _unknown(code, name)
    first, most = _with_surge(needed.desired) * each, _with_surge(needed.most) * each
    told = (
        f"{quota.value:g} ({code.code}), {used:g} in use; {needed.desired} of {each:g} with an "
        f"update take {first:g}, {needed.most} take {most:g}"
    )
    ask = raise_command(code, region, used + most)
    if used + first > quota.value:
        return Finding(name, "failed", told, ask)
    if used + most > quota.value:
        return Finding(name, "warning", told, ask)
    return Finding(name, "ok", told)


def concurrency_finding(concurrency: int, region: str) -> Finding:
    """Whether the Lambdas can run, and the reaper reserve one."""
    name = f"quota: {LAMBDA_CONCURRENCY.about}"
    code = LAMBDA_CONCURRENCY.code
    if concurrency > _UNRESERVED_MAX:
        return Finding(name, "ok", f"{concurrency:,} ({code})")
    ask = raise_command(LAMBDA_CONCURRENCY, region, _CONCURRENCY_USUAL)
    told = f"{concurrency} ({code}), of which none may be reserved: deploy with ReserveReaper=false"
    if concurrency < _CONCURRENCY_NEEDED:
        return Finding(name, "failed", f"{told}; one for each shard of the stream is needed", ask)
    return Finding(name, "warning", told, ask)


def sns_finding(quotas: Sequence[Quota], region: str) -> Finding:
    """How many messages a second all of the account may publish."""
    name = "quota: messages to SNS"
    found = [
        quota
        for quota in quotas
        if "publish" in quota.name.lower() and "fifo" not in quota.name.lower()
    ]
    if not found:
        return Finding(
            name, "note", "Service Quotas tells none: docs/scaling.md has those of the regions"
        )
    least = min(found, key=lambda quota: quota.value)
    told = f"{least.value:,.0f} a second ({least.code}), for all of the account"
    if least.value > _SNS_SMALL:
        return Finding(name, "ok", told)
    return Finding(
        name,
        "warning",
        f"{told}: leave most to the stream Lambda, with a low aws.express_rate_limit",
        raise_command(QuotaCode("sns", least.code, ""), region, 10 * _SNS_SMALL),
    )


def type_finding(
    instance_type: str, zones: Sequence[str], offered: Sequence[str], *, makes_vpc: bool
) -> Finding:
    """Whether the instance type is to be had where the subnets are."""
    name = f"instance type {instance_type}"
    common = [zone for zone in zones if zone in offered]
    told = f"offered in {_all_of(common)}"
    missing = [zone for zone in zones[:_ZONES] if zone not in offered]
    if len(common) < _ZONES:
        return Finding(name, "failed", f"{told}; {_ZONES} zones are needed: choose another type")
    if makes_vpc and missing:
        return Finding(
            name,
            "failed",
            f"{told}, and not in {_all_of(missing)}, where a new VPC has its subnets: choose "
            "another type, or give subnets in those zones (VpcId)",
        )
    return Finding(name, "ok", told)


def interface_services(*, on_fargate: bool) -> tuple[str, ...]:
    """The services that have an interface endpoint."""
    return INTERFACE_SERVICES + (TASK_SERVICES if on_fargate else INSTANCE_SERVICES)


def endpoints_finding(
    zones: Sequence[str],
    found: Mapping[str, Sequence[str]],
    *,
    makes_vpc: bool,
    on_fargate: bool = False,
) -> Finding:
    """Whether the endpoints are to be had in two zones."""
    name = "endpoints"
    wanted = zones[:_ZONES] if makes_vpc else zones
    missing = [
        service
        for service in interface_services(on_fargate=on_fargate)
        if sum(zone in found.get(service, ()) for zone in wanted) < _ZONES
    ]
    missing += [service for service in GATEWAY_SERVICES if service not in found]
    if missing:
        return Finding(
            name, "failed", f"not in {_ZONES} of {_all_of(wanted)}: {', '.join(missing)}"
        )
    return Finding(name, "ok", f"all are in {_all_of(wanted)}")


def key_finding(key: Key | None, identity: Identity) -> Finding:
    """Whether Auto Scaling may start instances, whose volumes are under the account's default key.
    None: that is AWS's own.
    """
    name = "key of volumes"
    if key is None or not key.is_customers:
        return Finding(name, "ok", "AWS's own")
    if not key.is_enabled:
        return Finding(name, "failed", f"{key.arn} is not enabled: no instance will start")
    if _ROLE in key.policy or any(_ROLE in user for user in key.users):
        return Finding(name, "ok", f"{key.arn}, which Auto Scaling may use")
    partition = key.arn.split(":")[1] if key.arn.startswith("arn:") else "aws"
    role = (
        f"arn:{partition}:iam::{identity.account}:role/aws-service-role/"
        f"autoscaling.amazonaws.com/{_ROLE}"
    )
    return Finding(
        name,
        "failed",
        f"{key.arn} is yours, and neither its policy nor a grant names {_ROLE}: instances would "
        "end as soon as they start (Client.InternalError)",
        f"aws kms create-grant --key-id {key.arn} --grantee-principal {role} "
        f"--operations {_GRANTED} --region {identity.region}",
    )


def bucket_finding(name: str, bucket: Bucket, key: Key | None, region: str) -> Finding:
    """Whether instances and CloudFormation can read what is built."""
    title = f"bucket {name}"
    if bucket.region != region:
        return Finding(title, "failed", f"is in {bucket.region}: Lambda's code must be in {region}")
    if key is None or not key.is_customers:
        return Finding(title, "ok", "objects are under a key of AWS")
    return Finding(
        title,
        "failed",
        f"objects are under {key.arn}, which is yours: the role that instances get has no "
        "permission for it. Use S3's own key for this bucket, or name the role in the key's policy",
        f"aws s3api put-bucket-encryption --bucket {name} --server-side-encryption-configuration "
        '\'{"Rules":[{"ApplyServerSideEncryptionByDefault":{"SSEAlgorithm":"AES256"}}]}\'',
    )


def _unknown(code: QuotaCode, name: str) -> Finding:
    return Finding(name, "note", f"Service Quotas does not know {code.code} here: look yourself")


def _with_surge(instances: int) -> int:
    return instances + max(1, ceil(instances * _SURGE))


def _all_of(zones: Sequence[str]) -> str:
    return ", ".join(zones) or "no zone"
