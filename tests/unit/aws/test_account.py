"""What is read of an account, from answers in the shapes of AWS's service models."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError
from botocore.model import OperationModel, Shape

from roomcast.account.ports import NotAllowed
from roomcast.account.readings import Bucket, Identity, Key, Quota
from roomcast.aws.account import PERMISSIONS, AwsAccount
from roomcast.ports import Rejected

SESSION = botocore.session.get_session()
ARN = "arn:aws:kms:eu-central-1:123456789012:key/k"


@functools.cache
def operations(service: str) -> Mapping[str, OperationModel]:
    """The operations of a service, by their names in small letters."""
    model = SESSION.get_service_model(service)
    return {name.lower(): model.operation_model(name) for name in model.operation_names}


def fits(found: Any, shape: Shape) -> None:
    """Fails where an answer has what AWS's would not."""
    if shape.type_name == "structure":
        for name, value in found.items():
            assert name in shape.members, name
            fits(value, shape.members[name])
    elif shape.type_name == "list":
        for value in found:
            fits(value, shape.member)


class Client:
    """Answers calls in turn; an error is raised. `calls`: the parameters of each."""

    def __init__(self, service: str, answers: Mapping[str, list[Any]]) -> None:
        self.meta = type("Meta", (), {"region_name": "eu-central-1"})
        self.calls: list[dict[str, Any]] = []
        for method, given in answers.items():
            operation = operations(service)[method.replace("_", "")]
            for answer in given:
                if isinstance(answer, dict):
                    fits(answer, operation.output_shape)
            setattr(self, method, self._answering(list(given)))

    def _answering(self, answers: list[Any]) -> Any:
        async def call(**params: Any) -> Any:
            self.calls.append(params)
            answer = answers.pop(0)
            if isinstance(answer, str):
                raise ClientError({"Error": {"Code": answer, "Message": "no"}}, "Some")
            return answer

        return call


def account(service: str, **answers: list[Any]) -> AwsAccount:
    clients = {"ec2": Client("ec2", {}), service: Client(service, answers)}
    return AwsAccount(clients)


async def test_who_asks() -> None:
    found = account("sts", get_caller_identity=[{"Account": "1", "Arn": "arn:x", "UserId": "u"}])
    assert await found.identity() == Identity("1", "arn:x", "eu-central-1")


async def test_quotas_have_a_value_or_a_default_or_neither() -> None:
    quota = {"QuotaCode": "L-1", "QuotaName": "things", "Value": 5.0}
    own = account("service-quotas", get_service_quota=[{"Quota": quota}])
    assert await own.quota("ec2", "L-1") == Quota("ec2", "L-1", "things", 5)
    default = account(
        "service-quotas",
        get_service_quota=["NoSuchResourceException"],
        get_aws_default_service_quota=[{"Quota": quota}],
    )
    assert await default.quota("ec2", "L-1") == Quota("ec2", "L-1", "things", 5)
    none = account(
        "service-quotas",
        get_service_quota=["NoSuchResourceException"],
        get_aws_default_service_quota=["NoSuchResourceException"],
    )
    assert await none.quota("ec2", "L-1") is None


async def test_lists_are_read_to_their_end() -> None:
    page = {"Quotas": [{"QuotaCode": "L-1", "QuotaName": "a", "Value": 1.0}], "NextToken": "t"}
    found = account("service-quotas", list_service_quotas=[page, {"Quotas": []}])
    assert [each.code for each in await found.quotas("sns")] == ["L-1"]
    balancers = Client(
        "elbv2",
        {
            "describe_load_balancers": [
                {"LoadBalancers": [{}, {}], "NextMarker": "m"},
                {"LoadBalancers": [{}]},
            ]
        },
    )
    assert await AwsAccount({"elbv2": balancers}).count("load_balancers") == 3
    assert balancers.calls == [{}, {"Marker": "m"}]


async def test_lists_without_an_end_are_refused() -> None:
    endless = account("ec2", describe_addresses=[])
    client = endless._clients["ec2"]

    async def page(**_params: Any) -> Any:
        return {"Addresses": [{}], "NextToken": "t"}

    client.describe_addresses = page
    with pytest.raises(Rejected, match="pages of Addresses"):
        await endless.count("addresses")


async def test_lambdas_at_once() -> None:
    answer = {"AccountLimit": {"ConcurrentExecutions": 10, "UnreservedConcurrentExecutions": 10}}
    assert await account("lambda", get_account_settings=[answer]).concurrency() == 10


async def test_instance_types() -> None:
    answer = {"InstanceTypes": [{"InstanceType": "c7g.medium", "VCpuInfo": {"DefaultVCpus": 1}}]}
    assert await account("ec2", describe_instance_types=[answer]).vcpus_of("c7g.medium") == 1
    unknown = account("ec2", describe_instance_types=["InvalidInstanceType"])
    assert await unknown.vcpus_of("c0.tiny") is None


async def test_vcpus_of_standard_instances_on_demand() -> None:
    instances = [
        {"InstanceType": "c7i.large", "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2}},
        {"InstanceType": "t4g.small", "CpuOptions": {"CoreCount": 2, "ThreadsPerCore": 1}},
        {"InstanceType": "g5.xlarge", "CpuOptions": {"CoreCount": 2, "ThreadsPerCore": 2}},
        {
            "InstanceType": "c7i.large",
            "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2},
            "InstanceLifecycle": "spot",
        },
    ]
    answer = {"Reservations": [{"Instances": instances[:2]}, {"Instances": instances[2:]}]}
    assert await account("ec2", describe_instances=[answer]).standard_vcpus() == 4


async def test_zones() -> None:
    zones = [
        {"ZoneName": "b", "ZoneType": "availability-zone"},
        {"ZoneName": "a", "ZoneType": "availability-zone"},
        {"ZoneName": "a-lax", "ZoneType": "local-zone"},
    ]
    found = account("ec2", describe_availability_zones=[{"AvailabilityZones": zones}])
    assert await found.zones() == ["a", "b"]
    offers = [{"InstanceType": "t", "LocationType": "availability-zone", "Location": "b"}]
    offered = account("ec2", describe_instance_type_offerings=[{"InstanceTypeOfferings": offers}])
    assert await offered.zones_of("t") == ["b"]


async def test_endpoints() -> None:
    details = [
        {"ServiceName": "com.amazonaws.eu-central-1.sqs", "AvailabilityZones": ["b", "a"]},
        {"ServiceName": "com.amazonaws.eu-central-1.ecr.api", "AvailabilityZones": ["a"]},
        {"ServiceName": "com.amazonaws.vpce.eu-central-1.vpce-svc-1", "AvailabilityZones": ["a"]},
        {"ServiceName": "aws.sagemaker.eu-central-1.studio", "AvailabilityZones": ["a"]},
    ]
    found = account("ec2", describe_vpc_endpoint_services=[{"ServiceDetails": details}])
    zones = await found.endpoint_zones()
    assert zones["sqs"] == ["a", "b"]
    assert zones["ecr.api"] == ["a"]
    assert "studio" not in zones


async def test_keys() -> None:
    default = account("ec2", get_ebs_default_kms_key_id=[{"KmsKeyId": "alias/aws/ebs"}])
    assert await default.volume_key() == "alias/aws/ebs"

    def metadata(manager: str) -> dict[str, Any]:
        return {"KeyMetadata": {"KeyId": "k", "Arn": ARN, "KeyManager": manager, "Enabled": True}}

    aws = account("kms", describe_key=[metadata("AWS")])
    assert await aws.key("k") == Key(ARN, False, True, "", [])
    own = account(
        "kms",
        describe_key=[metadata("CUSTOMER")],
        get_key_policy=[{"Policy": "{}"}],
        list_grants=[{"Grants": [{"GranteePrincipal": "arn:role"}], "Truncated": False}],
    )
    assert await own.key("k") == Key(ARN, True, True, "{}", ["arn:role"])


async def test_buckets() -> None:
    def rules(**default: str) -> dict[str, Any]:
        return {
            "ServerSideEncryptionConfiguration": {
                "Rules": [{"ApplyServerSideEncryptionByDefault": default}]
            }
        }

    plain = account(
        "s3",
        get_bucket_location=[{}],
        get_bucket_encryption=["ServerSideEncryptionConfigurationNotFoundError"],
    )
    assert await plain.bucket("b") == Bucket("us-east-1", "")
    own = account(
        "s3",
        get_bucket_location=[{"LocationConstraint": "eu-central-1"}],
        get_bucket_encryption=[rules(SSEAlgorithm="aws:kms", KMSMasterKeyID=ARN)],
    )
    assert await own.bucket("b") == Bucket("eu-central-1", ARN)


@pytest.mark.parametrize("code", ["AccessDenied", "AccessDeniedException", "UnauthorizedOperation"])
async def test_what_is_not_allowed_is_named(code: str) -> None:
    denied = account("ec2", describe_vpcs=[code])
    with pytest.raises(NotAllowed, match=r"ec2:DescribeVpcs is not allowed"):
        await denied.count("vpcs")


async def test_other_errors_are_those_of_ports() -> None:
    with pytest.raises(Rejected, match="Some"):
        await account("ec2", describe_vpcs=["Nonsense"]).count("vpcs")


def test_every_call_only_reads() -> None:
    for (service, method), permission in PERMISSIONS.items():
        assert method.replace("_", "") in operations(service)
        verb = permission.partition(":")[2]
        assert verb.startswith(("Describe", "Get", "List"))
