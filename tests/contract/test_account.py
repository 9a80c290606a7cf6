"""An account as the emulator has one: what it knows of quotas, zones, endpoints and buckets."""

from __future__ import annotations

import pytest

from roomcast.account.readings import Bucket, Quota
from roomcast.account.rules import COUNTED, GATEWAY_SERVICES, INTERFACE_SERVICES, VPCS
from roomcast.aws.account import read_account
from roomcast.dev.provision import DUMMY_CREDENTIALS, client
from roomcast.ports import Rejected
from tests.contract.backends import REGION, SESSION


async def test_an_account_of_the_emulator(aws_endpoint: str) -> None:
    s3 = client("s3", aws_endpoint, REGION, DUMMY_CREDENTIALS)
    s3.create_bucket(
        Bucket="account-built", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    async with read_account(region=REGION, endpoint_url=aws_endpoint, session=SESSION) as account:
        identity = await account.identity()
        assert (len(identity.account), identity.region) == (12, REGION)
        assert await account.quota(VPCS.service, VPCS.code) == Quota(
            "vpc", VPCS.code, "VPCs per Region", 5
        )
        zones = await account.zones()
        assert zones[0] == f"{REGION}a"
        assert set(await account.zones_of("c7g.medium")) <= set(zones)
        assert await account.vcpus_of("c7g.medium") == 1
        assert await account.vcpus_of("c0.tiny") is None
        found = await account.endpoint_zones()
        assert {*INTERFACE_SERVICES, *GATEWAY_SERVICES} <= found.keys()
        assert await account.standard_vcpus() == 0
        assert {what: await account.count(what) for what in COUNTED} == dict.fromkeys(
            COUNTED, 0
        ) | {"vpcs": 1}
        assert await account.bucket("account-built") == Bucket(REGION, "")
        with pytest.raises(Rejected, match="NoSuchBucket"):
            await account.bucket("account-none")
