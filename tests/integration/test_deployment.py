"""deploy/data.yaml and deploy/template.yaml, deployed into the emulator: what was made is
what they say, and the service runs on it.

What the emulator does not do stands below as data, with what looks after it instead. A test fails
when something on that list works after all, and when something does not work that is not on it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy import build
from deploy.build import INSTANCE, tar_bytes
from roomcast.auth.verifier import sign_connection
from roomcast.aws.schema import TableSchema, channels_table, idempotency_table, table_schemas
from roomcast.config import Config
from roomcast.dev.event_source import MappingOptions
from roomcast.dev.provision import DUMMY_CREDENTIALS, Provisioned, client
from roomcast.dev.stream_pump import POLL_INTERVAL_S, StreamPump
from roomcast.reaper.rules import REAP_GRACE_MS
from tests.contract.backends import REGION, ROOT, emulator
from tests.deploy.cloudformation import DATA, TEMPLATE, Evaluation, exports, load, matches
from tests.deploy.iam import Call, allowed
from tests.deploy.machine import as_a_shell_reads, fresh_machine, settings
from tests.deploy.test_readme import OF_DATA, OF_FLEET, overridden
from tests.emf import read_all
from tests.fakes.ec2 import ACCOUNT, FakeEc2, FakeMachine, Hook, fake_ec2
from tests.fakes.ecs import FakeTask, fake_task
from tests.integration.created import Created, differences
from tests.integration.serving import STOP_S, Aws, Process, environment
from tests.websocket import WebSocket

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(180)]

RESOURCES: Final[Mapping[str, Any]] = load()["Resources"]
COMMAND_S: Final = 60
# A cold start with the SDK.
INVOCATION_S: Final = 60
BUCKET: Final = "artifacts"
STACK: Final = "roomcast"
# As deploy/README.md has it.
DATA_STACK: Final = "roomcast-data"
# Without protection, so that its first deployment could be rolled back.
UNPROTECTED: Final = {"DeletionProtection": "false"}
ROOM: Final = "room"
SECRET: Final = {
    "ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": "a secret of the tests, long enough",
    "ROOMCAST_HTTP_API_KEY": 'a key of the tests, $ " \\ and all',
}
# What deploy/README.md begins with, and what these tests look at.
CONFIG: Final = """
[channel.without_namespace]
history_size = 100
history_ttl = "24h"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_presence_for_subscriber = true
presence = true
join_leave = true
force_push_join_leave = true
[node]
lifecycle_poll_s = 0.1
"""

# ---- what the emulator does not do, and what looks after it instead
#
# What is not a matter of types and properties:
# - It runs no functions without Docker, and no schedules: Function runs them,
#   `pumping` stands for the event source mapping,
#   and events are passed by hand when the rule that was made lets them through.
# - It starts no machines, balances no load and has no lifecycle hooks:
#   Process is a node, FakeEc2 the group.
# - It refuses nobody anything: tests/integration/cloud.py does.
#   What Lambda, the CloudWatch agent and Auto Scaling are asked for
#   does not get there, and is judged from the policies alone: ALLOWED.
#   Policies of queues and topics nobody looks at.
# - It judges neither rules nor patterns of parameters:
#   test_parameters_are_ones_that_the_template_takes does.
# - It cannot update a stack: of that the tests see only what stands in the template.

# Nothing but cfn-lint, which holds the property to AWS's schema, and checkov.
SCHEMA: Final = "tox -e template"
_TEMPLATE: Final = "tests/deploy/test_template.py::"
TAGS: Final = _TEMPLATE + "test_everything_that_can_be_is_tagged"
METRICS: Final = _TEMPLATE + "test_alarms_and_scaling_watch_metrics_that_are_published"
KEPT: Final = _TEMPLATE + "test_what_cannot_be_had_again_is_kept_and_backed_up"
TABLES: Final = _TEMPLATE + "test_tables_are_those_of_the_code"
BUCKETS: Final = _TEMPLATE + "test_what_is_in_buckets_is_nobody_else_s_and_not_kept_for_ever"
CANARY: Final = _TEMPLATE + "test_an_alarm_takes_back_another_version_of_the_stream_lambda"
KEYS: Final = _TEMPLATE + "test_a_key_encrypts_everything_that_is_kept_and_passed_on"
RATE: Final = _TEMPLATE + "test_an_address_has_a_rate_of_requests_which_back_ends_have_not"
QUIET: Final = _TEMPLATE + "test_the_load_balancer_does_not_cut_off_quiet_clients"
_TASKS: Final = "tests/deploy/test_tasks.py::"
SCALES: Final = _TASKS + "test_tasks_scale_as_instances_do"
PLACED: Final = _TASKS + "test_tasks_are_in_private_subnets_behind_both_target_groups"
RUN: Final = _TASKS + "test_a_task_runs_with_the_roles_that_it_has"
# Of a type that it does not know, or makes without any effect.
ALL: Final = ""
# By type and property; [] stands for any place in a list.
LACKING: Final[Mapping[str, Mapping[str, str]]] = {
    "AWS::ApplicationAutoScaling::ScalableTarget": {ALL: SCALES},
    "AWS::ApplicationAutoScaling::ScalingPolicy": {ALL: SCALES},
    "AWS::AutoScaling::AutoScalingGroup": {
        "DefaultInstanceWarmup": SCHEMA,
        # How nodes and the reaper use them: tests/integration/test_lifecycle.py,
        # and below with the names in the template.
        "LifecycleHookSpecificationList": _TEMPLATE
        + "test_the_hooks_are_those_of_the_fleet_from_the_beginning",
        "MetricsCollection": _TEMPLATE + "test_the_group_tells_of_itself_what_is_watched_and_shown",
    },
    "AWS::AutoScaling::ScalingPolicy": {ALL: METRICS},
    "AWS::CloudWatch::Alarm": {ALL: METRICS},
    "AWS::CloudWatch::Dashboard": {
        # It does not know the full names of load balancers.
        "DashboardBody.widgets[].properties.metrics[][]": METRICS,
        "Tags": TAGS,
    },
    "AWS::CodeDeploy::Application": {ALL: CANARY},
    "AWS::CodeDeploy::DeploymentGroup": {ALL: CANARY},
    "AWS::DynamoDB::Table": {
        "PointInTimeRecoverySpecification.PointInTimeRecoveryEnabled": KEPT,
        "SSESpecification.KMSMasterKeyId": KEYS,
        "SSESpecification.SSEEnabled": KEPT,
        "SSESpecification.SSEType": KEYS,
        "TimeToLiveSpecification.AttributeName": TABLES,
        "TimeToLiveSpecification.Enabled": TABLES,
    },
    "AWS::EC2::InternetGateway": {"Tags.Name": TAGS, "Tags.app": TAGS, "Tags.deployment": TAGS},
    "AWS::EC2::RouteTable": {"Tags.Name": TAGS, "Tags.app": TAGS, "Tags.deployment": TAGS},
    "AWS::EC2::SecurityGroup": {
        "SecurityGroupEgress": _TEMPLATE + "test_every_security_group_says_what_may_leave",
        "SecurityGroupIngress[].Description": SCHEMA,
    },
    "AWS::EC2::SecurityGroupEgress": {
        ALL: _TEMPLATE + "test_instances_reach_endpoints_only_on_port_443"
    },
    "AWS::EC2::SecurityGroupIngress": {"Description": SCHEMA},
    "AWS::EC2::SubnetRouteTableAssociation": {
        ALL: _TEMPLATE + "test_the_fleet_is_in_private_subnets_and_they_have_no_way_out"
    },
    "AWS::EC2::VPC": {
        "EnableDnsHostnames": _TEMPLATE + "test_names_of_endpoints_resolve_in_a_new_vpc"
    },
    "AWS::EC2::VPCEndpoint": {"Tags.Name": TAGS, "Tags.app": TAGS, "Tags.deployment": TAGS},
    "AWS::ECS::Cluster": {"Tags.app": TAGS, "Tags.deployment": TAGS},
    "AWS::ECS::Service": {
        "DeploymentConfiguration": _TASKS + "test_a_deployment_of_two_tasks_has_room_for_a_third",
        "EnableExecuteCommand": _TASKS + "test_the_container_writes_nothing_but_what_is_its_own",
        "HealthCheckGracePeriodSeconds": _TASKS + "test_a_task_has_the_time_that_a_start_takes",
        "LaunchType": SCHEMA,
        "LoadBalancers": PLACED,
        "NetworkConfiguration.AwsvpcConfiguration": PLACED,
        "PlatformVersion": SCHEMA,
        "PropagateTags": SCHEMA,
        "Tags.app": TAGS,
        "Tags.deployment": TAGS,
    },
    "AWS::ECS::TaskDefinition": {
        "Cpu": SCHEMA,
        "ExecutionRoleArn": RUN,
        "NetworkMode": SCHEMA,
        "RequiresCompatibilities": SCHEMA,
        "RuntimePlatform": SCHEMA,
        "Tags.app": TAGS,
        "Tags.deployment": TAGS,
        "TaskRoleArn": RUN,
    },
    "AWS::ElasticLoadBalancingV2::Listener": {"Tags.app": TAGS, "Tags.deployment": TAGS},
    "AWS::ElasticLoadBalancingV2::ListenerRule": {"Tags.app": TAGS, "Tags.deployment": TAGS},
    "AWS::ElasticLoadBalancingV2::LoadBalancer": {
        "LoadBalancerAttributes.access_logs.s3.bucket": SCHEMA,
        "LoadBalancerAttributes.access_logs.s3.enabled": SCHEMA,
        "LoadBalancerAttributes.deletion_protection.enabled": SCHEMA,
        "LoadBalancerAttributes.idle_timeout.timeout_seconds": QUIET,
        "LoadBalancerAttributes.routing.http.desync_mitigation_mode": SCHEMA,
        "LoadBalancerAttributes.routing.http.drop_invalid_header_fields.enabled": QUIET,
        "Tags.Name": TAGS,
        "Tags.app": TAGS,
        "Tags.deployment": TAGS,
    },
    "AWS::ElasticLoadBalancingV2::TargetGroup": {
        "Tags.app": TAGS,
        "Tags.deployment": TAGS,
        "TargetGroupAttributes.deregistration_delay.timeout_seconds": _TEMPLATE
        + "test_drain_deregistration_hook_and_systemd_agree",
        "TargetGroupAttributes.load_balancing.algorithm.type": SCHEMA,
    },
    "AWS::Lambda::EventInvokeConfig": {ALL: SCHEMA},
    "AWS::Lambda::EventSourceMapping": {"Tags": TAGS},
    "AWS::Lambda::Function": {
        "Architectures[]": SCHEMA,
        "LoggingConfig": _TEMPLATE + "test_a_function_logs_where_its_role_lets_it",
        "Tags.app": TAGS,
        "Tags.deployment": TAGS,
    },
    "AWS::Lambda::Version": {
        "Description": _TEMPLATE
        + "test_another_version_is_made_when_and_only_when_the_function_is_another"
    },
    # It knows no zones of load balancers.
    "AWS::Route53::RecordSet": {"AliasTarget.HostedZoneId": SCHEMA},
    "AWS::Logs::LogGroup": {"KmsKeyId": KEYS},
    "AWS::S3::Bucket": {
        "LifecycleConfiguration": BUCKETS,
        "OwnershipControls": BUCKETS,
        "PublicAccessBlockConfiguration": BUCKETS,
    },
    "AWS::S3::BucketPolicy": {ALL: BUCKETS},
    "AWS::SNS::Topic": {"Tags.app": TAGS, "Tags.deployment": TAGS},
    "AWS::WAFv2::WebACL": {ALL: RATE},
    "AWS::WAFv2::WebACLAssociation": {ALL: RATE},
}
# Those of the types that it makes without any effect.
UNSEEN: Final = frozenset(kind for kind, paths in LACKING.items() if ALL in paths)
# Types that a deleted stack leaves behind here, and not in AWS. What else moto would leave,
# cloud.py makes it remove.
LEFT: Final = frozenset({"AWS::EC2::InternetGateway", "AWS::EC2::VPCGatewayAttachment"})


# ---- what is deployed, and how


@dataclass(frozen=True, slots=True)
class Cloud:
    """The account, with what deploy/README.md puts into it before there is a stack."""

    endpoint: str
    given: Mapping[str, str]

    def client(self, service: str) -> Any:
        return client(service, self.endpoint, REGION, DUMMY_CREDENTIALS)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with emulator("tests.integration.cloud") as endpoint:
        yield Cloud(endpoint, prepared(Cloud(endpoint, {}), tmp_path_factory.mktemp("deploy")))


def prepared(cloud: Cloud, directory: Path) -> dict[str, str]:
    """Steps 1 to 5 of deploy/README.md. The parameters that they lead to, for step 6."""
    s3, ec2 = cloud.client("s3"), cloud.client("ec2")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    config = directory / "roomcast.toml"
    config.write_text(CONFIG, encoding="utf-8")
    assert build.main(["--lambdas-only", "--config", str(config), "--out", str(directory)]) == 0
    # The wheels need the package index; nodes run from here.
    files = {path.name: path.read_bytes() for path in INSTANCE.iterdir() if path.is_file()}
    release = build.Artifact(
        "release", ".tar", "ReleaseKey", tar_bytes(files | {"wheels/roomcast.whl": b""})
    )
    s3.put_object(Bucket=BUCKET, Key=release.key, Body=release.content)
    for path in (directory / "s3").rglob("*.*"):
        s3.upload_file(str(path), BUCKET, str(path.relative_to(directory / "s3")))
    # One is too large to be sent with the call.
    for template in (DATA, TEMPLATE):
        s3.upload_file(str(template), BUCKET, f"templates/{template.name}")
    lines = (directory / "parameters").read_text(encoding="utf-8").splitlines()
    secret = cloud.client("secretsmanager").create_secret(
        Name=STACK, SecretString=json.dumps(SECRET)
    )
    certificate, key = self_signed()
    imported = cloud.client("acm").import_certificate(Certificate=certificate, PrivateKey=key)
    lists = {
        each["PrefixListName"]: each["PrefixListId"]
        for each in ec2.describe_managed_prefix_lists()["PrefixLists"]
    }
    return dict(line.split("=", 1) for line in lines) | {
        "ReleaseKey": release.key,
        "ArtifactBucket": BUCKET,
        "SecretArn": secret["ARN"],
        "CertificateArn": imported["CertificateArn"],
        "S3PrefixListId": lists[f"com.amazonaws.{REGION}.s3"],
        "DynamoDbPrefixListId": lists[f"com.amazonaws.{REGION}.dynamodb"],
        "ImageId": newest_image(cloud, "arm64"),
        "AlarmTopicArn": "nobody",
        "DataStack": DATA_STACK,
        "DeletionProtection": "false",
        "Scheme": "internet-facing",
        "ClientCidr": "0.0.0.0/0",
        "ApiCidr": "203.0.113.7/32",
    }


def newest_image(cloud: Cloud, architecture: str) -> str:
    """As deploy/README.md, step 5, looks for it."""
    name = f"/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{architecture}"
    found = cloud.client("ssm").get_parameter(Name=name)
    return str(found["Parameter"]["Value"])


def self_signed() -> tuple[bytes, bytes]:
    """A certificate and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "roomcast.invalid")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Stack:
    """One that was made, and what its template comes to."""

    def __init__(
        self,
        cloud: Cloud,
        name: str,
        given: Mapping[str, str],
        data: Stack | None = None,
    ) -> None:
        """`data`: the stack of data that it is on. None: it is one itself."""
        self.cloud = cloud
        self.name = name
        self.given = given
        self.data = data
        path = DATA if data is None else TEMPLATE
        self.template = load(path)
        self.resources: Mapping[str, Any] = self.template["Resources"]
        cloudformation = cloud.client("cloudformation")
        cloudformation.create_stack(
            StackName=name,
            TemplateURL=f"https://s3.{REGION}.amazonaws.com/{BUCKET}/templates/{path.name}",
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value} for key, value in given.items()
            ],
            Capabilities=["CAPABILITY_IAM"],
        )
        cloudformation.get_waiter("stack_create_complete").wait(
            StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": COMMAND_S}
        )
        pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=name)
        self.made: dict[str, Mapping[str, Any]] = {
            each["LogicalResourceId"]: each
            for page in pages
            for each in page["StackResourceSummaries"]
            # It lists nameless ones for what it does not make.
            if each["LogicalResourceId"]
        }
        self.created = Created(cloud.client)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The template with this stack's parameters, worked out without the emulator's help."""
        parameters = {
            name: self.given.get(name, str(each.get("Default")))
            for name, each in self.template["Parameters"].items()
        }
        zones = self.cloud.client("ec2").describe_availability_zones()["AvailabilityZones"]
        pseudo = {
            "AWS::AccountId": ACCOUNT,
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "AWS::StackName": self.name,
            "AWS::URLSuffix": "amazonaws.com",
        }
        return Evaluation(
            self.template,
            parameters,
            pseudo,
            sorted(zone["ZoneName"] for zone in zones),
            self.ref,
            lambda name, attribute: self.created.attribute(
                self.resources[name]["Type"], self.ref(name), attribute
            ),
            {} if self.data is None else exports(self.data.evaluation),
        )

    def ref(self, resource: str) -> str:
        """What Ref makes of it."""
        return str(self.made[resource]["PhysicalResourceId"])

    def wanted(self, resource: str) -> dict[str, Any]:
        properties = self.evaluation.properties(resource)
        if "DashboardBody" in properties:
            properties["DashboardBody"] = json.loads(properties["DashboardBody"])
        return properties

    def found(self, resource: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Of `resource`, now; {}: it is not there."""
        kind = self.resources[resource]["Type"]
        return self.created.properties(kind, self.ref(resource), wanted)

    @cached_property
    def outputs(self) -> dict[str, str]:
        (stack,) = self.cloud.client("cloudformation").describe_stacks(StackName=self.name)[
            "Stacks"
        ]
        return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}

    @property
    def kept(self) -> Stack:
        """The stack of data that it is on."""
        assert self.data is not None
        return self.data

    def credentials(self, role: str) -> dict[str, str]:
        """Of whoever has this role of the stack, as environment variables."""
        arn = self.created.attribute("AWS::IAM::Role", self.ref(role), "Arn")
        given = self.cloud.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")[
            "Credentials"
        ]
        return {
            "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
            "AWS_SESSION_TOKEN": given["SessionToken"],
        }

    def client_of(self, role: str, service: str) -> Any:
        given = {name.lower(): value for name, value in self.credentials(role).items()}
        return boto3.client(service, endpoint_url=self.cloud.endpoint, region_name=REGION, **given)


def everything_else(cloud: Cloud, data: Stack) -> dict[str, str]:
    """What the first stack does without: all options, in a VPC that is there,
    with interface endpoints of its own, on the tables and topics of `data`.
    """
    ec2 = cloud.client("ec2")
    (vpc,) = (each["VpcId"] for each in ec2.describe_vpcs()["Vpcs"] if each["IsDefault"])
    here = [{"Name": "vpc-id", "Values": [vpc]}]
    subnets = [each["SubnetId"] for each in ec2.describe_subnets(Filters=here)["Subnets"]]
    (table,) = (
        each["RouteTableId"] for each in ec2.describe_route_tables(Filters=here)["RouteTables"]
    )
    group = ec2.create_security_group(GroupName="endpoints", Description="endpoints", VpcId=vpc)[
        "GroupId"
    ]
    zone = cloud.client("route53").create_hosted_zone(Name="example.com", CallerReference="test")
    location = {"LocationConstraint": REGION}
    cloud.client("s3").create_bucket(Bucket="access-logs", CreateBucketConfiguration=location)
    topic = cloud.client("sns").create_topic(Name="alarms")["TopicArn"]
    without = ("Scheme", "ClientCidr", "ConfigKey")
    return {name: value for name, value in cloud.given.items() if name not in without} | {
        "DataStack": data.name,
        "QueuePrefix": "our-",
        "LogGeneration": "1",
        "TopicShards": "16",
        "PublishToShards": "true",
        "VpcId": vpc,
        "PrivateSubnetIds": ",".join(subnets),
        "PrivateRouteTableIds": table,
        "EndpointSecurityGroupId": group,
        "DedicatedVpc": "true",
        "DomainName": "chat.example.com",
        "HostedZoneId": zone["HostedZone"]["Id"].rpartition("/")[2],
        "RedirectHttp": "true",
        "ConsumerQueueArns": f"arn:aws:sqs:{REGION}:{ACCOUNT}:a,arn:aws:sqs:{REGION}:{ACCOUNT}:b",
        "EventsTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:events.fifo",
        "AccessLogBucket": "access-logs",
        "InstanceType": "c7i.xlarge",
        "ImageId": newest_image(cloud, "x86_64"),
        "Processes": "4",
        "RolloutBrake": "false",
        "LoadBalancerCidrs": "10.1.2.0/24,10.1.3.0/24",
        "MinInstances": "1",
        "MaxInstances": "3",
        "DesiredInstances": "1",
        "DeletionProtection": "true",
        "ReserveReaper": "false",
        "LogRetentionDays": "7",
        "AlarmTopicArn": topic,
    }


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> Stack:
    """The one of deploy/README.md."""
    return Stack(cloud, STACK, cloud.given, Stack(cloud, DATA_STACK, UNPROTECTED))


# What deploy/README.md gives tasks in place of what it gives instances.
OF_INSTANCES: Final = frozenset({"ReleaseKey", "ConfigKey", "ImageId"})
OF_TASKS: Final = {
    "Compute": "fargate", "ImageRepository": "roomcast", "ImageDigest": "sha256:" + "5f" * 32,
    "TasksNow": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks(cloud: Cloud, stack: Stack) -> Stack:
    """The same nodes as tasks, on the same data."""
    given = {name: value for name, value in cloud.given.items() if name not in OF_INSTANCES}
    return Stack(cloud, "tasks", given | OF_TASKS, stack.kept)


def there(prefix: str, cloud: Cloud) -> str:
    """Makes the tables that a stack of data need not make. The stream of the one that has one."""
    dynamodb = cloud.client("dynamodb")
    made = {
        schema.name: dynamodb.create_table(**schema.create)["TableDescription"]
        for schema in table_schemas(prefix)
        if schema.name in (channels_table(prefix), idempotency_table(prefix))
    }
    return str(made[channels_table(prefix)]["LatestStreamArn"])


@pytest.fixture(scope="module")
def stacks(cloud: Cloud, stack: Stack, tasks: Stack) -> list[Stack]:
    """Those in which everything that the templates can make is made."""
    key = cloud.client("kms").create_key()["KeyMetadata"]["Arn"]
    kept = {"TablePrefix": "all.", "TopicShards": "16", "KmsKeyArn": key}
    data = Stack(cloud, "all-data", kept)
    # One whose tables are there already.
    stream = there("kept.", cloud)
    again = Stack(cloud, "again-data", {"TablePrefix": "kept.", "ChannelsStreamArn": stream})
    given = everything_else(cloud, data) | {"KmsKeyArn": key}
    other = {"Processes": "3", "PrivateRouteTableIds": "", "DomainName": "", "HostedZoneId": ""}
    other |= OF_TASKS | {"TasksNow": "0", "MinInstances": "2"}
    other |= {"AccessLogs": "false", "RequestsPerAddress": "0"}
    other |= {"EventsTargetArn": f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/events"}
    return [
        stack.kept,
        stack,
        tasks,
        data,
        Stack(cloud, "all", given, data),
        again,
        Stack(cloud, "vpc", given | other | {"DataStack": again.name, "TopicShards": "1"}, again),
    ]


# ---- what was made


def test_the_parameters_are_those_that_the_page_gives(cloud: Cloud) -> None:
    built = {parameter for _, _, parameter in build.LAMBDAS} | {"ReleaseKey", "ConfigKey"}
    assert overridden(OF_DATA[0]) == UNPROTECTED
    assert cloud.given.keys() == overridden(OF_FLEET[0]).keys() | built


def test_every_condition_is_tried_both_ways(stacks: Sequence[Stack]) -> None:
    held: dict[tuple[int, str], set[bool]] = {}
    for stack in stacks:
        for condition in stack.template["Conditions"]:
            which = id(stack.template), condition
            held.setdefault(which, set()).add(stack.evaluation.holds(condition))
    assert [which for which, both in held.items() if len(both) < 2] == []


def test_parameters_are_ones_that_the_template_takes(stacks: Sequence[Stack]) -> None:
    for stack in stacks:
        assert stack.evaluation.broken_rules() == set()
        for name, value in stack.given.items():
            about = stack.template["Parameters"][name]
            assert value in map(str, about.get("AllowedValues", [value])), name
            # The emulator's zones have other names than AWS's.
            if name != "HostedZoneId":
                assert re.fullmatch(about.get("AllowedPattern", ".*"), value), name


def test_everything_is_made_as_the_template_says_but_for_what_is_listed(
    stacks: Sequence[Stack],
) -> None:
    lacking: set[tuple[str, str]] = set()
    for stack in stacks:
        expected = stack.evaluation.resources()
        assert stack.made.keys() <= expected
        for name in expected:
            kind = stack.resources[name]["Type"]
            missing = {ALL}
            if name in stack.made and kind in stack.created.kinds:
                wanted = stack.wanted(name)
                found = stack.found(name, wanted)
                missing = set(differences(wanted, found)) if found else {ALL}
            lacking |= {(kind, path) for path in missing}
    listed = {(kind, path) for kind, paths in LACKING.items() for path in paths}
    assert sorted(lacking - listed) == [], "not as the template says, and not on the list"
    assert sorted(listed - lacking) == [], (
        f"moto {version('moto')} does it after all: shorten the list"
    )


def test_whoever_looks_after_what_is_lacking_exists() -> None:
    for paths in LACKING.values():
        for elsewhere in paths.values():
            if elsewhere == SCHEMA:
                continue
            path, _, name = elsewhere.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), elsewhere


def test_outputs_are_what_the_template_says(stacks: Sequence[Stack]) -> None:
    for stack in stacks:
        expected = {
            name: stack.evaluation.value(each["Value"])
            for name, each in stack.template["Outputs"].items()
            if "Condition" not in each or stack.evaluation.holds(each["Condition"])
        }
        assert stack.outputs == expected


@pytest.mark.parametrize("schema", table_schemas("roomcast-"), ids=lambda schema: schema.name)
def test_tables_are_those_that_the_code_needs(stack: Stack, schema: TableSchema) -> None:
    table = stack.cloud.client("dynamodb").describe_table(TableName=schema.name)["Table"]
    table["BillingMode"] = table["BillingModeSummary"]["BillingMode"]
    assert list(differences(schema.create, table)) == []


def queues_of(stack: Stack) -> list[str]:
    """All whose names begin as those of the stack's nodes do."""
    prefix = f"{stack.evaluation.parameters['QueuePrefix']}{stack.name}_"
    urls: list[str] = (
        stack.cloud.client("sqs").list_queues(QueueNamePrefix=prefix).get("QueueUrls", [])
    )
    return urls


# ---- what roles may not


@pytest.fixture(scope="module")
def others(cloud: Cloud) -> Cloud:
    """The account, with things in it that are not the stack's."""
    cloud.client("sqs").create_queue(QueueName=UNTAGGED)
    cloud.client("sns").create_topic(Name="foreign")
    cloud.client("dynamodb").create_table(
        TableName="foreign",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "channel", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "channel", "KeyType": "HASH"}],
    )
    cloud.client("secretsmanager").create_secret(Name="foreign", SecretString="{}")
    return cloud


ITEM: Final = {"channel": {"S": "room"}, "offset": {"N": "1"}}
FOREIGN: Final = f"arn:aws:sns:{REGION}:{ACCOUNT}:foreign"
TAGGED: Final = {"app": "roomcast", "topic": FOREIGN}
UNTAGGED: Final = "roomcast_untagged"
REFUSED: Final[Sequence[tuple[str, str, str, Mapping[str, Any]]]] = [
    ("InstanceRole", "dynamodb", "delete_item", {"TableName": "roomcast-channels", "Key": ITEM}),
    ("InstanceRole", "dynamodb", "put_item", {"TableName": "foreign", "Item": ITEM}),
    ("InstanceRole", "s3", "get_object", {"Bucket": BUCKET, "Key": "templates/template.yaml"}),
    ("InstanceRole", "secretsmanager", "get_secret_value", {"SecretId": "foreign"}),
    ("InstanceRole", "sns", "publish", {"TopicArn": FOREIGN, "Message": "x"}),
    (
        "InstanceRole",
        "sns",
        "subscribe",
        {"TopicArn": "", "Protocol": "https", "Endpoint": "https://evil"},
    ),
    ("InstanceRole", "sqs", "create_queue", {"QueueName": "roomcast_a"}),
    ("InstanceRole", "sqs", "create_queue", {"QueueName": "roomcast_a", "tags": TAGGED}),
    ("InstanceRole", "sqs", "list_queues", {}),
    ("InstanceRole", "cloudwatch", "put_metric_data", {"Namespace": "roomcast", "MetricData": []}),
    ("InstanceRole", "ec2", "describe_instances", {}),
    ("ReaperRole", "sqs", "delete_queue", {"QueueUrl": UNTAGGED}),
    ("ReaperRole", "dynamodb", "scan", {"TableName": "roomcast-channels"}),
    ("StreamLambdaRole", "dynamodb", "put_item", {"TableName": "roomcast-channels", "Item": ITEM}),
    ("StreamLambdaRole", "sns", "publish", {"TopicArn": FOREIGN, "Message": "x"}),
]


@pytest.mark.parametrize("role, service, operation, asked", REFUSED)
def test_who_takes_over_a_role_does_not_get_far(
    stack: Stack, others: Cloud, role: str, service: str, operation: str, asked: Mapping[str, Any]
) -> None:
    asked = dict(asked)
    if asked.get("TopicArn") == "":
        asked["TopicArn"] = stack.kept.ref("Topic")
    if asked.get("QueueUrl") == UNTAGGED:
        asked["QueueUrl"] = others.client("sqs").get_queue_url(QueueName=UNTAGGED)["QueueUrl"]
    with pytest.raises(ClientError, match="is not authorized to perform"):
        getattr(stack.client_of(role, service), operation)(**asked)


# Calls to services that the emulator does not have, or that something of AWS makes.
ALLOWED: Final[Sequence[tuple[str, str, str]]] = [
    ("InstanceRole", "autoscaling:CompleteLifecycleAction", "group"),
    ("InstanceRole", "autoscaling:RecordLifecycleActionHeartbeat", "group"),
    ("InstanceRole", "logs:PutLogEvents", "/roomcast/roomcast/instances"),
    ("ReaperRole", "autoscaling:CompleteLifecycleAction", "group"),
    ("ReaperRole", "logs:PutLogEvents", "/roomcast/roomcast/reaper"),
    ("StreamLambdaRole", "logs:PutLogEvents", "/roomcast/roomcast/stream-lambda"),
]


@pytest.mark.parametrize("role, action, resource", ALLOWED)
def test_what_cannot_be_tried_here_is_allowed_as_well(
    stack: Stack, role: str, action: str, resource: str
) -> None:
    policies = [each["PolicyDocument"] for each in stack.found(role, {})["Policies"]]
    groups = stack.cloud.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=["roomcast-fleet"]
    )
    arn = groups["AutoScalingGroups"][0]["AutoScalingGroupARN"]
    if resource != "group":
        arn = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{resource}:log-stream:one"
    assert allowed(policies, Call(action, arn))
    assert not allowed(policies, Call(action, arn.replace("roomcast", "another")))


# ---- the service, on what was made


class Function:
    """A Lambda of the stack in a process of its own: the code,
    environment and role that it was made with.
    """

    def __init__(
        self,
        stack: Stack,
        resource: str,
        directory: Path,
        environ: Mapping[str, str] | None = None,
        *,
        ahead_ms: int = 0,
    ) -> None:
        """`ahead_ms`: of its clock. `environ`: what it has here and not in AWS."""
        wanted = stack.wanted(resource)
        function = stack.found(resource, wanted)
        archive = directory / Path(wanted["Code"]["S3Key"]).name
        # created.py has seen that it is what the function was made of.
        stack.cloud.client("s3").download_file(BUCKET, wanted["Code"]["S3Key"], str(archive))
        (role,) = (name for name in stack.made if function["Role"].endswith(f"/{stack.ref(name)}"))
        runtime = Path(__file__).with_name("lambda_runtime.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(runtime), str(archive), function["Handler"], str(ahead_ms)],
            cwd=directory,
            env=environment()
            | stack.credentials(role)
            | function["Environment"]["Variables"]
            | {
                "AWS_REGION": REGION,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ENDPOINT_URL": stack.cloud.endpoint,
            }
            | dict(environ or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put('{"raised": "it ended"}')

    def __call__(self, event: Mapping[str, Any], _context: object = None) -> Any:
        """What it returns. Raises AssertionError when it raises."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._answers.get(timeout=INVOCATION_S))
        assert "raised" not in answer, answer
        return answer["returned"]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._reader.join()


@contextmanager
def running(function: Function) -> Iterator[Function]:
    try:
        yield function
    finally:
        function.close()


@contextmanager
def pumping(stack: Stack, function: Function) -> Iterator[None]:
    """The event source mapping: the table's stream into the function,
    with the rights of the function's role.
    """
    mapping = stack.found("StreamMapping", {})
    assert mapping["FunctionName"] == stack.ref("StreamAlias")
    retries = mapping["MaximumRetryAttempts"]
    given_up: list[Any] = []
    pump = StreamPump(
        stack.client_of("StreamLambdaRole", "dynamodbstreams"),
        mapping["EventSourceArn"],
        REGION,
        function,
        given_up.append,
        MappingOptions(
            batch_size=mapping["BatchSize"],
            bisect_on_error=mapping["BisectBatchOnFunctionError"],
            retries_max=None if retries == -1 else retries,
            record_age_max_s=mapping["MaximumRecordAgeInSeconds"],
        ),
    )
    over = threading.Event()

    def run() -> None:
        wait_s = 0.0
        while not over.wait(wait_s):
            wait_s = 0.0 if pump.turn() else POLL_INTERVAL_S

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert given_up == []


def booted(stack: Stack, directory: Path) -> dict[str, str]:
    """What nodes find in their environment once the launch template's user data have run,
    with the instances' rights.
    """
    launch = stack.found("LaunchTemplate", {})["LaunchTemplateData"]
    script = base64.b64decode(launch["UserData"]).decode()
    directory.mkdir()
    command = directory / "aws.py"
    command.write_text(AWS_COMMAND, encoding="utf-8")
    given = {"AWS_ENDPOINT_URL": stack.cloud.endpoint} | stack.credentials("InstanceRole")
    exports = " ".join(f"{name}={value}" for name, value in given.items())
    machine = fresh_machine(directory, f'{exports} exec {sys.executable} {command} "$@"')
    done = machine.boot(script)
    assert (done.returncode, done.stderr) == (0, "")
    started = [
        call for call in machine.calls() if call.startswith("systemctl enable --now roomcast")
    ]
    assert started == ["systemctl enable --now roomcast.service"]
    etc = machine.root / "etc" / "roomcast"
    secret = as_a_shell_reads(etc / "secret.env")
    assert secret == SECRET
    found = settings(etc / "settings.env")
    assert Path(found["ROOMCAST_CONFIG"]).read_text(encoding="utf-8") == CONFIG
    return found | secret


# Of the AWS CLI, what user data and install.sh call.
AWS_COMMAND: Final = """\
import sys, boto3
given = sys.argv[1:]
region = given[given.index("--region") + 1]
client = boto3.client(given[0], region_name=region)
if given[:2] == ["s3", "cp"]:
    bucket, _, key = given[-2].removeprefix("s3://").partition("/")
    client.download_file(bucket, key, given[-1])
else:
    assert given[:2] == ["secretsmanager", "get-secret-value"], given
    print(client.get_secret_value(SecretId=given[given.index("--secret-id") + 1])["SecretString"])
"""


class OnNode(Protocol):
    """A node, and a client of it."""

    @property
    def process(self) -> Process: ...

    @property
    def client(self) -> WebSocket: ...


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine of the fleet, the node on it, and a client of that node."""

    machine: FakeMachine
    process: Process
    client: WebSocket


@dataclass(frozen=True, slots=True)
class InTask:
    """A task, the node in it, and a client of that node."""

    task: FakeTask
    process: Process
    client: WebSocket


async def connected(session: aiohttp.ClientSession, process: Process, user: str) -> WebSocket:
    """A client of the node, in the room."""
    await asyncio.to_thread(process.ready)
    socket = WebSocket(await session.ws_connect(f"{process.url}/connection/websocket"))
    token = sign_connection(user, SECRET["ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY"], 600)
    assert (await socket.ask("connect", token=token))["client"]
    await socket.ask("subscribe", channel=ROOM)
    return socket


def nothing_was_refused(processes: Collection[Process]) -> None:
    for process in processes:
        assert "Traceback" not in process.log, process.log
        assert "AccessDenied" not in process.log, process.log
        assert "not authorized" not in process.log, process.log


@asynccontextmanager
async def fleet(
    stack: Stack, ec2: FakeEc2, environ: Mapping[str, str]
) -> AsyncIterator[list[Instance]]:
    """Two instances, whose clients are in the room. `environ`: from `booted`."""
    inherited = environment()
    # Everything that is not as on an instance.
    del inherited["AWS_EC2_METADATA_DISABLED"]
    here = (
        inherited
        | stack.credentials("InstanceRole")
        | {"AWS_ENDPOINT_URL": stack.cloud.endpoint, "AWS_ENDPOINT_URL_AUTO_SCALING": ec2.endpoint}
    )
    machines = [await ec2.launch() for _ in range(2)]
    async with aiohttp.ClientSession() as session:
        with ExitStack() as ends:
            processes = []
            for machine in machines:
                there = {"ROOMCAST_NODE_IMDS_ENDPOINT": machine.endpoint}
                processes.append(Process(None, "--port", "0", environ={**here, **environ, **there}))
                ends.callback(processes[-1].close)
            instances = []
            for machine, process in zip(machines, processes, strict=True):
                client = await connected(session, process, machine.id)
                instances.append(Instance(machine, process, client))
            yield instances
    nothing_was_refused(processes)


def hooks(stack: Stack) -> dict[str, Hook]:
    """Of the fleet, by the transition at which they are. The emulator has none,
    so they come from the template.
    """
    listed = stack.wanted("Fleet")["LifecycleHookSpecificationList"]
    return {
        each["LifecycleTransition"]: Hook(
            each["LifecycleHookName"], float(each["HeartbeatTimeout"]), each["DefaultResult"]
        )
        for each in listed
    }


async def test_the_service_runs_on_what_was_made(stack: Stack, tmp_path: Path) -> None:
    aws = Aws(
        stack.cloud.endpoint,
        provisioned(stack),
        tmp_path,
        stack.kept.evaluation.parameters["TablePrefix"],
    )
    queues = queues_of(stack)
    environ = booted(stack, tmp_path / "machine")
    all_are_told_the_same(stack, environ)
    at = hooks(stack)
    # A node that died is dead to this one at once.
    ahead_ms = round(Config().node.lease_ttl_s * 1000) + REAP_GRACE_MS + 1000
    async with fake_ec2(
        stack.ref("Fleet"),
        launch_hook=at["autoscaling:EC2_INSTANCE_LAUNCHING"],
        terminate_hook=at["autoscaling:EC2_INSTANCE_TERMINATING"],
    ) as ec2:
        there = {"AWS_ENDPOINT_URL_AUTO_SCALING": ec2.endpoint}
        with ExitStack() as ends:
            stream = ends.enter_context(running(Function(stack, "StreamLambda", tmp_path)))
            reaper = ends.enter_context(running(Function(stack, "Reaper", tmp_path, there)))
            later = ends.enter_context(
                running(Function(stack, "Reaper", tmp_path, there, ahead_ms=ahead_ms))
            )
            ends.enter_context(pumping(stack, stream))
            async with fleet(stack, ec2, environ) as (first, second):
                await ec2.until(
                    lambda: {each.state for each in ec2.machines.values()} == {"InService"}
                )
                await clients_meet(first, second)
                await back_ends_publish(first, second)
                await asyncio.to_thread(all_is_well, stack, environ)
                assert set(watched(stack)) <= metrics(first, second)
                idle = await asyncio.to_thread(reaper, scheduled(stack))
                assert idle == {"live": 2, "reaped": 0, "orphans": 0, "failed": 0}
                await one_is_killed(stack, aws, ec2, later, first, second)
                await the_other_is_drained(aws, ec2, second)
            idle = await asyncio.to_thread(reaper, scheduled(stack))
            assert idle == {"live": 0, "reaped": 0, "orphans": 0, "failed": 0}
    assert queues_of(stack) == queues
    assert not aws.client("sns").list_subscriptions_by_topic(TopicArn=stack.kept.ref("Topic"))[
        "Subscriptions"
    ]


def all_are_told_the_same(stack: Stack, environ: Mapping[str, str]) -> None:
    """Lambdas have the names of things that nodes have."""
    told = {
        name: stack.found(name, stack.wanted(name))["Environment"]["Variables"]
        for name in ("Reaper", "StreamLambda")
    }
    # Whose tasks are nodes is for the reaper alone.
    told["Reaper"].pop("ROOMCAST_AWS_ECS_CLUSTER")
    assert told["Reaper"].items() <= environ.items()
    assert told["StreamLambda"] == {
        "ROOMCAST_TOPIC_ARN": environ["ROOMCAST_AWS_TOPIC_ARN"],
        "ROOMCAST_TOPIC_SHARDS": environ["ROOMCAST_AWS_TOPIC_SHARDS"],
    }


def provisioned(stack: Stack) -> Provisioned:
    kept = stack.kept.outputs
    return Provisioned(kept["TopicArn"], kept["ChannelsStreamArn"], (), ())


async def clients_meet(first: OnNode, second: OnNode) -> None:
    """Each hears both, in one order; presence knows both."""
    for number in range(10):
        who = (first, second)[number % 2]
        assert await who.client.ask("publish", channel=ROOM, data=number) == {}
    for each in (first, second):
        assert await each.client.published(ROOM, 10) == list(range(10))
    await first.client.until(lambda: len(first.client.pushes(ROOM, "join")) == 2)


async def back_ends_publish(first: Instance, second: Instance) -> None:
    """Also with a key, which takes a transaction over two tables; twice is once."""
    async with aiohttp.ClientSession(
        headers={"X-API-Key": SECRET["ROOMCAST_HTTP_API_KEY"]}
    ) as session:
        body = {"channel": ROOM, "data": "from a back end", "idempotency_key": "once"}
        results = []
        for node in (first, second):
            async with session.post(f"{node.process.url}/api/publish", json=body) as response:
                assert response.status == 200
                results.append((await response.json())["result"])
    assert results[0] == results[1]
    for each in (first, second):
        assert (await each.client.published(ROOM, 11))[10:] == ["from a back end"]


def all_is_well(stack: Stack, environ: Mapping[str, str]) -> None:
    """`roomcast doctor`, as on an instance."""
    done = subprocess.run(
        [sys.executable, "-m", "roomcast", "doctor"],
        cwd=ROOT,
        env=environment()
        | stack.credentials("InstanceRole")
        | {"AWS_ENDPOINT_URL": stack.cloud.endpoint}
        | dict(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    # What follows a check and tells what to do is indented.
    outcomes = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    # An instance may not read all of its set-up, which doctor says in one line.
    assert Counter(outcomes) == {"ok": 12, "skipped": 1, "note": 2}, done.stdout
    assert outcomes[-1] == "note", done.stdout
    assert "2 live nodes" in done.stdout


def watched(stack: Stack) -> Iterator[tuple[str, str]]:
    """Metrics of nodes, with the group, that alarms and scaling go by."""
    for name in stack.evaluation.resources():
        properties = RESOURCES[name]["Properties"]
        if RESOURCES[name]["Type"] == "AWS::AutoScaling::ScalingPolicy":
            properties = properties["TargetTrackingConfiguration"].get(
                "CustomizedMetricSpecification", {}
            )
        elif RESOURCES[name]["Type"] != "AWS::CloudWatch::Alarm":
            continue
        about = stack.evaluation.value(properties)
        if about.get("Namespace") == "roomcast" and about.get("Dimensions"):
            (dimension,) = about["Dimensions"]
            if dimension["Name"] == "FunctionName":
                # Of a Lambda, which tells by its log.
                continue
            assert dimension["Name"] == "AutoScalingGroupName"
            yield about["MetricName"], dimension["Value"]


def metrics(*instances: Instance) -> set[tuple[str, str]]:
    """Those that CloudWatch Logs makes of the instances' logs."""
    return {
        (metric.name, value)
        for instance in instances
        for metric in read_all(instance.process.lines)
        for _, value in metric.dimensions
    }


def scheduled(stack: Stack) -> dict[str, Any]:
    """What the schedule sends, to whom it sends it."""
    rule = stack.found("ReaperSchedule", {})
    assert (rule["State"], rule["ScheduleExpression"]) == ("ENABLED", "rate(1 minute)")
    assert invoked_by(stack, "ReaperSchedule") == [stack.ref("Reaper")]
    text = (ROOT / "tests" / "fixtures" / "events" / "scheduled.json").read_text(encoding="utf-8")
    event: dict[str, Any] = json.loads(text)
    return event


def invoked_by(stack: Stack, rule: str) -> list[str]:
    """Functions that a rule invokes, and may."""
    targets = [target["Arn"].rpartition(":")[2] for target in stack.found(rule, {})["Targets"]]
    permission = f"{rule}Permission"
    wanted = stack.wanted(permission)
    assert not list(differences(wanted, stack.found(permission, wanted)))
    return targets if targets == [wanted["FunctionName"]] else []


async def one_is_killed(
    stack: Stack, aws: Aws, ec2: FakeEc2, reaper: Function, dead: Instance, living: Instance
) -> None:
    """What Auto Scaling tells about its machine, the rule lets through,
    and the reaper does what is left to do.
    """
    held = await asyncio.to_thread(aws.left_of, living.process.node)
    assert len(await asyncio.to_thread(aws.left_of, dead.process.node)) == len(held) >= 4
    dead.process.signal(9)
    await asyncio.to_thread(dead.process.ended)
    ec2.terminate(dead.machine)
    event = ec2.events[-1]
    pattern = stack.found("TerminationEvents", {})["EventPattern"]
    assert matches(pattern, event)
    assert not matches(pattern, event | {"detail": {"AutoScalingGroupName": "another"}})
    assert invoked_by(stack, "TerminationEvents") == [stack.ref("Reaper")]
    done = await asyncio.to_thread(reaper, event)
    assert (done["reaped"], done["failed"]) == (1, 0)
    await ec2.until(lambda: dead.machine.state == "Terminated")
    assert dead.machine.ends == ["CONTINUE", "CONTINUE"]
    assert matches(pattern, ec2.events[-1])
    assert (await asyncio.to_thread(reaper, ec2.events[-1]))["failed"] == 0
    assert await asyncio.to_thread(aws.left_of, dead.process.node) == []
    assert len(await asyncio.to_thread(aws.left_of, living.process.node)) == len(held)
    client = living.client
    await client.until(lambda: client.pushes(ROOM, "leave"))
    assert [leave["info"]["user"] for leave in client.pushes(ROOM, "leave")] == [dead.machine.id]
    presence = (await client.ask("presence", channel=ROOM))["presence"]
    assert [each["user"] for each in presence.values()] == [living.machine.id]


async def the_other_is_drained(aws: Aws, ec2: FakeEc2, instance: Instance) -> None:
    """As Auto Scaling ends it: it lets its client go, takes everything with it,
    and completes the hook.
    """
    ec2.terminate(instance.machine)
    assert await instance.client.closed() == 3001
    await ec2.until(lambda: instance.machine.state == "Terminated")
    assert instance.machine.ends == ["CONTINUE", "CONTINUE"]
    assert await asyncio.to_thread(instance.process.ended, STOP_S) == 0, instance.process.log
    assert await asyncio.to_thread(aws.left_of, instance.process.node) == []


# ---- the same, as tasks


def started(stack: Stack, directory: Path) -> dict[str, str]:
    """What a container of the service finds in its environment, with the rights of who starts it;
    and the options that deploy/README.md puts into the image.
    """
    service = stack.found("Service", stack.wanted("Service"))
    assert service["TaskDefinition"] == stack.ref("TaskDefinition")
    (container,) = stack.found("TaskDefinition", {})["ContainerDefinitions"]
    environ = {each["Name"]: each["Value"] for each in container["Environment"]}
    secrets = stack.client_of("TaskExecutionRole", "secretsmanager")
    for each in container["Secrets"]:
        found = secrets.get_secret_value(SecretId=each["ValueFrom"])
        environ[each["Name"]] = found["SecretString"]
    config = directory / "roomcast.toml"
    config.write_text(CONFIG, encoding="utf-8")
    return environ | {"ROOMCAST_CONFIG": str(config)}


@asynccontextmanager
async def service(
    stack: Stack, cluster: str, environ: Mapping[str, str]
) -> AsyncIterator[list[InTask]]:
    """Two tasks, whose clients are in the room. `environ`: from `started`."""
    inherited = environment()
    del inherited["AWS_EC2_METADATA_DISABLED"]
    here = inherited | stack.credentials("TaskRole") | {"AWS_ENDPOINT_URL": stack.cloud.endpoint}
    async with fake_task(cluster) as one, fake_task(cluster) as other:
        async with aiohttp.ClientSession() as session:
            with ExitStack() as ends:
                processes = []
                for task in (one, other):
                    there = {"ECS_CONTAINER_METADATA_URI_V4": task.endpoint}
                    given = {**here, **environ, **there}
                    processes.append(Process(None, "--port", "0", environ=given))
                    ends.callback(processes[-1].close)
                yield [
                    InTask(task, process, await connected(session, process, task.id))
                    for task, process in zip((one, other), processes, strict=True)
                ]
        nothing_was_refused(processes)


def changed(stack: Stack, name: str, task: FakeTask, cluster: str) -> dict[str, Any]:
    """What ECS tells of the task, after it has gone through the rule."""
    text = (ROOT / "tests" / "fixtures" / "events" / f"{name}.json").read_text(encoding="utf-8")
    event: dict[str, Any] = json.loads(text)
    pattern = stack.found("TaskEvents", {})["EventPattern"]
    assert not matches(pattern, event), "a task of another cluster"
    event["detail"] |= {"taskArn": task.arn, "clusterArn": cluster}
    assert matches(pattern, event)
    assert invoked_by(stack, "TaskEvents") == [stack.ref("Reaper")]
    return event


async def test_the_service_runs_as_tasks_on_what_was_made(tasks: Stack, tmp_path: Path) -> None:
    prefix = tasks.kept.evaluation.parameters["TablePrefix"]
    aws = Aws(tasks.cloud.endpoint, provisioned(tasks), tmp_path, prefix)
    queues = queues_of(tasks)
    environ = started(tasks, tmp_path)
    all_are_told_the_same(tasks, environ)
    cluster = tasks.created.attribute("AWS::ECS::Cluster", tasks.ref("Cluster"), "Arn")
    with ExitStack() as ends:
        stream = ends.enter_context(running(Function(tasks, "StreamLambda", tmp_path)))
        reaper = ends.enter_context(running(Function(tasks, "Reaper", tmp_path)))
        ends.enter_context(pumping(tasks, stream))
        async with service(tasks, cluster, environ) as (first, second):
            await clients_meet(first, second)
            for each in (first, second):
                assert each.process.node.startswith(each.task.id[:20])
            # ECS begins to stop one: it ends before SIGTERM comes.
            leaving = changed(tasks, "task_deactivating", first.task, cluster)
            assert await asyncio.to_thread(reaper, leaving) == {"told": 1}
            assert await first.client.closed() == 3001
            assert await asyncio.to_thread(first.process.ended, STOP_S) == 0, first.process.log
            assert await asyncio.to_thread(aws.left_of, first.process.node) == []
            # One is killed: the reaper does what is left to do.
            assert len(await asyncio.to_thread(aws.left_of, second.process.node)) >= 4
            second.process.signal(9)
            await asyncio.to_thread(second.process.ended)
            gone = changed(tasks, "task_stopped", second.task, cluster)
            done = await asyncio.to_thread(reaper, gone)
            assert (done["reaped"], done["failed"]) == (1, 0)
            assert await asyncio.to_thread(aws.left_of, second.process.node) == []
            # It comes for the other as well, of which nothing is left.
            late = changed(tasks, "task_stopped", first.task, cluster)
            assert (await asyncio.to_thread(reaper, late))["reaped"] == 0
    assert queues_of(tasks) == queues


@pytest.mark.parametrize(
    "role, service, operation, asked",
    [
        ("TaskRole", "secretsmanager", "get_secret_value", {"SecretId": STACK}),
        ("TaskRole", "s3", "get_object", {"Bucket": BUCKET, "Key": "templates/template.yaml"}),
        ("TaskRole", "ecs", "list_tasks", {}),
        ("TaskExecutionRole", "secretsmanager", "get_secret_value", {"SecretId": "foreign"}),
        ("TaskExecutionRole", "sns", "publish", {"TopicArn": FOREIGN, "Message": "x"}),
    ],
)
def test_who_takes_over_a_task_does_not_get_far(
    tasks: Stack, others: Cloud, role: str, service: str, operation: str, asked: Mapping[str, Any]
) -> None:
    assert others is tasks.cloud
    with pytest.raises(ClientError, match="is not authorized to perform"):
        getattr(tasks.client_of(role, service), operation)(**asked)


# ---- the end


def test_stacks_that_are_deleted_leave_what_is_to_be_kept(cloud: Cloud) -> None:
    data = Stack(cloud, "gone-data", {**UNPROTECTED, "TablePrefix": "gone-"})
    fleet = Stack(cloud, "gone", {**cloud.given, "DataStack": data.name}, data)
    cloudformation = cloud.client("cloudformation")
    # In this order: what another stack imports stays.
    for stack, left in ((fleet, LEFT), (data, set())):
        wanted = {name: stack.wanted(name) for name in stack.made}
        assert all(
            stack.found(name, each)
            for name, each in wanted.items()
            if stack.resources[name]["Type"] not in UNSEEN
        )
        cloudformation.delete_stack(StackName=stack.name)
        cloudformation.get_waiter("stack_delete_complete").wait(
            StackName=stack.name, WaiterConfig={"Delay": 1, "MaxAttempts": COMMAND_S}
        )
        stays = {name for name, each in wanted.items() if stack.found(name, each)}
        kept = {
            name
            for name in stack.made
            if stack.resources[name].get("DeletionPolicy") in ("Retain", "RetainExceptOnCreate")
        }
        assert kept
        assert kept <= stays
        assert {stack.resources[name]["Type"] for name in stays - kept} == left
