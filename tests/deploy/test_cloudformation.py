"""tests/deploy/cloudformation.py works functions out as CloudFormation documents them."""

from __future__ import annotations

import base64
from typing import Any, Final

import pytest

from tests.deploy.cloudformation import Evaluation

TEMPLATE: Final[dict[str, Any]] = {
    "Mappings": {"Seconds": {"Drain": {"Node": "30"}}},
    "Conditions": {
        "Yes": {"Fn::Equals": [{"Ref": "Count"}, 1]},
        "No": {"Fn::Not": [{"Condition": "Yes"}]},
        "Both": {"Fn::And": [{"Condition": "Yes"}, {"Condition": "No"}]},
        "One": {"Fn::Or": [{"Condition": "Yes"}, {"Condition": "No"}]},
    },
    "Rules": {
        "Kept": {
            "RuleCondition": {"Condition": "Yes"},
            "Assertions": [{"Assert": {"Condition": "One"}}],
        },
        "Broken": {
            "RuleCondition": {"Condition": "Yes"},
            "Assertions": [{"Assert": {"Condition": "No"}}],
        },
        "Idle": {
            "RuleCondition": {"Condition": "No"},
            "Assertions": [{"Assert": {"Condition": "No"}}],
        },
    },
    "Resources": {
        "Always": {
            "Type": "T",
            "Properties": {"Size": {"Ref": "Count"}, "None": {"Ref": "AWS::NoValue"}},
        },
        "Sometimes": {"Type": "T", "Condition": "No", "Properties": {}},
    },
}
EVALUATION: Final = Evaluation(
    TEMPLATE,
    {"Count": "1", "Cidr": "10.1.0.0/16", "List": "a,b"},
    {"AWS::Region": "eu-west-1"},
    ("eu-west-1a", "eu-west-1b"),
    lambda name: f"physical-{name}",
    lambda name, attribute: f"{name}/{attribute}",
    {"other-eu-west-1": "exported"},
)


@pytest.mark.parametrize(
    "part, value",
    [
        ({"Ref": "Count"}, "1"),
        ({"Ref": "AWS::Region"}, "eu-west-1"),
        ({"Ref": "Always"}, "physical-Always"),
        ({"Fn::GetAtt": ["Always", "Arn"]}, "Always/Arn"),
        ({"Fn::ImportValue": {"Fn::Sub": "other-${AWS::Region}"}}, "exported"),
        (
            {"Fn::Sub": "${AWS::Region} ${Always} ${Always.Arn} ${!x}"},
            "eu-west-1 physical-Always Always/Arn ${x}",
        ),
        (
            {
                "Fn::Sub": [
                    "${Own}-${Count}",
                    {"Own": {"Fn::FindInMap": ["Seconds", "Drain", "Node"]}},
                ]
            },
            "30-1",
        ),
        ({"Fn::If": ["Yes", {"Ref": "Count"}, 2]}, "1"),
        ([1, {"Fn::If": ["No", 2, {"Ref": "AWS::NoValue"}]}], [1]),
        ({"Fn::Split": [",", {"Ref": "List"}]}, ["a", "b"]),
        ({"Fn::Select": ["1", {"Fn::GetAZs": ""}]}, "eu-west-1b"),
        ({"Fn::Select": [2, {"Fn::Cidr": [{"Ref": "Cidr"}, 4, 8]}]}, "10.1.2.0/24"),
        ({"Fn::Base64": {"Ref": "Count"}}, base64.b64encode(b"1").decode()),
        ({"a": [{"b": {"Ref": "Count"}}], "c": True}, {"a": [{"b": "1"}], "c": True}),
    ],
)  # fmt: skip
def test_functions(part: Any, value: Any) -> None:
    assert EVALUATION.value(part) == value


def test_conditions_rules_and_what_is_made() -> None:
    held = [name for name in TEMPLATE["Conditions"] if EVALUATION.holds(name)]
    assert held == ["Yes", "One"]
    assert EVALUATION.broken_rules() == {"Broken"}
    assert EVALUATION.resources() == {"Always"}
    assert EVALUATION.properties("Always") == {"Size": "1"}


def test_a_function_that_is_not_known_is_not_guessed() -> None:
    with pytest.raises(NotImplementedError):
        EVALUATION.value({"Fn::Transform": {}})
    with pytest.raises(NotImplementedError):
        EVALUATION.holds({"Fn::Contains": [[], "a"]})
