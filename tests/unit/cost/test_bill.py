"""The bill: its lines add up, follow the load and the set-up, and fit the template."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from roomcast.cost.bill import ALARMS, ENDPOINTS, METRICS, NETWORKS, VOLUME_GB, Bill, Setup, bill_of
from roomcast.cost.calls import Load, Pace, calls_of
from roomcast.cost.prices import INSTANCE_TYPE, PRICES, UnknownPrice, prices_with

TEMPLATE: Final = Path(__file__).parents[3] / "deploy" / "template.yaml"
PAGE: Final = Path(__file__).parents[3] / "docs" / "metrics.md"
LOAD: Final = Load()


def of(bill: Bill, service: str, what: str) -> float:
    return sum(line.usd for line in bill.lines if (line.service, line.what) == (service, what))


def test_lines_add_up() -> None:
    bill = bill_of(LOAD, Setup(), PRICES)
    assert bill.total == pytest.approx(sum(line.usd for line in bill.lines))
    assert 0 < bill.fixed < bill.total
    for line in bill.lines:
        assert line.usd == pytest.approx(line.quantity * PRICES[line.price].usd)


def test_the_set_up_costs_the_same_under_any_load() -> None:
    one, other = LOAD, replace(LOAD, publications_s=500, clients=50_000, channels=7)
    assert bill_of(one, Setup(), PRICES).fixed == bill_of(other, Setup(), PRICES).fixed
    assert bill_of(one, Setup(), PRICES).total < bill_of(other, Setup(), PRICES).total / 2


def test_known_sums() -> None:
    bill = bill_of(LOAD, Setup(), PRICES)
    assert of(bill, "EC2", "instances") == pytest.approx(2 * 730 * 0.0363)
    assert of(bill, "VPC", "endpoints") == pytest.approx(7 * 2 * 7.30)
    # 1,000 clients of 3,000 that a unit has room for.
    assert of(bill, "Load balancer", "capacity units") == pytest.approx(730 / 3 * 0.008)
    idle = bill_of(replace(LOAD, publications_s=0, clients=0), Setup(), PRICES)
    # Long polls of 20 s, and what a canary takes.
    assert of(idle, "SQS", "receives and deletes") < 0.5


@pytest.mark.parametrize(
    "network, has",
    [
        ("endpoints", {"endpoints", "data of endpoints"}),
        ("shared", set()),
        ("nat", {"NAT gateways", "data of NAT"}),
        ("public", set()),
    ],
)
def test_how_nodes_reach_aws(network: str, has: set[str]) -> None:
    [chosen] = [each for each in NETWORKS if each == network]
    bill = bill_of(LOAD, Setup(network=chosen), PRICES)
    lines = {line.what for line in bill.lines if line.service == "VPC"}
    assert lines == {*has, "public addresses"}


def test_public_machines_and_nat_gateways_have_addresses() -> None:
    def addresses(setup: Setup) -> float:
        return of(bill_of(LOAD, setup, PRICES), "VPC", "public addresses") / (730 * 0.005)

    assert addresses(Setup(network="shared")) == pytest.approx(2)
    assert addresses(Setup(network="nat", internet=False)) == pytest.approx(2)
    assert addresses(Setup(network="public", load_balancer=False)) == pytest.approx(2)
    assert addresses(Setup(network="shared", internet=False)) == 0


def test_fargate() -> None:
    bill = bill_of(LOAD, Setup(compute="fargate", vcpus=0.5, memory_gb=1), PRICES)
    assert of(bill, "Fargate", "vCPUs") == pytest.approx(2 * 730 * 0.5 * 0.03238)
    assert not [line for line in bill.lines if line.service == "EC2"]


def test_prices_are_given_by_name() -> None:
    prices = prices_with({"sqs_million": 0.5, "instance_hour": 0})
    assert prices["sqs_million"].usd == 0.5
    assert prices["sns_million"] == PRICES["sns_million"]
    assert not of(bill_of(LOAD, Setup(), prices), "EC2", "instances")


@pytest.mark.parametrize(
    "found", [{"sqs": 1}, {"sqs_million": "1"}, {"sqs_million": True}, {"sqs_million": -1}]
)
def test_other_prices_are_refused(found: dict[str, object]) -> None:
    with pytest.raises(UnknownPrice, match="sqs"):
        prices_with(found)


def test_every_price_is_used_and_dated() -> None:
    setups = [Setup(network=network, compute="fargate") for network in NETWORKS]
    bills = [bill_of(LOAD, setup, PRICES) for setup in (Setup(), *setups)]
    assert {line.price for bill in bills for line in bill.lines} == PRICES.keys()
    for price in PRICES.values():
        assert price.page.startswith("https://aws.amazon.com/")
        assert re.fullmatch(r"20\d\d-\d\d", price.read)


def test_metrics_are_those_of_a_node_s_report_and_the_reaper_s() -> None:
    _, _, listed = PAGE.read_text(encoding="utf-8").partition("\n## In CloudWatch\n")
    of_nodes, _, of_lambdas = listed.partition("\n## ")[0].partition("\n### ")
    reaper = re.findall(r"^\| `\w+` \| reaper \|", of_lambdas, re.MULTILINE)
    assert len(re.findall(r"^\| `\w+` \|", of_nodes, re.MULTILINE)) + len(reaper) == METRICS
    bill = bill_of(LOAD, Setup(), PRICES)
    assert of(bill, "CloudWatch", "metrics") == pytest.approx(METRICS * 0.30)
    # Two nodes' 7,000 bytes a minute.
    assert of(bill, "CloudWatch", "reports") == pytest.approx(2 * 7000 * 43_800 / 1e9 * 0.50)
    off = bill_of(LOAD, Setup(), PRICES, calls_of(LOAD, Pace(reports_s=0)))
    assert of(off, "CloudWatch", "metrics") == of(off, "CloudWatch", "reports") == 0


def test_the_set_up_is_that_of_the_template() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    of_both, of_instances, of_tasks = (
        text.count(
            f"Condition: Create{whose}Endpoints\n    Properties:\n      VpcEndpointType: Interface"
        )
        for whose in ("Interface", "Instance", "Task")
    )
    assert {"ec2": of_both + of_instances, "fargate": of_both + of_tasks} == ENDPOINTS
    # A few more or less of 0.10 USD make no difference. Who wants no events has no alarms of them.
    alarm = "Type: AWS::CloudWatch::Alarm\n"
    alarms = text.count(alarm) - text.count(f"{alarm}    Condition: HasEvents\n")
    assert alarms == pytest.approx(ALARMS, abs=4)
    assert f"VolumeSize: {VOLUME_GB}" in text
    assert f"Default: {INSTANCE_TYPE}" in text
