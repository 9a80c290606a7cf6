"""Reads an account and a region: quotas, zones, endpoints, keys. Changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aioboto3

from roomcast.account.readings import Bucket, Identity, Key, Quota
from roomcast.account.rules import is_standard
from roomcast.aws.reading import KEY_PERMISSIONS, Reading, reading_clients

__all__ = ["PERMISSIONS", "AwsAccount", "read_account"]

# Every call, and the permission that it needs: the SDK's client and method.
PERMISSIONS: Final[Mapping[tuple[str, str], str]] = {
    ("sts", "get_caller_identity"): "sts:GetCallerIdentity",
    ("service-quotas", "get_service_quota"): "servicequotas:GetServiceQuota",
    ("service-quotas", "get_aws_default_service_quota"): "servicequotas:GetAWSDefaultServiceQuota",
    ("service-quotas", "list_service_quotas"): "servicequotas:ListServiceQuotas",
    ("lambda", "get_account_settings"): "lambda:GetAccountSettings",
    ("ec2", "describe_instance_types"): "ec2:DescribeInstanceTypes",
    ("ec2", "describe_instance_type_offerings"): "ec2:DescribeInstanceTypeOfferings",
    ("ec2", "describe_instances"): "ec2:DescribeInstances",
    ("ec2", "describe_availability_zones"): "ec2:DescribeAvailabilityZones",
    ("ec2", "describe_vpc_endpoint_services"): "ec2:DescribeVpcEndpointServices",
    ("ec2", "describe_vpcs"): "ec2:DescribeVpcs",
    ("ec2", "describe_internet_gateways"): "ec2:DescribeInternetGateways",
    ("ec2", "describe_vpc_endpoints"): "ec2:DescribeVpcEndpoints",
    ("ec2", "describe_addresses"): "ec2:DescribeAddresses",
    ("ec2", "get_ebs_default_kms_key_id"): "ec2:GetEbsDefaultKmsKeyId",
    ("elbv2", "describe_load_balancers"): "elasticloadbalancing:DescribeLoadBalancers",
    **KEY_PERMISSIONS,
    ("s3", "get_bucket_location"): "s3:GetBucketLocation",
    ("s3", "get_bucket_encryption"): "s3:GetEncryptionConfiguration",
}
_SERVICES: Final = tuple(dict.fromkeys(service for service, _ in PERMISSIONS))
_NO_QUOTA: Final = frozenset({"NoSuchResourceException", "NoSuchResource"})
_NO_TYPE: Final = "InvalidInstanceType"
_NO_ENCRYPTION: Final = "ServerSideEncryptionConfigurationNotFoundError"
# Where S3 has a bucket that says no region.
_FIRST_REGION: Final = "us-east-1"
# What `count` counts: the call, and the list in its answer.
_LISTS: Final[Mapping[str, tuple[str, str, str, Mapping[str, Any]]]] = {
    "vpcs": ("ec2", "describe_vpcs", "Vpcs", {}),
    "internet_gateways": ("ec2", "describe_internet_gateways", "InternetGateways", {}),
    "gateway_endpoints": (
        "ec2",
        "describe_vpc_endpoints",
        "VpcEndpoints",
        {"Filters": [{"Name": "vpc-endpoint-type", "Values": ["Gateway"]}]},
    ),
    "load_balancers": ("elbv2", "describe_load_balancers", "LoadBalancers", {}),
    "addresses": ("ec2", "describe_addresses", "Addresses", {}),
}


@asynccontextmanager
async def read_account(
    *, region: str | None, endpoint_url: str | None, session: aioboto3.Session | None = None
) -> AsyncIterator[AwsAccount]:
    """The account that the environment's credentials are of. Raises PortError."""
    async with reading_clients(
        _SERVICES, region=region, endpoint_url=endpoint_url, session=session
    ) as clients:
        yield AwsAccount(clients)


class AwsAccount:
    """An AccountReader. `clients`: the SDK's, by service."""

    def __init__(self, clients: Mapping[str, Any]) -> None:
        self._clients = clients
        self._reading = Reading(clients, PERMISSIONS)

    async def identity(self) -> Identity:
        answer = await self._reading.call("sts", "get_caller_identity")
        region = str(self._clients["ec2"].meta.region_name)
        return Identity(str(answer["Account"]), str(answer["Arn"]), region)

    async def quota(self, service: str, code: str) -> Quota | None:
        # Many quotas that nobody changed have a default and no value of their own.
        for method in ("get_service_quota", "get_aws_default_service_quota"):
            answer = await self._reading.call(
                "service-quotas", method, unless=_NO_QUOTA, ServiceCode=service, QuotaCode=code
            )
            if answer is not None:
                return _quota(service, answer["Quota"])
        return None

    async def quotas(self, service: str) -> Sequence[Quota]:
        found = await self._reading.pages(
            "service-quotas",
            "list_service_quotas",
            "Quotas",
            {"ServiceCode": service},
            unless=_NO_QUOTA,
        )
        return [_quota(service, each) for each in found]

    async def concurrency(self) -> int:
        answer = await self._reading.call("lambda", "get_account_settings")
        return int(answer["AccountLimit"]["ConcurrentExecutions"])

    async def vcpus_of(self, instance_type: str) -> int | None:
        answer = await self._reading.call(
            "ec2", "describe_instance_types", unless={_NO_TYPE}, InstanceTypes=[instance_type]
        )
        types = () if answer is None else answer["InstanceTypes"]
        return int(types[0]["VCpuInfo"]["DefaultVCpus"]) if types else None

    async def standard_vcpus(self) -> int:
        reservations = await self._reading.pages(
            "ec2",
            "describe_instances",
            "Reservations",
            {"Filters": [{"Name": "instance-state-name", "Values": ["pending", "running"]}]},
        )
        return sum(
            _vcpus(instance)
            for reservation in reservations
            for instance in reservation["Instances"]
            # Spot instances have a quota of their own.
            if is_standard(instance["InstanceType"]) and not instance.get("InstanceLifecycle")
        )

    async def count(self, what: str) -> int:
        service, method, field, params = _LISTS[what]
        return len(await self._reading.pages(service, method, field, params))

    async def zones(self) -> Sequence[str]:
        answer = await self._reading.call(
            "ec2",
            "describe_availability_zones",
            Filters=[{"Name": "state", "Values": ["available"]}],
        )
        return sorted(
            str(zone["ZoneName"])
            for zone in answer["AvailabilityZones"]
            # Not local zones, nor those of Wavelength.
            if zone.get("ZoneType", "availability-zone") == "availability-zone"
        )

    async def zones_of(self, instance_type: str) -> Sequence[str]:
        found = await self._reading.pages(
            "ec2",
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            {
                "LocationType": "availability-zone",
                "Filters": [{"Name": "instance-type", "Values": [instance_type]}],
            },
        )
        return sorted(str(each["Location"]) for each in found)

    async def endpoint_zones(self) -> Mapping[str, Sequence[str]]:
        found = await self._reading.pages(
            "ec2", "describe_vpc_endpoint_services", "ServiceDetails", {}
        )
        # com.amazonaws.REGION.NAME, with another beginning in other partitions. A name such as
        # ecr.api has parts.
        region = f".{self._clients['ec2'].meta.region_name}."
        return {
            str(each["ServiceName"]).partition(region)[2]: sorted(each.get("AvailabilityZones", ()))
            for each in found
            if "amazonaws" in each["ServiceName"]
        }

    async def volume_key(self) -> str:
        answer = await self._reading.call("ec2", "get_ebs_default_kms_key_id")
        return str(answer["KmsKeyId"])

    async def key(self, key: str) -> Key:
        return await self._reading.key(key)

    async def bucket(self, name: str) -> Bucket:
        location = await self._reading.call("s3", "get_bucket_location", Bucket=name)
        answer = await self._reading.call(
            "s3", "get_bucket_encryption", unless={_NO_ENCRYPTION}, Bucket=name
        )
        rules = answer["ServerSideEncryptionConfiguration"]["Rules"] if answer else ()
        defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in rules]
        return Bucket(
            str(location.get("LocationConstraint") or _FIRST_REGION),
            # KMS without a key is AWS's own key there.
            next(
                (str(each["KMSMasterKeyID"]) for each in defaults if "KMSMasterKeyID" in each), ""
            ),
        )


def _quota(service: str, found: Mapping[str, Any]) -> Quota:
    return Quota(
        service, str(found["QuotaCode"]), str(found.get("QuotaName", "")), float(found["Value"])
    )


def _vcpus(instance: Mapping[str, Any]) -> int:
    options = instance.get("CpuOptions", {})
    return int(options.get("CoreCount", 1)) * int(options.get("ThreadsPerCore", 1))
