"""What the template needs of an account: what is enough, what is not, and what to ask for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from roomcast.account.readings import Bucket, Identity, Key, Quota
from roomcast.account.rules import (
    FARGATE_VCPUS,
    INSTANCE_SERVICES,
    INTERFACE_SERVICES,
    STANDARD_VCPUS,
    TASK_SERVICES,
    VPCS,
    Needed,
    bucket_finding,
    concurrency_finding,
    endpoints_finding,
    is_standard,
    key_finding,
    quota_finding,
    sns_finding,
    type_finding,
    vcpus_finding,
)

TEMPLATE: Final = Path(__file__).parents[3] / "deploy" / "template.yaml"
REGION: Final = "eu-central-1"
IDENTITY: Final = Identity("123456789012", "arn:aws:iam::123456789012:user/ann", REGION)
A, B, C = ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")
EVERYWHERE: Final = dict.fromkeys(
    (*INTERFACE_SERVICES, *INSTANCE_SERVICES, "s3", "dynamodb"), ZONES
)
KEY: Final = Key("arn:aws:kms:eu-central-1:123456789012:key/k", True, True, "{}", [])


def quota(value: float) -> Quota:
    return Quota("ec2", "L-1216C47A", "Running On-Demand Standard instances", value)


@pytest.mark.parametrize("used, outcome", [(3, "ok"), (4, "ok"), (5, "failed")])
def test_a_quota_has_room_or_not(used: int, outcome: str) -> None:
    found = quota_finding(VPCS, Quota("vpc", VPCS.code, "VPCs", 5), used, 1, REGION)
    assert found.outcome == outcome
    assert (found.ask != "") is (outcome == "failed")


def test_what_to_ask_for_is_a_command() -> None:
    found = quota_finding(VPCS, Quota("vpc", VPCS.code, "VPCs", 5), 5, 1, REGION)
    assert found.ask == (
        "aws service-quotas request-service-quota-increase --service-code vpc "
        "--quota-code L-F678F1CE --desired-value 6 --region eu-central-1"
    )


def test_a_quota_that_is_not_known_is_no_failure() -> None:
    found = quota_finding(VPCS, None, 5, 1, REGION)
    assert (found.outcome, found.ask) == ("note", "")
    assert VPCS.code in found.told


@pytest.mark.parametrize(
    "value, used, outcome",
    [
        # A new account has five: two instances and one more for an update are three.
        (5, 0, "warning"),
        (5, 3, "failed"),
        (2, 0, "failed"),
        (10, 0, "warning"),
        (11, 0, "ok"),
        (32, 0, "ok"),
    ],
)
def test_vcpus_for_the_first_instances_and_for_all(value: float, used: int, outcome: str) -> None:
    found = vcpus_finding(STANDARD_VCPUS, quota(value), used, 1, Needed(), REGION)
    assert found.outcome == outcome
    if outcome != "ok":
        assert f"--desired-value {used + 11} " in found.ask


def test_larger_types_and_tasks_take_more() -> None:
    large = vcpus_finding(STANDARD_VCPUS, quota(11), 0, 4, Needed(), REGION)
    assert large.outcome == "failed"
    small = vcpus_finding(FARGATE_VCPUS, quota(6), 0, 0.5, Needed(), REGION)
    assert small.outcome == "ok"


@pytest.mark.parametrize(
    "instance_type, standard",
    [
        ("c7g.medium", True), ("t4g.small", True), ("m7i.large", True), ("im4gn.large", True),
        ("g5.xlarge", False), ("inf2.xlarge", False), ("trn1.2xlarge", False),
        ("hpc7g.4xlarge", False), ("mac2.metal", False), ("dl1.24xlarge", False),
        ("p5.48xlarge", False), ("x2gd.medium", False),
    ],
)  # fmt: skip
def test_which_types_share_the_quota(instance_type: str, standard: bool) -> None:
    assert is_standard(instance_type) is standard


@pytest.mark.parametrize(
    "concurrency, outcome", [(5, "failed"), (10, "warning"), (100, "warning"), (1000, "ok")]
)
def test_lambdas_at_once(concurrency: int, outcome: str) -> None:
    found = concurrency_finding(concurrency, REGION)
    assert found.outcome == outcome
    if outcome != "ok":
        assert "ReserveReaper=false" in found.told
        assert "--quota-code L-B99A9384 --desired-value 1000" in found.ask


def test_messages_to_sns() -> None:
    def named(value: float, name: str) -> Quota:
        return Quota("sns", "L-1", name, value)

    small = sns_finding([named(300, "Messages Published per Second")], REGION)
    assert small.outcome == "warning"
    assert "--service-code sns --quota-code L-1 --desired-value 3000" in small.ask
    assert sns_finding([named(30_000, "Publish API, standard topics")], REGION).outcome == "ok"
    unknown = sns_finding([named(300, "Publish API, FIFO topics"), named(1, "Topics")], REGION)
    assert unknown.outcome == "note"


def test_the_instance_type_is_offered_where_the_subnets_are() -> None:
    def outcome(*offered: str, makes_vpc: bool = True) -> str:
        return type_finding("c7g.medium", ZONES, offered, makes_vpc=makes_vpc).outcome

    assert outcome(A, B) == "ok"
    assert outcome(A, B, C) == "ok"
    # A new VPC has its subnets in the first two zones.
    assert outcome(A, C) == "failed"
    assert outcome(A, C, makes_vpc=False) == "ok"
    assert outcome(B, makes_vpc=False) == "failed"
    assert outcome() == "failed"


def test_endpoints_are_in_two_zones() -> None:
    assert endpoints_finding(ZONES, EVERYWHERE, makes_vpc=True).outcome == "ok"
    lame = EVERYWHERE | {"ssm": (A, C)}
    found = endpoints_finding(ZONES, lame, makes_vpc=True)
    assert found.outcome == "failed"
    assert found.told.endswith(": ssm")
    assert endpoints_finding(ZONES, lame, makes_vpc=False).outcome == "ok"
    on_fargate = endpoints_finding(ZONES, EVERYWHERE, makes_vpc=True, on_fargate=True)
    assert on_fargate.told.endswith(": ecr.api, ecr.dkr")
    without = {name: zones for name, zones in EVERYWHERE.items() if name != "s3"}
    assert endpoints_finding(ZONES, without, makes_vpc=True).told.endswith(": s3")


def test_services_are_those_of_the_template() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    named = re.findall(
        r"Condition: Create(\w+)Endpoints\n.*?"
        r"ServiceName: !Sub com\.amazonaws\.\$\{AWS::Region\}\.([\w.]+)\n",
        text,
        re.DOTALL,
    )
    expected = {
        "Gateway": ("dynamodb", "s3"),
        "Interface": INTERFACE_SERVICES,
        "Instance": INSTANCE_SERVICES,
        "Task": TASK_SERVICES,
    }
    assert {
        whose: sorted(service for form, service in named if form == whose) for whose in expected
    } == {whose: sorted(services) for whose, services in expected.items()}


@pytest.mark.parametrize(
    "key",
    [
        None,
        replace(KEY, is_customers=False),
        replace(KEY, policy='{"Principal": "…/AWSServiceRoleForAutoScaling"}'),
        replace(KEY, users=["arn:aws:iam::1:role/…/AWSServiceRoleForAutoScaling"]),
    ],
)
def test_keys_that_auto_scaling_may_use(key: Key | None) -> None:
    assert key_finding(key, IDENTITY).outcome == "ok"


def test_a_key_of_the_account_needs_a_grant() -> None:
    found = key_finding(KEY, IDENTITY)
    assert found.outcome == "failed"
    assert found.ask.startswith(f"aws kms create-grant --key-id {KEY.arn} --grantee-principal ")
    assert (
        "arn:aws:iam::123456789012:role/aws-service-role/autoscaling.amazonaws.com/"
        "AWSServiceRoleForAutoScaling"
    ) in found.ask
    assert key_finding(replace(KEY, is_enabled=False), IDENTITY).outcome == "failed"


def test_buckets() -> None:
    own = Bucket(REGION, "")
    assert bucket_finding("b", own, None, REGION).outcome == "ok"
    assert bucket_finding("b", own, replace(KEY, is_customers=False), REGION).outcome == "ok"
    assert bucket_finding("b", Bucket("us-east-1", ""), None, REGION).outcome == "failed"
    found = bucket_finding("b", Bucket(REGION, KEY.arn), KEY, REGION)
    assert found.outcome == "failed"
    assert found.ask.startswith("aws s3api put-bucket-encryption --bucket b ")
