"""deploy/template.yaml with Compute=fargate: tasks are what instances are, as far as they can be,
and an update moves a deployment from one to the other.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final

import pytest

from roomcast.config import load as load_config
from roomcast.config.options import SECRET_VARIABLE
from roomcast.ecs.rules import FARGATE_STOP_S, Task, drain_max_s
from roomcast.node import node
from roomcast.serve import process as app
from roomcast.serve.supervisor import DRAIN_JITTER
from roomcast.serve.tries import START_TRIES_S
from tests.deploy.cloudformation import ROOT, Evaluation, matches, references
from tests.deploy.test_container import last
from tests.deploy.test_template import (
    CONFIG,
    FLEET,
    RESOURCES,
    TEMPLATE,
    attributes,
    evaluated,
    of_type,
    role,
    seconds,
)

EVENTS: Final = ROOT / "tests" / "fixtures" / "events"
# What both forms have been given.
GIVEN: Final = {"ClientCidr": "0.0.0.0/0", "TopicShards": "4", "Processes": "2", "VpcId": ""}
# Of instances alone: nobody waits for a task.
OF_INSTANCES: Final = frozenset(
    {
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
        "ROOMCAST_AWS_LAUNCH_HOOK",
        "ROOMCAST_AWS_TERMINATE_HOOK",
    }
)


def on(compute: str, **given: str) -> Evaluation:
    return evaluated(TEMPLATE, "chat", **{**GIVEN, "Compute": compute, **given})


def container(**given: str) -> dict[str, Any]:
    (found,) = on("fargate", **given).properties("TaskDefinition")["ContainerDefinitions"]
    return dict(found)


# ---- a task is what an instance is


def test_there_are_instances_or_tasks() -> None:
    instances, tasks = on("ec2").resources(), on("fargate").resources()
    assert {"Fleet", "LaunchTemplate", "InstanceRole", "SsmEndpoint"} <= instances - tasks
    assert {"Service", "TaskDefinition", "TaskRole", "EcrApiEndpoint"} <= tasks - instances
    for shared in ("Vpc", "LoadBalancer", "HttpsListener", "Reaper", "StreamLambda", "SqsEndpoint"):
        assert shared in instances & tasks
    for name in instances ^ tasks:
        condition = RESOURCES[name]["Condition"]
        assert condition.startswith(("RunsInstances", "RunsTasks", "Create")), name


def test_a_task_may_what_a_node_on_an_instance_may_but_for_hooks() -> None:
    by_sid = {
        statement.sid: statement
        for statement in role("InstanceRole")
        if statement.sid not in ("Hooks", "FetchArtifacts", "ReadSecret", "WriteLogs", "Sessions")
    }
    tasks = {statement.sid: statement for statement in role("TaskRole")}
    assert tasks.keys() == by_sid.keys()
    for sid, statement in tasks.items():
        assert (statement.actions, statement.resources, statement.condition) == (
            by_sid[sid].actions,
            by_sid[sid].resources,
            by_sid[sid].condition,
        ), sid


def test_what_starts_a_task_may_fetch_one_image_and_one_secret() -> None:
    by_sid = {statement.sid: statement for statement in role("TaskExecutionRole")}
    assert by_sid["ReadSecret"].resources == ({"Ref": "SecretArn"},)
    assert references(list(by_sid["FetchImage"].resources)) == {
        "AWS::AccountId", "AWS::Partition", "AWS::Region", "ImageRepository",
    }  # fmt: skip
    assert by_sid["WriteLogs"].resources == ({"Fn::GetAtt": ["InstanceLogs", "Arn"]},)


@pytest.mark.parametrize("name", ["TaskRole", "TaskExecutionRole"])
def test_the_roles_are_for_tasks_of_this_account(name: str) -> None:
    (trust,) = RESOURCES[name]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
    assert trust["Condition"]["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}


def settings(script: str) -> dict[str, str]:
    """What user data write for the nodes of an instance."""
    (text,) = re.findall(r"settings\.env <<'END'\n(.*?)\nEND\n", script, re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    (proxies,) = re.findall(r"^proxies='(.*)'$", script, re.MULTILINE)
    return dict(line.split("=", 1) for line in lines) | {"ROOMCAST_CLIENT_TRUSTED_PROXIES": proxies}


@pytest.mark.parametrize(
    "given",
    [{}, {"Scheme": "internet-facing"}, {"VpcId": "vpc-1", "LoadBalancerCidrs": "10.1.0.0/24"}],
)
def test_nodes_are_told_the_same(given: Mapping[str, str]) -> None:
    launch = on("ec2", **given).properties("LaunchTemplate")["LaunchTemplateData"]
    instances = settings(base64.b64decode(launch["UserData"]).decode())
    told = {each["Name"]: str(each["Value"]) for each in container(**given)["Environment"]}
    assert told == {name: each for name, each in instances.items() if name not in OF_INSTANCES}
    ours = {name: each for name, each in told.items() if name.startswith("ROOMCAST_")}
    real = {"ROOMCAST_AWS_TOPIC_ARN": "", "ROOMCAST_AWS_REGION": ""}
    config = load_config(None, ours | real)
    assert config.node.processes == 2
    # Metrics go by it, and alarms watch these.
    assert config.aws.autoscaling_group == on("ec2").value(FLEET)


def test_without_known_proxies_nobody_is_one() -> None:
    told = {each["Name"]: each["Value"] for each in container(VpcId="vpc-1")["Environment"]}
    assert told["ROOMCAST_CLIENT_TRUSTED_PROXIES"] == ""
    assert load_config(None, {"ROOMCAST_CLIENT_TRUSTED_PROXIES": ""}) == load_config(None, {})


def test_the_secret_comes_whole_and_into_no_description() -> None:
    assert container()["Secrets"] == [{"Name": SECRET_VARIABLE, "ValueFrom": "x"}]


def test_a_task_runs_with_the_roles_that_it_has() -> None:
    properties = RESOURCES["TaskDefinition"]["Properties"]
    assert properties["TaskRoleArn"] == {"Fn::GetAtt": ["TaskRole", "Arn"]}
    assert properties["ExecutionRoleArn"] == {"Fn::GetAtt": ["TaskExecutionRole", "Arn"]}


def test_tasks_are_in_private_subnets_behind_both_target_groups() -> None:
    service = RESOURCES["Service"]["Properties"]
    network = service["NetworkConfiguration"]["AwsvpcConfiguration"]
    assert network["Subnets"] == RESOURCES["Fleet"]["Properties"]["VPCZoneIdentifier"]
    assert network["AssignPublicIp"] == "DISABLED"
    assert network["SecurityGroups"] == [{"Ref": "InstanceSecurityGroup"}]
    (port,) = container()["PortMappings"]
    assert service["LoadBalancers"] == [
        {
            "ContainerName": container()["Name"],
            "ContainerPort": port["ContainerPort"],
            "TargetGroupArn": {"Ref": group},
        }
        for group in ("TaskTargetGroup", "TaskApiTargetGroup")
    ]


# ---- the container


def test_the_container_is_the_image_s() -> None:
    found = container()
    assert found["User"] == last("node", "USER")
    assert [port["ContainerPort"] for port in found["PortMappings"]] == [
        int(last("node", "EXPOSE"))
    ]
    program = json.loads(last("node", "HEALTHCHECK").partition(" CMD ")[2])
    assert found["HealthCheck"]["Command"] == ["CMD", *program]
    # The image's own command.
    assert not found.keys() & {"Command", "EntryPoint"}


def test_the_container_writes_nothing_but_what_is_its_own() -> None:
    found = container()
    assert (found["ReadonlyRootFilesystem"], found["Essential"]) == (True, True)
    assert found["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    (mount,) = found["MountPoints"]
    (volume,) = RESOURCES["TaskDefinition"]["Properties"]["Volumes"]
    # Without more, it is of the task's own disk. It belongs to who the image's directory does.
    assert volume == {"Name": mount["SourceVolume"]}
    assert json.loads(last("node", "VOLUME")) == [mount["ContainerPath"]]
    # Whoever may run commands in it could write there.
    assert RESOURCES["Service"]["Properties"]["EnableExecuteCommand"] is False


def test_an_image_is_one_of_this_account_by_its_digest() -> None:
    image = container(ImageRepository="team/chat", ImageDigest="sha256:1")["Image"]
    assert image == "pseudo.dkr.ecr.pseudo.pseudo/team/chat@sha256:1"


# ---- times


def test_a_task_that_was_told_ends_before_the_load_balancer_cuts_it_off() -> None:
    drain_s = float(seconds("Drain", "Node"))
    drained_s = drain_s * DRAIN_JITTER + 3 * node.ANSWERS_S
    # The event, and the reaper, which another run may keep waiting.
    noticed_s = 30.0
    assert noticed_s + drained_s + app.FINISH_S < seconds("Drain", "Deregistration")


def test_a_task_that_nobody_told_ends_before_it_is_killed() -> None:
    assert seconds("Drain", "Stop") == container()["StopTimeout"] == FARGATE_STOP_S
    drain_s_max = drain_max_s(Task("id", fargate=True), DRAIN_JITTER)
    assert drain_s_max is not None
    assert seconds("Drain", "Node") <= drain_s_max


def test_a_task_has_the_time_that_a_start_takes() -> None:
    start_s = START_TRIES_S + CONFIG.node.queue_probe_s
    assert container()["HealthCheck"]["StartPeriod"] > start_s
    assert RESOURCES["Service"]["Properties"]["HealthCheckGracePeriodSeconds"] > start_s


def test_a_task_is_not_replaced_for_what_heals() -> None:
    """With instances readiness replaces nothing; ECS cannot be told so."""
    for name in ("TaskTargetGroup", "TaskApiTargetGroup"):
        group = RESOURCES[name]["Properties"]
        assert group["HealthCheckIntervalSeconds"] * group["UnhealthyThresholdCount"] >= 60


# ---- from one to the other


def test_target_groups_differ_in_no_more_than_they_must() -> None:
    groups = of_type("AWS::ElasticLoadBalancingV2::TargetGroup")
    for ours, theirs in (
        ("TaskTargetGroup", "TargetGroup0"),
        ("TaskApiTargetGroup", "ApiTargetGroup"),
    ):
        differ = {key for key in groups[ours] if groups[ours][key] != groups[theirs][key]}
        assert differ == {"TargetType", "UnhealthyThresholdCount"}
        key = "deregistration_delay.timeout_seconds"
        assert attributes(groups[ours], "TargetGroupAttributes")[key] == "120"


def test_clients_go_to_what_is_up_while_an_update_changes_it() -> None:
    """CloudFormation makes first, and deletes last; what depends on others is made after them,
    and deleted before them.
    """
    rules = of_type("AWS::ElasticLoadBalancingV2::ListenerRule")
    priorities = {name: int(rule["Priority"]) for name, rule in rules.items()}
    assert len(set(priorities.values())) == len(priorities)
    for rule in ("ClientRule", "ApiRule"):
        # To tasks: they come up behind rules that no request gets to, since those of the instances
        # are asked first. Then these go, and after them the instances.
        assert priorities[rule] < priorities[f"Task{rule}"]
        assert f"Task{rule}" in RESOURCES["Service"]["DependsOn"]
        # To instances: their rules wait for them, and take over at once.
        assert RESOURCES[rule]["DependsOn"] == "Fleet"
    # Their health is known by then.
    health = RESOURCES["FleetHealthRule"]
    assert references(health["Properties"]["Actions"]) == {"TargetGroup0", "ApiTargetGroup"}
    assert "DependsOn" not in health
    # It is there until they have ended: their target groups are never without a load balancer.
    assert "FleetHealthRule" in RESOURCES["Fleet"]["DependsOn"]


def test_a_service_is_as_large_as_scaling_has_it_unless_it_is_told_otherwise() -> None:
    assert "DesiredCount" not in on("fargate").properties("Service")
    assert on("fargate", TasksNow="6").properties("Service")["DesiredCount"] == "6"


def test_a_deployment_of_two_tasks_has_room_for_a_third() -> None:
    deployment = RESOURCES["Service"]["Properties"]["DeploymentConfiguration"]
    assert deployment["MinimumHealthyPercent"] == 100
    assert 2 * deployment["MaximumPercent"] // 100 > 2
    assert deployment["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}


def test_the_same_alarms_stop_a_rollout() -> None:
    fleet = on("ec2").value(RESOURCES["Fleet"]["UpdatePolicy"])
    refresh = fleet["AutoScalingInstanceRefresh"]["Preferences"]["AlarmSpecification"]["Alarms"]
    service = on("fargate").properties("Service")
    alarms = service["DeploymentConfiguration"]["Alarms"]
    assert alarms == {"Enable": True, "Rollback": True, "AlarmNames": refresh}
    # They are there when it is made.
    named = {
        alarm["AlarmName"]["Fn::Sub"].rpartition("-")[2]: name
        for name, alarm in of_type("AWS::CloudWatch::Alarm").items()
    }
    assert {named[each.rpartition("-")[2]] for each in refresh} <= set(
        RESOURCES["Service"]["DependsOn"]
    )
    unbraked = on("fargate", RolloutBrake="false").properties("Service")
    assert "Alarms" not in unbraked["DeploymentConfiguration"]


def test_tasks_scale_as_instances_do() -> None:
    tasks, instances = on("fargate"), on("ec2")
    target = tasks.properties("TaskScaling")
    fleet = instances.properties("Fleet")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (fleet["MinSize"], fleet["MaxSize"])
    ours, theirs = (
        each.properties(name)[key]
        for each, name, key in (
            (tasks, "TaskConnectionsScaling", "TargetTrackingScalingPolicyConfiguration"),
            (instances, "ConnectionsScaling", "TargetTrackingConfiguration"),
        )
    )
    theirs["CustomizedMetricSpecification"]["Dimensions"][0]["Value"] = instances.value(FLEET)
    assert ours == theirs


# ---- events


@pytest.mark.parametrize("name", ["task_deactivating", "task_stopped"])
def test_the_reaper_is_told_of_tasks_of_its_own_cluster(name: str) -> None:
    event = json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))
    rule = on("fargate").properties("TaskEvents")["EventPattern"]
    assert rule["detail"]["clusterArn"] == ["Cluster.Arn"]
    ours = rule | {"detail": rule["detail"] | {"clusterArn": [event["detail"]["clusterArn"]]}}
    assert matches(ours, event)
    assert not matches(rule, event)
    assert not matches(ours, event | {"detail": event["detail"] | {"lastStatus": "RUNNING"}})


def test_the_reaper_knows_the_cluster_also_when_it_is_about_to_go() -> None:
    for compute in ("ec2", "fargate"):
        environ = on(compute).properties("Reaper")["Environment"]["Variables"]
        arn = environ["ROOMCAST_AWS_ECS_CLUSTER"]
        assert arn.endswith(":cluster/" + on("fargate").properties("Cluster")["ClusterName"])
