"""Runs the checks of an account, one after the other. What may not be read is said, and the rest
goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from roomcast.account.ports import AccountReader, NotAllowed
from roomcast.account.readings import Identity, Key
from roomcast.account.rules import (
    ADDRESSES,
    FARGATE_VCPUS,
    GATEWAY_ENDPOINTS,
    GATEWAY_SERVICES,
    INTERFACE_ENDPOINTS,
    INTERNET_GATEWAYS,
    LAMBDA_CONCURRENCY,
    LOAD_BALANCERS,
    STANDARD_VCPUS,
    VPCS,
    Finding,
    Needed,
    QuotaCode,
    bucket_finding,
    concurrency_finding,
    endpoints_finding,
    interface_services,
    is_standard,
    key_finding,
    quota_finding,
    sns_finding,
    type_finding,
    vcpus_finding,
)
from roomcast.ports import PortError

__all__ = ["AccountChecks"]

# What EC2 says where an account has no key of its own for volumes.
_AWS_OWN_KEY: Final = "alias/aws/"
_NAT_ZONES: Final = 2

Check = Callable[[], Awaitable[Finding]]


class AccountChecks:
    """`tell` receives each finding when it is there."""

    def __init__(
        self, reader: AccountReader, needed: Needed, tell: Callable[[Finding], None]
    ) -> None:
        self._reader = reader
        self._needed = needed
        self._tell = tell
        self._identity = Identity("", "", "")
        self._findings: list[Finding] = []

    async def run(self) -> list[Finding]:
        """Runs every check, in order. Nothing is raised for one that fails.

        Who asks is told without any permission: if that fails, nothing else is tried.
        """
        needed = self._needed
        await self._check("account", self._account)
        if self._findings[0].outcome == "failed":
            return self._findings
        if needed.on_fargate:
            await self._check(f"quota: {FARGATE_VCPUS.about}", self._fargate)
        else:
            await self._check(f"quota: {STANDARD_VCPUS.about}", self._vcpus)
        await self._check(f"quota: {LAMBDA_CONCURRENCY.about}", self._concurrency)
        await self._check("quota: messages to SNS", self._sns)
        await self._quota(LOAD_BALANCERS, 1)
        if needed.makes_vpc:
            await self._quota(VPCS, 1)
            await self._quota(INTERNET_GATEWAYS, 1)
            await self._quota(GATEWAY_ENDPOINTS, len(GATEWAY_SERVICES))
            endpoints = interface_services(on_fargate=needed.on_fargate)
            await self._quota(INTERFACE_ENDPOINTS, len(endpoints))
        if needed.has_nat:
            await self._quota(ADDRESSES, _NAT_ZONES)
        await self._check("endpoints", self._endpoints)
        if not needed.on_fargate:
            await self._check(f"instance type {needed.instance_type}", self._type)
            await self._check("key of volumes", self._volume_key)
        if needed.bucket:
            await self._check(f"bucket {needed.bucket}", self._bucket)
        return self._findings

    async def _check(self, name: str, work: Check) -> None:
        try:
            finding = await work()
        except NotAllowed as error:
            finding = Finding(name, "skipped", f"could not be checked: {error}")
        except (PortError, TimeoutError) as error:
            told = str(error) or type(error).__name__
            finding = Finding(name, "failed", f"could not be checked: {told}")
        self._findings.append(finding)
        self._tell(finding)

    async def _account(self) -> Finding:
        self._identity = await self._reader.identity()
        return Finding(
            "account",
            "note",
            f"{self._identity.account} in {self._identity.region}, as {self._identity.arn}",
        )

    async def _quota(self, code: QuotaCode, more: float) -> None:
        async def work() -> Finding:
            quota = await self._reader.quota(code.service, code.code)
            used = await self._reader.count(code.counted) if code.counted else 0
            return quota_finding(code, quota, used, more, self._region)

        await self._check(f"quota: {code.about}", work)

    async def _vcpus(self) -> Finding:
        kind = self._needed.instance_type
        name = f"quota: {STANDARD_VCPUS.about}"
        if not is_standard(kind):
            return Finding(name, "note", f"{kind} counts for another quota: look yourself")
        each = await self._reader.vcpus_of(kind)
        if each is None:
            return Finding(name, "failed", f"there is no instance type {kind} in this region")
        quota = await self._reader.quota(STANDARD_VCPUS.service, STANDARD_VCPUS.code)
        used = await self._reader.standard_vcpus()
        return vcpus_finding(STANDARD_VCPUS, quota, used, each, self._needed, self._region)

    async def _fargate(self) -> Finding:
        quota = await self._reader.quota(FARGATE_VCPUS.service, FARGATE_VCPUS.code)
        # What tasks take at the moment, no API says.
        return vcpus_finding(
            FARGATE_VCPUS, quota, 0, self._needed.vcpus, self._needed, self._region
        )

    async def _concurrency(self) -> Finding:
        return concurrency_finding(await self._reader.concurrency(), self._region)

    async def _sns(self) -> Finding:
        return sns_finding(await self._reader.quotas("sns"), self._region)

    async def _endpoints(self) -> Finding:
        zones = await self._reader.zones()
        return endpoints_finding(
            zones,
            await self._reader.endpoint_zones(),
            makes_vpc=self._needed.makes_vpc,
            on_fargate=self._needed.on_fargate,
        )

    async def _type(self) -> Finding:
        kind = self._needed.instance_type
        zones = await self._reader.zones()
        offered = await self._reader.zones_of(kind)
        return type_finding(kind, zones, offered, makes_vpc=self._needed.makes_vpc)

    async def _volume_key(self) -> Finding:
        return key_finding(await self._key(await self._reader.volume_key()), self._identity)

    async def _bucket(self) -> Finding:
        name = self._needed.bucket
        bucket = await self._reader.bucket(name)
        return bucket_finding(name, bucket, await self._key(bucket.key), self._region)

    async def _key(self, key: str) -> Key | None:
        if not key or _AWS_OWN_KEY in key:
            return None
        return await self._reader.key(key)

    @property
    def _region(self) -> str:
        return self._identity.region
