"""The checks of an account, over one in memory: their order, and what may not be read."""

from __future__ import annotations

import pytest

from roomcast.account.checks import AccountChecks
from roomcast.account.rules import Finding, Needed
from tests.unit.account.memory import Account


@pytest.fixture
def account() -> Account:
    return Account()


async def checked(account: Account, **needed: object) -> dict[str, Finding]:
    told: list[Finding] = []
    findings = await AccountChecks(account, Needed(**needed), told.append).run()  # type: ignore[arg-type]
    assert findings == told, "each is told"
    found = {finding.name: finding for finding in findings}
    assert len(found) == len(findings), "each has a name of its own"
    return found


async def test_a_new_account(account: Account) -> None:
    found = await checked(account)
    assert {name: finding.outcome for name, finding in found.items()} == {
        "account": "note",
        "quota: vCPUs on demand": "warning",
        "quota: Lambda at once": "warning",
        "quota: messages to SNS": "ok",
        "quota: load balancers": "ok",
        "quota: VPCs": "ok",
        "quota: internet gateways": "ok",
        "quota: gateway endpoints": "ok",
        "quota: interface endpoints": "ok",
        "endpoints": "ok",
        "instance type c7g.medium": "ok",
        "key of volumes": "ok",
    }
    assert "key" not in account.read, "nobody asks KMS for AWS's own key"


async def test_on_fargate_in_a_vpc_with_nat(account: Account) -> None:
    found = await checked(
        account, on_fargate=True, makes_vpc=False, has_nat=True, bucket="built", vcpus=4.0
    )
    assert found["quota: vCPUs of Fargate"].outcome == "failed"
    assert "--service-code fargate --quota-code L-3032A538" in found["quota: vCPUs of Fargate"].ask
    assert found["quota: Elastic IP addresses"].outcome == "ok"
    assert found["bucket built"].outcome == "ok"
    assert not {"quota: VPCs", "quota: vCPUs on demand", "key of volumes"} & found.keys()


async def test_a_key_of_the_account(account: Account) -> None:
    account.own_key = "arn:aws:kms:eu-central-1:123456789012:key/k"
    assert (await checked(account))["key of volumes"].outcome == "failed"


@pytest.mark.parametrize("call", ["identity", "quota", "concurrency", "zones", "volume_key"])
async def test_what_may_not_be_read_is_named_and_the_rest_goes_on(
    account: Account, call: str
) -> None:
    everything = await checked(account)
    account.denied = {call}
    found = await checked(account)
    assert found.keys() == everything.keys()
    skipped = [finding for finding in found.values() if finding.outcome == "skipped"]
    assert skipped
    for finding in skipped:
        assert finding.told == f"could not be checked: some:{call} is not allowed"


async def test_calls_that_fail_fail_the_check(account: Account) -> None:
    account.broken = {"zones"}
    found = await checked(account)
    assert found["endpoints"].outcome == "failed"
    assert found["endpoints"].told == "could not be checked: no answer in time"


async def test_other_instance_types(account: Account) -> None:
    found = await checked(account, instance_type="c7i.large")
    # Two, and one more for an update, of two each.
    assert found["quota: vCPUs on demand"].outcome == "failed"
    assert (await checked(account, instance_type="c0.tiny"))[
        "quota: vCPUs on demand"
    ].outcome == "failed"
    assert (await checked(account, instance_type="g5.xlarge"))[
        "quota: vCPUs on demand"
    ].outcome == "note"


async def test_without_credentials_nothing_else_is_tried(account: Account) -> None:
    account.broken = {"identity"}
    found = await checked(account)
    assert {name: finding.outcome for name, finding in found.items()} == {"account": "failed"}
    assert account.read == ["identity"]
