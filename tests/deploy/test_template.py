"""deploy/template.yaml, and deploy/data.yaml that it runs on: they refer to what exists,
allow no more than is needed, and agree with each other and with the code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Final

import pytest

from roomcast.aws.errors import CALL_LIMIT_S
from roomcast.aws.schema import TableSchema, table_schemas
from roomcast.config import OPTIONS, Config
from roomcast.delivery.shards import SHARDS_MAX, topic_arns, topic_of
from roomcast.dev.event_source import MappingOptions, is_append
from roomcast.ec2 import lifecycle
from roomcast.fleet.deployment import APP, APP_TAG, TOPIC_TAG, queue_tags
from roomcast.node import node
from roomcast.observe.cloudwatch import INTERVAL_S, Counts, Readings
from roomcast.observe.counters import AppendCounters, StageCounters
from roomcast.reaper.reaper import SECOND_LOOK_S
from roomcast.serve import process as app
from roomcast.serve import supervisor
from roomcast.serve.tries import END_TRIES_S
from roomcast.stream_batch import CALL_S_MAX
from tests.deploy.cloudformation import (
    DATA,
    ROOT,
    Evaluation,
    Statement,
    exports,
    imported,
    load,
    matches,
    references,
    statements,
    sub_names,
    values,
)

TEMPLATE: Final = load()
PARAMETERS: Final[dict[str, Any]] = TEMPLATE["Parameters"]
RESOURCES: Final[dict[str, Any]] = TEMPLATE["Resources"]
KEPT: Final = load(DATA)
BOTH: Final = pytest.mark.parametrize("template", [TEMPLATE, KEPT], ids=["fleet", "data"])
DATA_STACK: Final = "chat-data"
UNIT: Final = (ROOT / "deploy" / "instance" / "roomcast.service").read_text(encoding="utf-8")
PSEUDO: Final = frozenset(
    {
        "AWS::AccountId",
        "AWS::NoValue",
        "AWS::Partition",
        "AWS::Region",
        "AWS::StackName",
        "AWS::URLSuffix",
    }
)
# A drain's slices may take half as long again: service/roomcast/node/node.py.
JITTER: Final = 1.5
CONFIG: Final = Config()
# The group, and the name of a deployment's nodes in its metrics, whatever they run on.
FLEET: Final = {"Fn::Sub": "${AWS::StackName}-fleet"}


def of_type(kind: str, template: Mapping[str, Any] = TEMPLATE) -> dict[str, Any]:
    return {
        name: each["Properties"]
        for name, each in template["Resources"].items()
        if each["Type"] == kind
    }


def evaluated(template: Mapping[str, Any], stack: str, **given: str) -> Evaluation:
    """With these parameters, and all others as they are by default."""
    parameters = {
        name: str(each.get("Default", "x")) for name, each in template["Parameters"].items()
    }
    return Evaluation(
        template,
        parameters | {"DataStack": DATA_STACK} | given,
        dict.fromkeys(PSEUDO, "pseudo") | {"AWS::StackName": stack},
        (),
        lambda resource: resource,
        lambda resource, name: f"{resource}.{name}",
        {} if template is KEPT else exports(evaluated(KEPT, DATA_STACK, TopicShards="16")),
    )


def seconds(group: str, name: str) -> int:
    return int(TEMPLATE["Mappings"]["Seconds"][group][name])


def found_in_map(value: Any) -> Any:
    """The value of a Fn::FindInMap; anything else as it is."""
    if isinstance(value, Mapping) and "Fn::FindInMap" in value:
        name, top, second = value["Fn::FindInMap"]
        return TEMPLATE["Mappings"][name][top][second]
    return value


def attributes(properties: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Load balancers and target groups have theirs as pairs."""
    return {pair["Key"]: found_in_map(pair["Value"]) for pair in properties[key] if "Key" in pair}


# ---- it refers to what exists


@BOTH
def test_every_reference_resolves(template: Mapping[str, Any]) -> None:
    known = PSEUDO | template["Parameters"].keys() | template["Resources"].keys()
    sections = ("Resources", "Outputs", "Conditions", "Rules")
    assert references([template.get(each, {}) for each in sections]) - known == set()


@BOTH
def test_every_condition_and_map_exists_and_every_parameter_is_used(
    template: Mapping[str, Any],
) -> None:
    parts = [template["Resources"], template["Outputs"], template["Conditions"]]
    conditions = {
        *(
            each["Condition"]
            for section in ("Resources", "Outputs")
            for each in template[section].values()
            if "Condition" in each
        ),
        *(name for name, *_ in values(parts, "Fn::If")),
        *(name for name in values(template["Conditions"], "Condition") if isinstance(name, str)),
    }
    assert conditions == set(template["Conditions"])
    for name, top, second in values(parts, "Fn::FindInMap"):
        assert second in template["Mappings"][name][top]
    used = references([*parts, template.get("Rules", {})])
    assert template["Parameters"].keys() - used == set()


def test_what_is_taken_from_the_data_stack_is_what_it_exports() -> None:
    taken = [argument["Fn::Sub"] for argument in values(TEMPLATE, "Fn::ImportValue")]
    assert all(each.startswith("${DataStack}-") for each in taken)
    ours = evaluated(TEMPLATE, "chat", TopicShards="16")
    wanted = {ours.value({"Fn::Sub": each}) for each in taken}
    assert wanted == exports(evaluated(KEPT, DATA_STACK, TopicShards="16")).keys() - {
        f"{DATA_STACK}-TopicShards{shards}" for shards in (2, 4, 8)
    }


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16])
def test_no_more_topic_shards_are_heard_than_there_are_topics(shards: int) -> None:
    """What imports an export that is not there is not deployed."""
    there = exports(evaluated(KEPT, DATA_STACK, TopicShards=str(shards)))
    for heard in PARAMETERS["TopicShards"]["AllowedValues"]:
        name = f"{DATA_STACK}-TopicShards{heard}"
        assert (heard == 1 or name in there) == (heard <= shards)
    assert PARAMETERS["TopicShards"] | {"Description": ""} == KEPT["Parameters"]["TopicShards"] | {
        "Description": ""
    }
    told = reaper_environment()["ROOMCAST_AWS_TOPIC_SHARDS"]
    assert told == {"Fn::If": ["HasTopicShards", imported("TopicShards${TopicShards}"), "1"]}


ADOPTED: Final = (
    "arn:aws:dynamodb:eu-central-1:123456789012:table/again-channels/stream/2026-11-30T12:00:00.000"
)


def test_tables_that_are_there_are_used_and_not_made() -> None:
    """Restored ones, or kept ones of a stack that was deleted."""
    assert re.fullmatch(KEPT["Parameters"]["ChannelsStreamArn"]["AllowedPattern"], ADOPTED)
    made = evaluated(KEPT, DATA_STACK, TablePrefix="again-")
    adopted = evaluated(KEPT, DATA_STACK, TablePrefix="again-", ChannelsStreamArn=ADOPTED)
    assert made.resources() - adopted.resources() == {"ChannelsTable", "IdempotencyTable"}
    for each in (made, adopted):
        assert exports(each)[f"{DATA_STACK}-TablePrefix"] == "again-"
    told = {name.removeprefix(f"{DATA_STACK}-"): each for name, each in exports(adopted).items()}
    arn = "arn:pseudo:dynamodb:pseudo:pseudo:table/again-"
    assert told["ChannelsTable"] == "again-channels"
    assert (told["ChannelsTableArn"], told["ChannelsStreamArn"]) == (f"{arn}channels", ADOPTED)
    assert told["IdempotencyTableArn"] == f"{arn}idempotency"
    assert exports(adopted).keys() == exports(made).keys()


def test_no_deployment_s_queues_have_names_that_begin_as_another_s() -> None:
    def prefix(stack: str) -> str:
        given = evaluated(TEMPLATE, stack).properties("Reaper")["Environment"]["Variables"]
        return str(given["ROOMCAST_AWS_QUEUE_PREFIX"])

    (option,) = [each for each in OPTIONS if each.key == "aws.queue_prefix"]
    assert re.fullmatch(str(option.rules.pattern), prefix("chat"))
    assert not prefix("chat-2").startswith(prefix("chat"))
    assert prefix("chat") != prefix("other")


def test_what_a_resource_depends_on_is_there_whenever_it_is() -> None:
    for name, each in RESOURCES.items():
        depends = each.get("DependsOn", [])
        for other in [depends] if isinstance(depends, str) else depends:
            assert RESOURCES[other].get("Condition") in (None, each.get("Condition")), (
                f"{name} on {other}"
            )


@pytest.mark.parametrize(
    "nodes, others", [("Fleet", "CreateTaskEndpoints"), ("Service", "CreateInstanceEndpoints")]
)
def test_every_conditional_endpoint_is_there_before_the_nodes(nodes: str, others: str) -> None:
    after = RESOURCES[nodes]["Metadata"]["After"]
    endpoints = [
        {"Fn::If": [RESOURCES[name]["Condition"], {"Ref": name}, ""]}
        for name in of_type("AWS::EC2::VPCEndpoint")
        if RESOURCES[name]["Condition"] != others
    ]
    assert len(endpoints) > 5
    assert all(endpoint in after for endpoint in endpoints)


EXISTING: Final = {
    "VpcId": "vpc-1",
    "PrivateSubnetIds": "subnet-1,subnet-2",
    "EndpointSecurityGroupId": "sg-1",
}
OURS_ALONE: Final = EXISTING | {"EndpointSecurityGroupId": "", "DedicatedVpc": "true"}


DIGEST: Final = "sha256:" + "5f" * 32
RELEASE: Final = {"ReleaseKey": "release", "ImageId": "ami-12345678"}
ON_TASKS: Final = {"Compute": "fargate", "ImageDigest": "sha256:1"}


@pytest.mark.parametrize(
    "given, broken",
    [
        ({}, set()),
        ({"ReleaseKey": ""}, {"InstancesHaveReleaseAndImage"}),
        ({"ImageId": ""}, {"InstancesHaveReleaseAndImage"}),
        (ON_TASKS, set()),
        (ON_TASKS | {"ReleaseKey": "", "ImageId": ""}, set()),
        (ON_TASKS | {"ImageDigest": ""}, {"TasksHaveImageAndEachOther"}),
        (ON_TASKS | {"MinInstances": "1"}, {"TasksHaveImageAndEachOther"}),
        ({"MinInstances": "1"}, set()),
        ({"Scheme": "internet-facing"}, set()),
        (EXISTING, set()),
        (OURS_ALONE, set()),
        (OURS_ALONE | {"PrivateRouteTableIds": "rtb-1"}, set()),
        # What the template makes would cut off whatever else is in the VPC.
        (OURS_ALONE | {"DedicatedVpc": "false"}, {"SharedVpcKeepsItsEndpoints"}),
        (EXISTING | {"PrivateRouteTableIds": "rtb-1"}, {"SharedVpcKeepsItsEndpoints"}),
        (EXISTING | {"Scheme": "internet-facing", "PublicSubnetIds": "subnet-3,subnet-4"}, set()),
        ({"DomainName": "chat.example.com", "HostedZoneId": "Z1"}, set()),
        ({"EventsTargetArn": "arn:aws:sqs:x"}, {"EventsHaveCode"}),
        ({"EventsTargetArn": "arn:aws:sqs:x", "EventsLambdaKey": "key"}, set()),
        (EXISTING | {"PrivateSubnetIds": ""}, {"ExistingVpcIsDescribed"}),
        ({"PrivateSubnetIds": "subnet-1,subnet-2"}, {"NewVpcIsNotDescribed"}),
        ({"EndpointSecurityGroupId": "sg-1"}, {"NewVpcIsNotDescribed"}),
        (EXISTING | {"Scheme": "internet-facing"}, {"PublicLoadBalancerHasSubnets"}),
        ({"HostedZoneId": "Z1"}, {"AliasHasName"}),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(
    given: dict[str, str], broken: set[str]
) -> None:
    parameters = {name: str(each.get("Default")) for name, each in PARAMETERS.items()}

    def nothing(*_names: str) -> str:
        raise AssertionError("rules are about parameters")

    evaluation = Evaluation(TEMPLATE, parameters | RELEASE | given, {}, (), nothing, nothing)
    assert evaluation.broken_rules() == broken


@pytest.mark.parametrize("metric", ["HealthyHostCount", "UnHealthyHostCount"])
def test_there_is_an_alarm_for_no_healthy_node_and_one_for_an_unhealthy_node(
    metric: str,
) -> None:
    watched = [
        name
        for name, alarm in of_type("AWS::CloudWatch::Alarm").items()
        if alarm.get("MetricName") == metric and "Condition" not in RESOURCES[name]
    ]
    (alarm,) = watched
    # The other group has the same nodes, and asks them the same.
    for compute, group in (("ec2", "TargetGroup0"), ("fargate", "TaskTargetGroup")):
        dimensions = evaluated(TEMPLATE, "chat", Compute=compute).properties(alarm)["Dimensions"]
        assert {"Name": "TargetGroup", "Value": f"{group}.TargetGroupFullName"} in dimensions


def test_one_dead_node_among_many_alarms_and_one_that_is_replaced_does_not() -> None:
    """A dead node tells of nothing, and no instance leaves service for it."""
    alarms = [
        alarm
        for alarm in of_type("AWS::CloudWatch::Alarm").values()
        if alarm.get("MetricName") == "UnHealthyHostCount"
    ]
    assert alarms
    for alarm in alarms:
        # One is enough, whatever the others are like.
        assert (alarm["Statistic"], alarm["ComparisonOperator"], alarm["Threshold"]) == (
            "Maximum",
            "GreaterThanThreshold",
            0,
        )
        # A node that drains, or that systemd starts again, is unhealthy for less than this.
        assert alarm["DatapointsToAlarm"] == alarm["EvaluationPeriods"]
        assert alarm["Period"] * alarm["EvaluationPeriods"] > unit_seconds("TimeoutStopSec")
        # A group without targets is NoHealthyNode's.
        assert alarm["TreatMissingData"] == "notBreaching"


def test_the_reaper_is_retried_by_its_schedule() -> None:
    assert RESOURCES["ReaperInvocation"]["Properties"]["MaximumRetryAttempts"] == 0
    function = RESOURCES["Reaper"]["Properties"]
    assert function["MemorySize"] >= 1024
    # A second look at leases, and as long for what follows from it.
    assert function["Timeout"] > 2 * SECOND_LOOK_S


@BOTH
def test_the_parameters_are_shown_in_groups(template: Mapping[str, Any]) -> None:
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    shown = [name for group in groups for name in group["Parameters"]]
    assert sorted(shown) == sorted(template["Parameters"])


def test_a_broken_reference_is_found() -> None:
    part = {
        "A": [{"Ref": "X"}, {"Fn::GetAtt": ["Y", "Arn"]}],
        "B": {"Fn::Sub": ["${Z.Arn}${own}${!w}", {"own": 1}]},
    }
    assert references(part) == {"X", "Y", "Z"}
    assert sub_names("${AWS::Region}-${Q}") == {"AWS::Region", "Q"}


# ---- tags

# Those of these types that CloudFormation can tag.
TAGGED: Final = frozenset(
    {
        "AWS::AutoScaling::AutoScalingGroup", "AWS::CloudWatch::Alarm",
        "AWS::CloudWatch::Dashboard", "AWS::CodeDeploy::Application",
        "AWS::CodeDeploy::DeploymentGroup", "AWS::DynamoDB::Table", "AWS::EC2::InternetGateway",
        "AWS::EC2::LaunchTemplate", "AWS::EC2::RouteTable", "AWS::EC2::SecurityGroup",
        "AWS::EC2::Subnet", "AWS::EC2::VPC", "AWS::EC2::VPCEndpoint",
        "AWS::ElasticLoadBalancingV2::Listener", "AWS::ElasticLoadBalancingV2::ListenerRule",
        "AWS::ElasticLoadBalancingV2::LoadBalancer", "AWS::ElasticLoadBalancingV2::TargetGroup",
        "AWS::ECS::Cluster", "AWS::ECS::Service", "AWS::ECS::TaskDefinition",
        "AWS::Events::Rule", "AWS::IAM::Role", "AWS::Lambda::EventSourceMapping",
        "AWS::Lambda::Function", "AWS::Logs::LogGroup", "AWS::S3::Bucket", "AWS::SNS::Topic",
        "AWS::WAFv2::WebACL",
    }
)  # fmt: skip
UNTAGGED: Final = frozenset(
    {
        "AWS::ApplicationAutoScaling::ScalableTarget",
        "AWS::ApplicationAutoScaling::ScalingPolicy",
        "AWS::AutoScaling::ScalingPolicy", "AWS::EC2::Route", "AWS::EC2::SecurityGroupEgress",
        "AWS::EC2::SecurityGroupIngress", "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPCGatewayAttachment", "AWS::IAM::InstanceProfile",
        "AWS::IAM::Policy", "AWS::Lambda::Alias", "AWS::Lambda::EventInvokeConfig",
        "AWS::Lambda::Permission", "AWS::Lambda::Version", "AWS::Route53::RecordSet",
        "AWS::S3::BucketPolicy", "AWS::WAFv2::WebACLAssociation",
    }
)  # fmt: skip


@BOTH
def test_everything_that_can_be_is_tagged(template: Mapping[str, Any]) -> None:
    for name, each in template["Resources"].items():
        assert each["Type"] in TAGGED | UNTAGGED, f"{each['Type']}: can it be tagged?"
        if each["Type"] in UNTAGGED:
            continue
        found = list(values(each["Properties"], "Tags"))
        assert found, name
        for tags in found:
            pairs = {tag["Key"]: tag["Value"] for tag in tags}
            assert pairs["app"] == "roomcast", name
            assert pairs["deployment"] == {"Ref": "AWS::StackName"}, name


# ---- what is allowed

# Calls that IAM authorizes without a resource, by Sid; each stands in the template with its reason.
ANYWHERE: Final = {
    "ListStreams": {"dynamodb:ListStreams"},
    "LookAtAlarms": {"cloudwatch:DescribeAlarms"},
    "ListQueues": {"sqs:ListQueues"},
    "Unsubscribe": {"sns:Unsubscribe"},
    "Agent": {"ssm:UpdateInstanceInformation"},
    "RegistryToken": {"ecr:GetAuthorizationToken"},
    "Sessions": {
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
    },
}
# What user data, the CloudWatch agent, Lambda and the event source mapping call;
# the rest is called by the adapters.
NOT_OURS: Final = frozenset(
    {
        "dynamodb:DescribeStream",
        "dynamodb:GetRecords",
        "dynamodb:GetShardIterator",
        "dynamodb:ListStreams",
        "logs:CreateLogStream",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:PutObject",
        "secretsmanager:GetSecretValue",
        "sqs:TagQueue",  # CreateQueue with tags
        *ANYWHERE["Sessions"],
    }
)
# Operations whose permission has another name; None = those of its parts.
OTHERWISE: Final = {
    "change_message_visibility_batch": "sqs:ChangeMessageVisibility",
    "delete_message_batch": "sqs:DeleteMessage",
    "publish_batch": "sns:Publish",
    "transact_write_items": None,
}
PREFIXES: Final = {
    "autoscaling": "autoscaling",
    "channel_table": "dynamodb",
    "leases": "dynamodb",
    "presence": "dynamodb",
    "topic": "sns",
}


def role(name: str) -> list[Statement]:
    return statements(name, RESOURCES[name])


WITH_STATEMENTS: Final = (
    "AWS::EC2::VPCEndpoint",
    "AWS::IAM::Policy",
    "AWS::IAM::Role",
    "AWS::S3::BucketPolicy",
)


def every_statement() -> list[Statement]:
    return [
        statement
        for name, each in RESOURCES.items()
        if each["Type"] in WITH_STATEMENTS
        for statement in statements(name, each)
    ]


def allowed(name: str) -> set[str]:
    return {action for statement in role(name) for action in statement.actions}


@cache
def called() -> frozenset[str]:
    """The permissions of all calls in the adapters and the stream Lambda."""
    source = ROOT / "service" / "roomcast"
    paths = [*(source / "aws").glob("*.py"), *(source / "ec2").glob("*.py")]
    paths.append(ROOT / "stream_lambda" / "handler.py")
    found: set[str] = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for holder, operation in re.findall(
            r"\b(?:self\._)?(client|sqs|sns|control|poll)\.([a-z]+_?[a-z_]+)\b(?=\(|,)", text
        ):
            if path.stem in ("clients", "threads", "errors"):
                continue
            if operation in OTHERWISE:
                action = OTHERWISE[operation]
            else:
                service = {"sqs": "sqs", "sns": "sns", "control": "sqs", "poll": "sqs"}.get(holder)
                service = service or PREFIXES[path.stem]
                action = f"{service}:{''.join(word.title() for word in operation.split('_'))}"
            if action is not None:
                found.add(action)
    return frozenset(found)


def test_the_calls_of_the_adapters_are_found() -> None:
    assert {
        "dynamodb:PutItem",
        "sqs:ReceiveMessage",
        "sns:Subscribe",
        "sqs:DeleteMessage",
    } <= called()
    assert "autoscaling:CompleteLifecycleAction" in called()


def test_no_role_may_what_nobody_calls_and_every_call_is_allowed_to_somebody() -> None:
    everybody = allowed("InstanceRole") | allowed("ReaperRole") | allowed("StreamLambdaRole")
    assert everybody - called() - NOT_OURS == set()
    assert called() - everybody == set()


def test_no_action_has_a_wildcard_and_resources_only_where_iam_knows_none() -> None:
    for statement in every_statement():
        if statement.effect == "Deny":
            continue
        where = f"{statement.owner}.{statement.sid}"
        assert not any("*" in action for action in statement.actions), where
        if "*" in statement.resources:
            assert set(statement.actions) <= ANYWHERE[statement.sid], where
            assert statement.resources == ("*",), where


def test_every_statement_of_a_role_has_a_name_of_its_own() -> None:
    for name in of_type("AWS::IAM::Role"):
        sids = [statement.sid for statement in role(name)]
        assert len(set(sids)) == len(sids)
        assert all(re.fullmatch(r"[A-Za-z0-9]+", sid) for sid in sids)


KEPT_TABLES: Final = {str(imported(f"{name}TableArn")) for name in ("Channels", "Idempotency")}


def test_nobody_deletes_what_only_ttl_may_delete() -> None:
    assert any(str(each.resources[0]) in KEPT_TABLES for each in role("InstanceRole"))
    deletes = {
        "dynamodb:DeleteItem",
        "dynamodb:BatchWriteItem",
        "dynamodb:UpdateItem",
        "dynamodb:DeleteTable",
    }
    for name in of_type("AWS::IAM::Role"):
        for statement in role(name):
            if KEPT_TABLES & {str(resource) for resource in statement.resources}:
                assert not deletes & set(statement.actions), f"{name}.{statement.sid}"


def test_queues_are_made_and_reaped_only_with_our_tags() -> None:
    by_sid = {
        statement.sid: statement for statement in [*role("InstanceRole"), *role("ReaperRole")]
    }
    tags = queue_tags("arn:aws:sns:eu-central-1:123456789012:topic", "node")
    for sid, key in (("CreateQueue", "aws:RequestTag"), ("DeleteQueues", "aws:ResourceTag")):
        wanted = {f"{key}/{APP_TAG}": APP, f"{key}/{TOPIC_TAG}": imported("TopicArn")}
        assert by_sid[sid].condition == {"StringEquals": wanted}
        assert {name.partition("/")[2] for name in wanted} <= tags.keys()


def test_queues_of_consumers_are_used_only_where_they_are_named() -> None:
    arns = (
        "arn:aws:sqs:eu-central-1:123456789012:orders,arn:aws:sqs:eu-central-1:123456789012:a.fifo"
    )
    assert re.fullmatch(PARAMETERS["ConsumerQueueArns"]["AllowedPattern"], arns)
    assert not re.fullmatch(PARAMETERS["ConsumerQueueArns"]["AllowedPattern"], f"{arns},*")
    named = ({"Fn::Split": [",", {"Ref": "ConsumerQueueArns"}]},)
    for owner in ("InstanceRole", "TaskRole", "SqsEndpoint"):
        (consume,) = (each for each in role(owner) if each.sid == "Consume")
        assert consume.resources == named
        assert set(consume.actions) == {
            "sqs:ChangeMessageVisibility",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
        }
    for stack, expected in (
        (evaluated(TEMPLATE, "chat"), False),
        (evaluated(TEMPLATE, "chat", ConsumerQueueArns=arns), True),
    ):
        assert (
            "arn:aws:sqs:eu-central-1:123456789012:orders" in str(stack.properties("InstanceRole"))
        ) is expected


def test_only_our_queues_are_subscribed() -> None:
    (subscribe,) = (each for each in role("InstanceRole") if "sns:Subscribe" in each.actions)
    assert subscribe.condition["StringEquals"] == {"sns:Protocol": "sqs"}
    endpoint = subscribe.condition["StringLike"]["sns:Endpoint"]["Fn::Sub"]
    assert endpoint.endswith(":${QueuePrefix}${AWS::StackName}_*")
    assert subscribe.resources == (imported("TopicArn"), SHARD_TOPICS)


# ---- topic shards

SHARD_TOPICS: Final = {
    "Fn::If": ["HasTopicShards", imported("ShardTopicArns"), {"Ref": "AWS::NoValue"}]
}


def sharded(shards: int, publishes: str = "false") -> Evaluation:
    return evaluated(TEMPLATE, "chat", TopicShards=str(shards), PublishToShards=publishes)


@pytest.mark.parametrize("shards", PARAMETERS["TopicShards"]["AllowedValues"])
def test_there_is_a_topic_for_each_topic_shard_named_as_the_code_names_it(shards: int) -> None:
    there = evaluated(KEPT, DATA_STACK, TopicShards=str(shards)).resources()
    made = [
        topic["TopicName"]["Fn::Sub"]
        for name, topic in of_type("AWS::SNS::Topic", KEPT).items()
        if name != "Topic" and name in there
    ]
    assert made == list(topic_arns("${Topic.TopicName}", shards)[1:])


def test_as_many_topic_shards_may_be_made_as_the_code_takes() -> None:
    assert max(PARAMETERS["TopicShards"]["AllowedValues"]) == SHARDS_MAX
    assert KEPT["Outputs"]["ShardTopicArns"]["Value"] == {"Fn::Sub": "${Topic}-shard-*"}
    assert all(topic_of("${Topic}", shard).startswith("${Topic}-shard-") for shard in range(2))


@pytest.mark.parametrize(
    "shards, publishes, told",
    [(1, "false", "1"), (1, "true", "1"), (4, "false", "1"), (4, "true", "4"), (16, "true", "16")],
)
def test_the_lambda_publishes_to_topic_shards_only_when_it_is_told_to(
    shards: int, publishes: str, told: str
) -> None:
    """So that all nodes can hear them first."""
    stack = sharded(shards, publishes)
    environ = stack.properties("StreamLambda")["Environment"]["Variables"]
    assert str(environ["ROOMCAST_TOPIC_SHARDS"]) == told
    reaper = stack.properties("Reaper")["Environment"]["Variables"]
    assert str(reaper["ROOMCAST_AWS_TOPIC_SHARDS"]) == str(shards)


def test_without_topic_shards_everything_is_as_it_was() -> None:
    assert (PARAMETERS["TopicShards"]["Default"], PARAMETERS["PublishToShards"]["Default"]) == (
        CONFIG.aws.topic_shards,
        "false",
    )
    assert sharded(1).properties("StreamLambda")["MemorySize"] == 256


def test_the_topics_of_topic_shards_are_used_by_those_who_need_them() -> None:
    """The reaper tells of leaves through the base topic, as nodes do."""
    uses = {
        (name, statement.sid)
        for name in ("InstanceRole", "ReaperRole", "StreamLambdaRole")
        for statement in role(name)
        if SHARD_TOPICS in statement.resources
    }
    assert uses == {
        ("InstanceRole", "Publish"),
        ("InstanceRole", "SubscribeQueue"),
        ("ReaperRole", "ReadTopics"),
        ("StreamLambdaRole", "Publish"),
    }


KEY: Final = "arn:aws:kms:eu-central-1:123456789012:key/1234-abcd"


ENCRYPTED: Final = (
    "AWS::DynamoDB::Table",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SNS::Topic",
)


def encrypted(stack: Evaluation, kind: str) -> Iterator[Any]:
    """What the resources of a type that are made are encrypted with, as far as it is said."""
    for name in stack.resources():
        if stack.template["Resources"][name]["Type"] == kind:
            found = stack.properties(name)
            yield from values(found, "KMSMasterKeyId")
            yield from values(found, "KMSMasterKeyID")
            yield from values(found, "KmsMasterKeyId")
            yield from values(found, "KmsKeyId")


def test_a_key_encrypts_everything_that_is_kept_and_passed_on() -> None:
    assert re.fullmatch(PARAMETERS["KmsKeyArn"]["AllowedPattern"], KEY)
    kept = evaluated(KEPT, DATA_STACK, KmsKeyArn=KEY, TopicShards="16")
    fleet = evaluated(TEMPLATE, "chat", KmsKeyArn=KEY)
    assert list(encrypted(kept, "AWS::DynamoDB::Table")) == [KEY] * len(SCHEMAS)
    assert list(encrypted(kept, "AWS::SNS::Topic")) == [KEY] * (1 + SHARDS_MAX)
    assert list(encrypted(fleet, "AWS::S3::Bucket")) == [KEY]
    assert list(encrypted(fleet, "AWS::Logs::LogGroup")) == [KEY] * 3
    text, _ = RESOURCES["LaunchTemplate"]["Properties"]["LaunchTemplateData"]["UserData"][
        "Fn::Base64"
    ]["Fn::Sub"]
    assert "\nROOMCAST_AWS_QUEUE_KMS_KEY_ID=${KmsKeyArn}\n" in text
    assert "KeyPolicy" in fleet.resources()
    policies = {name: RESOURCES[name] for name in of_type("AWS::IAM::Policy")}
    for name, policy in policies.items():
        (use,) = statements(name, policy)
        assert use.resources == ({"Ref": "KmsKeyArn"},)
    # Whoever reads and writes tables and queues, and publishes.
    holders = references([each["Properties"]["Roles"] for each in policies.values()])
    assert holders - {"AWS::NoValue"} == {
        name
        for name in of_type("AWS::IAM::Role")
        if any(action.startswith(("dynamodb:", "sns:", "sqs:")) for action in allowed(name))
    }
    # Nobody begins before it has the key.
    for name, policy in (
        ("Fleet", "InstanceKeyPolicy"),
        ("Service", "TaskKeyPolicy"),
        ("StreamMapping", "KeyPolicy"),
        ("PresenceEventsMapping", "KeyPolicy"),
        ("PublishedEventsMapping", "KeyPolicy"),
    ):
        after = {"Fn::If": [RESOURCES[policy]["Condition"], {"Ref": policy}, ""]}
        assert str(after) in str(RESOURCES[name]["Metadata"]["After"])


def test_without_a_key_it_is_aws_s_own() -> None:
    kept, fleet = evaluated(KEPT, DATA_STACK), evaluated(TEMPLATE, "chat")
    assert "KeyPolicy" not in fleet.resources()
    for stack in (kept, fleet):
        for kind in ENCRYPTED:
            assert set(encrypted(stack, kind)) <= {"alias/aws/sns"}
    for name in of_type("AWS::DynamoDB::Table", KEPT):
        assert kept.properties(name)["SSESpecification"] == {"SSEEnabled": True}


def test_nodes_put_no_metrics_of_their_own() -> None:
    """CloudWatch Logs makes them of the log. So nobody with a node's role can forge a lambda's."""
    assert not [
        statement.sid
        for statement in every_statement()
        for action in statement.actions
        if action.startswith("cloudwatch:Put")
    ]


def test_one_secret_can_be_read_and_only_named_artifacts() -> None:
    by_sid = {statement.sid: statement for statement in role("InstanceRole")}
    assert by_sid["ReadSecret"].resources == ({"Ref": "SecretArn"},)
    assert references(list(by_sid["FetchArtifacts"].resources)) == {
        "ArtifactBucket", "AWS::NoValue", "AWS::Partition", "ConfigKey", "ReleaseKey",
    }  # fmt: skip


def test_endpoints_let_through_what_the_instances_may_and_only_our_account() -> None:
    through: set[str] = set()
    for name in of_type("AWS::EC2::VPCEndpoint"):
        for statement in statements(name, RESOURCES[name]):
            through |= set(statement.actions)
            # Those of AWS, whose requests nobody of ours signs.
            if statement.sid not in ("AmazonLinuxRepositories", "ImageLayers"):
                account = statement.condition["StringEquals"]["aws:PrincipalAccount"]
                assert account == {"Ref": "AWS::AccountId"}, name
    assert through == allowed("InstanceRole") | allowed("TaskRole") | allowed("TaskExecutionRole")


def test_whoever_invokes_the_reaper_is_named() -> None:
    permissions = of_type("AWS::Lambda::Permission").values()
    sources = {each["SourceArn"]["Fn::GetAtt"][0] for each in permissions}
    rules = of_type("AWS::Events::Rule")
    assert sources == set(rules)
    for rule in rules.values():
        assert [target["Arn"] for target in rule["Targets"]] == [{"Fn::GetAtt": ["Reaper", "Arn"]}]


# ---- network: one way in


def test_instances_have_no_public_address_and_only_version_2_of_the_metadata() -> None:
    launch = RESOURCES["LaunchTemplate"]["Properties"]["LaunchTemplateData"]
    assert [each["AssociatePublicIpAddress"] for each in launch["NetworkInterfaces"]] == [False]
    options = launch["MetadataOptions"]
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 1)
    assert all(each["Ebs"]["Encrypted"] is True for each in launch["BlockDeviceMappings"])
    assert "KeyName" not in launch


def test_the_fleet_is_in_private_subnets_and_they_have_no_way_out() -> None:
    zones = RESOURCES["Fleet"]["Properties"]["VPCZoneIdentifier"]
    assert references(zones) == {"PrivateSubnetA", "PrivateSubnetB", "PrivateSubnetIds"}
    routes = of_type("AWS::EC2::Route").values()
    assert [route["RouteTableId"] for route in routes] == [{"Ref": "PublicRouteTable"}]
    associations = of_type("AWS::EC2::SubnetRouteTableAssociation").values()
    assert {(each["SubnetId"]["Ref"], each["RouteTableId"]["Ref"]) for each in associations} == {
        (f"{kind}Subnet{zone}", f"{kind}RouteTable")
        for kind in ("Private", "Public")
        for zone in "AB"
    }
    assert not [name for name, each in RESOURCES.items() if "Nat" in each["Type"]]
    assert all(
        subnet["MapPublicIpOnLaunch"] is False for subnet in of_type("AWS::EC2::Subnet").values()
    )


def test_clients_reach_the_load_balancer_only_and_it_the_nodes_only() -> None:
    rules = [
        *of_type("AWS::EC2::SecurityGroupIngress").values(),
        *(
            rule | {"GroupId": {"Ref": name}}
            for name, group in of_type("AWS::EC2::SecurityGroup").items()
            for rule in group.get("SecurityGroupIngress", ())
        ),
    ]
    from_anywhere = [rule["GroupId"] for rule in rules if "CidrIp" in rule]
    assert from_anywhere == [{"Ref": "LoadBalancerSecurityGroup"}] * 2
    into_instances = [rule for rule in rules if rule["GroupId"] == {"Ref": "InstanceSecurityGroup"}]
    assert [rule["SourceSecurityGroupId"] for rule in into_instances] == [
        {"Ref": "LoadBalancerSecurityGroup"}
    ]


def test_instances_reach_endpoints_only_on_port_443() -> None:
    out = [
        *RESOURCES["InstanceSecurityGroup"]["Properties"]["SecurityGroupEgress"],
        RESOURCES["InstanceEgress"]["Properties"],
    ]
    assert len(out) == 3
    for rule in out:
        assert (rule["FromPort"], rule["ToPort"]) == (443, 443)
        assert "CidrIp" not in rule


def test_every_security_group_says_what_may_leave() -> None:
    # Without a rule of ours there is one of EC2's that lets out everything.
    assert all(
        group["SecurityGroupEgress"] for group in of_type("AWS::EC2::SecurityGroup").values()
    )


def test_names_of_endpoints_resolve_in_a_new_vpc() -> None:
    vpc = RESOURCES["Vpc"]["Properties"]
    assert (vpc["EnableDnsSupport"], vpc["EnableDnsHostnames"]) == (True, True)
    endpoints = of_type("AWS::EC2::VPCEndpoint").values()
    interfaces = [each for each in endpoints if each["VpcEndpointType"] == "Interface"]
    assert interfaces
    assert all(each["PrivateDnsEnabled"] is True for each in interfaces)


def forwarded(rule: str) -> tuple[list[str], list[Any]]:
    """Paths, and addresses from which they are forwarded ([]: from all)."""
    by_field = {each["Field"]: each for each in RESOURCES[rule]["Properties"]["Conditions"]}
    addresses = by_field.get("source-ip", {}).get("SourceIpConfig", {}).get("Values", [])
    return by_field["path-pattern"]["PathPatternConfig"]["Values"], addresses


def test_only_what_is_for_clients_and_back_ends_is_forwarded() -> None:
    assert set(of_type("AWS::ElasticLoadBalancingV2::ListenerRule")) == {
        "ClientRule", "ApiRule", "TaskClientRule", "TaskApiRule", "FleetHealthRule",
    }  # fmt: skip
    for rule in ("ClientRule", "ApiRule"):
        assert forwarded(f"Task{rule}") == forwarded(rule)
    # A name that nobody can have: RFC 6761.
    (host,) = RESOURCES["FleetHealthRule"]["Properties"]["Conditions"]
    assert host["HostHeaderConfig"]["Values"] == ["health.invalid"]
    assert forwarded("ClientRule") == (["/connection/*", "/emulation"], [])
    assert forwarded("ApiRule") == (["/api/*"], [{"Ref": "ApiCidr"}])
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = page.partition("forwards ")[2].partition("only")[0]
    assert re.findall(r"`([^`]+)`", told) == forwarded("ClientRule")[0] + forwarded("ApiRule")[0]
    listener = RESOURCES["HttpsListener"]["Properties"]
    assert [action["Type"] for action in listener["DefaultActions"]] == ["fixed-response"]
    assert (listener["Protocol"], listener["SslPolicy"]) == (
        "HTTPS",
        "ELBSecurityPolicy-TLS13-1-2-2021-06",
    )


def test_every_path_of_clients_is_forwarded() -> None:
    served = "".join(
        (ROOT / "service" / "roomcast" / name).read_text(encoding="utf-8")
        for name in ("serve/http_app.py", "gateway/streams.py")
    )
    paths = set(
        re.findall(r'(?:add_|web\.)(?:get|post)\("(/(?:connection/\w+|emulation))"', served)
    )
    assert {"/connection/websocket", "/connection/uni_sse", "/emulation"} <= paths
    patterns, _ = forwarded("ClientRule")
    assert all(any(fnmatchcase(path, each) for each in patterns) for path in paths)


def test_the_load_balancer_does_not_cut_off_quiet_clients() -> None:
    balancer = attributes(RESOURCES["LoadBalancer"]["Properties"], "LoadBalancerAttributes")
    assert int(balancer["idle_timeout.timeout_seconds"]) > 2 * (
        CONFIG.client.ping_interval_s + CONFIG.client.pong_timeout_s
    )
    assert balancer["routing.http.drop_invalid_header_fields.enabled"] == "true"


def test_the_load_balancer_knows_the_one_port_that_the_processes_share() -> None:
    groups = {
        name: each
        for name, each in of_type("AWS::ElasticLoadBalancingV2::TargetGroup").items()
        if RESOURCES[name]["Condition"] == "RunsInstances"
    }
    group = groups["TargetGroup0"]
    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT, flags=re.MULTILINE)
    assert command.endswith(f"serve --port {group['Port']}")
    assert group["HealthCheckPath"] == "/health/ready"
    used = [
        references(RESOURCES[rule]["Properties"]["Actions"]) for rule in ("ClientRule", "ApiRule")
    ]
    assert used == [{"TargetGroup0"}, {"ApiTargetGroup"}]
    assert references(RESOURCES["Fleet"]["Properties"]["TargetGroupARNs"]) - {
        "AWS::NoValue"
    } == set(groups)
    # What they differ in: see `test_requests_of_back_ends_are_spread_apart_from_connections`.
    spread = "TargetGroupAttributes"
    same = [{name: each[name] for name in each if name != spread} for each in groups.values()]
    assert same[0] == same[1]
    ports = RESOURCES["InstanceIngress"]["Properties"]
    # The own ports of processes are for who is on the instance.
    assert (ports["FromPort"], ports["ToPort"]) == (group["Port"], group["Port"])


def test_requests_of_back_ends_are_spread_apart_from_connections() -> None:
    """Connections are outstanding requests: by the fewest, all would go to the newest instance."""
    by_group = {
        name: attributes(each, "TargetGroupAttributes")["load_balancing.algorithm.type"]
        for name, each in of_type("AWS::ElasticLoadBalancingV2::TargetGroup").items()
    }
    assert by_group == {
        "TargetGroup0": "least_outstanding_requests",
        "ApiTargetGroup": "round_robin",
        "TaskTargetGroup": "least_outstanding_requests",
        "TaskApiTargetGroup": "round_robin",
    }


def test_any_number_of_processes_that_the_option_takes() -> None:
    (option,) = [each for each in OPTIONS if each.key == "node.processes"]
    parameter = PARAMETERS["Processes"]
    assert (parameter["MinValue"], parameter["MaxValue"]) == (
        option.rules.minimum,
        option.rules.maximum,
    )
    assert parameter["Default"] == option.default


# ---- times agree


def unit_seconds(name: str) -> float:
    (found,) = re.findall(rf"^{name}=(\d+)$", UNIT, flags=re.MULTILINE)
    return float(found)


def test_drain_deregistration_hook_and_systemd_agree() -> None:
    drain_s = float(seconds("Drain", "Node"))
    assert drain_s == CONFIG.node.drain_s
    noticed_s = CONFIG.node.lifecycle_poll_s
    # The load balancer does not cut off clients that the node is about to close.
    groups = of_type("AWS::ElasticLoadBalancingV2::TargetGroup").values()
    delays = {
        int(attributes(each, "TargetGroupAttributes")["deregistration_delay.timeout_seconds"])
        for each in groups
    }
    assert delays == {seconds("Drain", "Deregistration")}
    # The last connection, and then requests of the HTTP API, may wait for answers;
    # what hangs is given up as late again.
    drained_s = drain_s * JITTER + 3 * node.ANSWERS_S
    assert noticed_s + drained_s + app.FINISH_S < min(delays)
    # systemd does not kill a node that still gives back what it holds,
    # nor lets it live beyond its hook. Also when each of these hangs: the lease, subscription,
    # queue, the lease again, and those of the other nodes here.
    given_back_s = 5 * CALL_LIMIT_S + END_TRIES_S
    longest_s = drained_s + app.FINISH_S + given_back_s + lifecycle.RELEASE_LEAVING_S
    hook_s = seconds("Hook", "Terminate")
    assert longest_s < unit_seconds("TimeoutStopSec") < hook_s
    # Nor the supervisor of several, which kills what takes longer, but for itself.
    assert supervisor.DRAIN_JITTER * drain_s + supervisor.END_S < unit_seconds("TimeoutStopSec")
    # A heartbeat may be lost.
    assert hook_s > 2 * lifecycle.HEARTBEAT_S
    assert max(delays) < hook_s


def test_an_instance_has_time_to_become_ready() -> None:
    assert seconds("Hook", "Launch") >= 300 + CONFIG.node.queue_probe_s + 2 * CALL_LIMIT_S


def test_the_hooks_are_those_of_the_fleet_from_the_beginning() -> None:
    hooks = {
        each["LifecycleTransition"]: each
        for each in RESOURCES["Fleet"]["Properties"]["LifecycleHookSpecificationList"]
    }
    launch = hooks["autoscaling:EC2_INSTANCE_LAUNCHING"]
    terminate = hooks["autoscaling:EC2_INSTANCE_TERMINATING"]
    assert (launch["DefaultResult"], terminate["DefaultResult"]) == ("ABANDON", "CONTINUE")
    assert found_in_map(launch["HeartbeatTimeout"]) == seconds("Hook", "Launch")
    assert found_in_map(terminate["HeartbeatTimeout"]) == seconds("Hook", "Terminate")


def test_readiness_does_not_make_the_group_replace_instances() -> None:
    assert RESOURCES["Fleet"]["Properties"]["HealthCheckType"] == "EC2"


def test_an_update_starts_new_instances_before_old_ones_end() -> None:
    policy = RESOURCES["Fleet"]["UpdatePolicy"]
    preferences = policy["AutoScalingInstanceRefresh"]["Preferences"]
    assert preferences["MinHealthyPercentage"] == 100
    assert policy["AutoScalingScheduledAction"]["IgnoreUnmodifiedGroupSizeProperties"] is True
    fleet = RESOURCES["Fleet"]["Properties"]
    assert fleet["LaunchTemplate"]["Version"] == {
        "Fn::GetAtt": ["LaunchTemplate", "LatestVersionNumber"]
    }


def test_an_update_does_not_change_the_image_by_itself() -> None:
    """A parameter of SSM that names the newest one is looked up at each update of a stack, and a
    tag of an image names another one tomorrow.
    """
    for name, pattern in (("ImageId", "ami-0123456789abcdef0"), ("ImageDigest", DIGEST)):
        assert PARAMETERS[name]["Type"] == "String"
        assert re.fullmatch(PARAMETERS[name]["AllowedPattern"], pattern)
        for other in ("latest", "/aws/service/ami-amazon-linux-latest/x", DIGEST[:-1]):
            assert not re.fullmatch(PARAMETERS[name]["AllowedPattern"], other)


def test_alarms_stop_the_replacement_of_instances_and_have_the_time_for_it() -> None:
    preferences = RESOURCES["Fleet"]["UpdatePolicy"]["AutoScalingInstanceRefresh"]["Preferences"]
    condition, then, otherwise = preferences["AlarmSpecification"]["Fn::If"]
    assert (condition, otherwise) == ("RolloutHasBrake", {"Ref": "AWS::NoValue"})
    by_name = {
        each["AlarmName"]["Fn::Sub"]: each for each in of_type("AWS::CloudWatch::Alarm").values()
    }
    watched = [by_name[each["Fn::Sub"]] for each in then["Alarms"]]
    # As many as an instance refresh takes.
    assert 0 < len(watched) <= 10
    # They tell of nodes, and say so before the next instances are replaced, or the update is done.
    longest_s = max(each["Period"] * each["EvaluationPeriods"] for each in watched)
    assert preferences["CheckpointPercentages"] == [10, 100]
    assert found_in_map(preferences["CheckpointDelay"]) > longest_s
    assert found_in_map(preferences["BakeTime"]) > longest_s


def test_the_fleet_has_the_name_that_the_roles_and_nodes_know() -> None:
    name = RESOURCES["Fleet"]["Properties"]["AutoScalingGroupName"]["Fn::Sub"]
    assert name == "${AWS::StackName}-fleet"
    for statement in every_statement():
        if any(action.startswith("autoscaling:") for action in statement.actions):
            (resource,) = statement.resources
            assert resource["Fn::Sub"].endswith(f":autoScalingGroup:*:autoScalingGroupName/{name}")
    pattern = RESOURCES["TerminationEvents"]["Properties"]["EventPattern"]
    assert pattern["detail"]["AutoScalingGroupName"] == [{"Fn::Sub": name}]
    assert reaper_environment()["ROOMCAST_AWS_AUTOSCALING_GROUP"] == {"Fn::Sub": name}


# ---- tables, stream and Lambdas


def reaper_environment() -> dict[str, Any]:
    environment: dict[str, Any] = RESOURCES["Reaper"]["Properties"]["Environment"]["Variables"]
    return environment


SCHEMAS: Final = {schema.name: schema for schema in table_schemas("")}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_tables_are_those_of_the_code(schema: TableSchema) -> None:
    tables = {
        each["TableName"]["Fn::Sub"]: each
        for each in of_type("AWS::DynamoDB::Table", KEPT).values()
    }
    assert len(tables) == len(SCHEMAS)
    table = tables["${TablePrefix}" + schema.name]
    for key in ("BillingMode", "AttributeDefinitions", "KeySchema"):
        assert table[key] == schema.create[key]
    stream = schema.create.get("StreamSpecification", {})
    assert table.get("StreamSpecification", {}).get("StreamViewType") == stream.get(
        "StreamViewType"
    )
    ttl = table.get("TimeToLiveSpecification", {"AttributeName": None, "Enabled": True})
    assert ttl == {"AttributeName": schema.ttl_attribute, "Enabled": True}


@pytest.mark.parametrize("name", ["ChannelsTable", "IdempotencyTable"])
def test_what_cannot_be_had_again_is_kept_and_backed_up(name: str) -> None:
    table = KEPT["Resources"][name]
    # But not when the deployment that made it fails: the next one would meet its name.
    assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == (
        "RetainExceptOnCreate",
        "Retain",
    )
    properties = table["Properties"]
    assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert properties["DeletionProtectionEnabled"] == {"Ref": "DeletionProtection"}


def test_default_prefixes_are_the_code_s() -> None:
    prefix = KEPT["Parameters"]["TablePrefix"]
    assert prefix["Default"] == CONFIG.aws.table_prefix
    assert PARAMETERS["LogGeneration"]["Default"] == CONFIG.aws.log_generation
    patterns = {option.key: option.rules.pattern for option in OPTIONS}
    assert prefix["AllowedPattern"] == patterns["aws.table_prefix"]
    assert PARAMETERS["LogGeneration"]["AllowedPattern"] == patterns["aws.log_generation"]


@pytest.mark.parametrize("name", ["stream_appends", "stream_not_appends", "stream_poison"])
def test_the_filter_takes_what_the_development_set_up_takes(name: str) -> None:
    (criteria,) = RESOURCES["StreamMapping"]["Properties"]["FilterCriteria"]["Filters"]
    pattern = json.loads(criteria["Pattern"])
    event = json.loads((ROOT / "tests" / "events" / f"{name}.json").read_text(encoding="utf-8"))
    records = [
        record
        for record in event["Records"]
        if "offset" in record.get("dynamodb", {}).get("Keys", {})
    ]
    assert records
    taken = [matches(pattern, record) for record in records]
    assert taken == [is_append(record) for record in records]
    assert any(taken) == (name != "stream_not_appends")


def test_the_mapping_is_that_of_the_development_set_up() -> None:
    mapping = RESOURCES["StreamMapping"]["Properties"]
    ours = MappingOptions()
    assert mapping["BatchSize"] == ours.batch_size
    assert mapping["BisectBatchOnFunctionError"] is ours.bisect_on_error
    assert ours.retries_max is None
    assert mapping["MaximumRetryAttempts"] == -1
    assert mapping["MaximumRecordAgeInSeconds"] == ours.record_age_max_s
    assert mapping["StartingPosition"] == "TRIM_HORIZON"
    assert mapping["ParallelizationFactor"] == 1
    assert mapping["MaximumBatchingWindowInSeconds"] == 0
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["EventSourceArn"] == imported("ChannelsStreamArn")
    assert mapping["DestinationConfig"]["OnFailure"]["Destination"] == {
        "Fn::GetAtt": ["FailureBucket", "Arn"]
    }


def test_the_stream_lambda_has_time_for_a_call_that_hangs() -> None:
    assert RESOURCES["StreamLambda"]["Properties"]["Timeout"] > 2 * CALL_S_MAX


# Of the literals in the function's properties. When it changes, the number that begins the
# description of `StreamVersion` must change as well: without that no version would have them.
LITERALS: Final = ("1", "378869c12d063f70")


def version_of(**given: str) -> str:
    given = {"StreamLambdaKey": f"roomcast/stream_lambda-{'a' * 64}.zip"} | given
    description = evaluated(TEMPLATE, "chat", **given).properties("StreamVersion")["Description"]
    assert len(description) <= 256
    return str(description)


def test_another_version_is_made_when_and_only_when_the_function_is_another() -> None:
    """Another description makes one, and Lambda refuses one in which nothing else is new."""
    before = version_of()
    assert version_of(StreamLambdaKey=f"roomcast/stream_lambda-{'b' * 64}.zip") != before
    assert version_of(TopicShards="4", PublishToShards="true") != before
    # The same bytes, and nothing that it is told.
    assert version_of(StreamLambdaKey=f"other/stream_lambda-{'a' * 64}.zip") == before
    assert version_of(TopicShards="4") == before
    function = RESOURCES["StreamLambda"]["Properties"]
    text, told = RESOURCES["StreamVersion"]["Properties"]["Description"]["Fn::Sub"]
    assert function["Environment"]["Variables"] == {
        "ROOMCAST_TOPIC_ARN": told["TopicArn"],
        "ROOMCAST_TOPIC_SHARDS": told["Shards"],
    }
    assert function["MemorySize"]["Fn::If"][0] == told["Shards"]["Fn::If"][0]
    others = ("Code", "Environment", "LoggingConfig", "Role", "Tags")
    literals = {name: each for name, each in function.items() if name not in others}
    digest = hashlib.sha256(json.dumps(literals, sort_keys=True).encode()).hexdigest()[:16]
    assert (text.split()[0], digest) == LITERALS


def test_an_alarm_takes_back_another_version_of_the_stream_lambda() -> None:
    alias = RESOURCES["StreamAlias"]
    assert references(alias["UpdatePolicy"]) == {"StreamDeployment", "StreamDeploymentGroup"}
    assert RESOURCES["StreamMapping"]["Properties"]["FunctionName"] == {"Ref": "StreamAlias"}
    braked = evaluated(TEMPLATE, "chat").properties("StreamDeploymentGroup")
    named = re.fullmatch(
        r"CodeDeployDefault\.LambdaCanary10Percent(\d+)Minutes", braked["DeploymentConfigName"]
    )
    assert named
    assert braked["AutoRollbackConfiguration"]["Enabled"] is True
    assert "DEPLOYMENT_STOP_ON_ALARM" in braked["AutoRollbackConfiguration"]["Events"]
    watched = [each["Name"] for each in braked["AlarmConfiguration"]["Alarms"]]
    assert watched
    for name in watched:
        alarm = RESOURCES[name]["Properties"]
        assert alarm["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": "StreamLambda"}}]
        # It goes off while most batches still go to the version before.
        assert alarm["Period"] * alarm["DatapointsToAlarm"] < 60 * int(named[1])
    # To deploy what ends an alarm.
    released = evaluated(TEMPLATE, "chat", RolloutBrake="false").properties("StreamDeploymentGroup")
    assert released["DeploymentConfigName"] == "CodeDeployDefault.LambdaAllAtOnce"
    assert released["AlarmConfiguration"]["Enabled"] is False


def test_whoever_shifts_batches_may_do_nothing_else() -> None:
    shift, look = role("StreamDeploymentRole")
    assert references(list(shift.resources)) == {"StreamLambda"}
    assert set(shift.actions) == {
        "lambda:GetAlias", "lambda:GetProvisionedConcurrencyConfig", "lambda:UpdateAlias",
    }  # fmt: skip
    assert look.sid == "LookAtAlarms"


def test_handlers_exist_and_get_the_environment_that_they_read() -> None:
    read = {
        "StreamLambda": (ROOT / "stream_lambda" / "handler.py").read_text(encoding="utf-8"),
        "Reaper": (ROOT / "service" / "roomcast" / "reaper" / "handler.py").read_text(
            encoding="utf-8"
        ),
        "EventsLambda": (ROOT / "service" / "roomcast" / "events" / "handler.py").read_text(
            encoding="utf-8"
        ),
    }
    functions = of_type("AWS::Lambda::Function")
    assert functions.keys() == read.keys()
    for name, function in functions.items():
        module, _, attribute = function["Handler"].rpartition(".")
        assert importlib.util.find_spec(module) is not None
        assert f"\ndef {attribute}(" in read[name]
        named = set(re.findall(r'environ(?:\[|\.get\()"(ROOMCAST_\w+)"', read[name]))
        assert named == set(function["Environment"]["Variables"])


def test_events_are_those_that_the_reaper_knows() -> None:
    text = (ROOT / "service" / "roomcast" / "reaper" / "handler.py").read_text(encoding="utf-8")
    for rule in ("TerminationEvents", "TaskEvents"):
        pattern = RESOURCES[rule]["Properties"]["EventPattern"]
        for name in (*pattern["source"], *pattern["detail-type"]):
            assert f'"{name}"' in text


# ---- metrics


def published() -> set[str]:
    """What nodes, reaper and stream Lambda publish."""
    told = Readings(
        connections=lambda: 0,
        channels=lambda: 0,
        queue_lag_ms=lambda: 0,
        canary_age_s=lambda: 0.0,
        degraded=lambda: False,
        not_ready=lambda: False,
    )
    before = Counts.taken(AppendCounters(), StageCounters(), 0)
    lambdas = (
        ROOT / "service" / "roomcast" / "reaper" / "handler.py",
        ROOT / "stream_lambda" / "handler.py",
    )
    texts = "".join(path.read_text(encoding="utf-8") for path in lambdas)
    return {metric.name for metric in (*told.taken(), *before.since(before))} | set(
        re.findall(r'"(\w+)": (?:counts\[|sum\(planned|planned\.|len\(outcome)', texts)
    )


def test_alarms_and_scaling_watch_metrics_that_are_published() -> None:
    watched = [
        each
        for each in [
            *of_type("AWS::CloudWatch::Alarm").values(),
            *values(
                [RESOURCES["ConnectionsScaling"], RESOURCES["TaskConnectionsScaling"]],
                "CustomizedMetricSpecification",
            ),
        ]
        if found_in_map(each["Namespace"]) == "roomcast"
    ]
    assert {each["MetricName"] for each in watched} <= published()


def test_the_group_tells_of_itself_what_is_watched_and_shown() -> None:
    (collected,) = RESOURCES["Fleet"]["Properties"]["MetricsCollection"]
    assert collected["Granularity"] == "1Minute"
    alarms = of_type("AWS::CloudWatch::Alarm").values()
    watched = {each["MetricName"] for each in alarms if each["Namespace"] == "AWS/AutoScaling"}
    assert watched
    assert watched <= set(collected["Metrics"])


def test_alarms_tell_whoever_wants_to_know_and_say_what_they_mean() -> None:
    alarms = of_type("AWS::CloudWatch::Alarm")
    assert len(alarms) > 10
    for name, alarm in alarms.items():
        for actions in ("AlarmActions", "OKActions"):
            condition, then, _ = alarm[actions]["Fn::If"]
            assert (condition, then) == ("HasAlarmTopic", [{"Ref": "AlarmTopicArn"}]), name
        assert len(alarm["AlarmDescription"]) > 20


@pytest.mark.parametrize(
    "name, metric",
    [("RejectedAlarm", "PublicationsRejected"), ("UnknownAlarm", "PublicationsUnknown")],
)
def test_publications_that_fail_for_minutes_alarm_and_those_of_one_moment_do_not(
    name: str, metric: str
) -> None:
    alarm = RESOURCES[name]["Properties"]
    assert (alarm["MetricName"], found_in_map(alarm["Namespace"])) == (metric, "roomcast")
    assert alarm["Dimensions"] == [{"Name": "AutoScalingGroupName", "Value": FLEET}]
    # Of all nodes together, in as many readings as there are minutes.
    assert (alarm["Statistic"], alarm["Period"]) == ("Sum", INTERVAL_S)
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)
    assert 1 < alarm["DatapointsToAlarm"] <= alarm["EvaluationPeriods"]
    # Whether nodes tell anything is the canary's alarm.
    assert alarm["TreatMissingData"] == "notBreaching"


def test_every_alarm_is_of_its_own_deployment() -> None:
    """Namespaces are an account's."""
    for name, alarm in of_type("AWS::CloudWatch::Alarm").items():
        if FLEET in (dimension["Value"] for dimension in alarm["Dimensions"]):
            continue
        assert references(alarm["Dimensions"]) & {*RESOURCES, "DataStack"}, name


def test_somebody_is_told_of_alarms_or_it_was_said_that_nobody_is() -> None:
    parameter = PARAMETERS["AlarmTopicArn"]
    assert "Default" not in parameter
    assert not re.fullmatch(parameter["AllowedPattern"], "")
    condition = TEMPLATE["Conditions"]["HasAlarmTopic"]["Fn::Not"]
    assert condition == [{"Fn::Equals": [{"Ref": "AlarmTopicArn"}, "nobody"]}]


def test_a_silent_canary_alarms_also_when_nobody_tells() -> None:
    alarm = RESOURCES["CanaryAlarm"]["Properties"]
    assert alarm["TreatMissingData"] == "breaching"
    # A node says that it is deaf or the pipeline silent after two and a half of them.
    assert alarm["Threshold"] > 3 * CONFIG.node.canary_interval_s


@pytest.mark.parametrize("name", ["StreamLambda", "Reaper", "EventsLambda"])
def test_a_function_logs_where_its_role_lets_it(name: str) -> None:
    function = RESOURCES[name]["Properties"]
    group = function["LoggingConfig"]["LogGroup"]["Ref"]
    assert RESOURCES[group]["Type"] == "AWS::Logs::LogGroup"
    (role_name, _) = function["Role"]["Fn::GetAtt"]
    (logs,) = (each for each in role(role_name) if each.sid == "WriteLogs")
    assert logs.resources == ({"Fn::GetAtt": [group, "Arn"]},)


@pytest.mark.parametrize(
    "name, days", [("FailureBucket", 30), ("AccessLogFiles", {"Ref": "LogRetentionDays"})]
)
def test_what_is_in_buckets_is_nobody_else_s_and_not_kept_for_ever(name: str, days: object) -> None:
    bucket = RESOURCES[name]["Properties"]
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert all(value is True for value in bucket["PublicAccessBlockConfiguration"].values())
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    (rule,) = bucket["LifecycleConfiguration"]["Rules"]
    assert (rule["Status"], rule["ExpirationInDays"]) == ("Enabled", days)
    *others, policy = statements(f"{name}Policy", RESOURCES[f"{name}Policy"])
    assert (policy.effect, policy.condition) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    assert references(list(policy.resources)) == {name}
    assert [each.sid for each in others] == (
        ["LoadBalancersOfThisAccountWrite"] if name == "AccessLogFiles" else []
    )


def test_a_bucket_that_has_a_file_at_once_does_not_hold_up_a_rollback() -> None:
    """A load balancer writes a file as soon as it is told a bucket for its logs."""
    bucket = RESOURCES["AccessLogFiles"]
    assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("Retain", "Retain")
    # What a rollback leaves must not be in the next deployment's way.
    assert "BucketName" not in bucket["Properties"]


@pytest.mark.parametrize(
    "given, enabled, bucket",
    [
        ({}, "true", "AccessLogFiles"),
        ({"AccessLogBucket": "ours"}, "true", "ours"),
        ({"AccessLogs": "false"}, "false", None),
        ({"AccessLogs": "false", "AccessLogBucket": "ours"}, "false", None),
    ],
)
def test_requests_are_logged_by_default(
    given: dict[str, str], enabled: str, bucket: str | None
) -> None:
    evaluation = evaluated(TEMPLATE, "chat", **given)
    found = attributes(evaluation.properties("LoadBalancer"), "LoadBalancerAttributes")
    assert found["access_logs.s3.enabled"] == enabled
    assert found.get("access_logs.s3.bucket") == bucket
    made = {"AccessLogFiles", "AccessLogFilesPolicy"}
    assert made & evaluation.resources() == (made if bucket == "AccessLogFiles" else set())


def test_an_address_has_a_rate_of_requests_which_back_ends_have_not() -> None:
    assert not {"Waf", "WafAssociation"} & (
        evaluated(TEMPLATE, "chat", RequestsPerAddress="0").resources()
    )
    evaluation = evaluated(TEMPLATE, "chat", RequestsPerAddress="500")
    assert evaluation.properties("WafAssociation") == {
        "ResourceArn": "LoadBalancer",
        "WebACLArn": "Waf.Arn",
    }
    acl = evaluation.properties("Waf")
    assert acl["DefaultAction"] == {"Allow": {}}
    (rule,) = acl["Rules"]
    rate = rule["Statement"]["RateBasedStatement"]
    assert (rate["Limit"], rate["EvaluationWindowSec"], rate["AggregateKeyType"]) == (
        "500",
        300,
        "IP",
    )
    match = rate["ScopeDownStatement"]["NotStatement"]["Statement"]["ByteMatchStatement"]
    (api,) = {
        path
        for each in of_type("AWS::ElasticLoadBalancingV2::ListenerRule").values()
        for condition in each["Conditions"]
        for path in condition.get("PathPatternConfig", {}).get("Values", ())
        if path.startswith("/api")
    }
    assert match["SearchString"] == api.removesuffix("*")
    # Paths have tokens.
    for visible in (acl, rule):
        assert visible["VisibilityConfig"]["SampledRequestsEnabled"] is False


def test_logs_are_not_kept_for_ever() -> None:
    groups = of_type("AWS::Logs::LogGroup")
    assert len(groups) == 4
    assert all(group["RetentionInDays"] == {"Ref": "LogRetentionDays"} for group in groups.values())


# ---- checks


@BOTH
def test_every_skip_of_checkov_is_explained(template: Mapping[str, Any]) -> None:
    skips = [
        skip
        for each in template["Resources"].values()
        for skip in each.get("Metadata", {}).get("checkov", {}).get("skip", ())
    ]
    assert len(skips) > 5
    for skip in skips:
        assert re.fullmatch(r"CKV2?_AWS_\d+", skip["id"])
        _, as_for, other = skip["comment"].partition("As for ")
        if as_for:
            others = template["Resources"][other.removesuffix(".")]["Metadata"]["checkov"]["skip"]
            assert skip["id"] in {each["id"] for each in others}
        else:
            assert len(skip["comment"]) > 30
