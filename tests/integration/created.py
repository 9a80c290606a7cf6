"""Reads back what a stack made, in the words of its template, through the API of each service."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

from botocore.exceptions import ClientError

__all__ = ["Created", "differences"]

# What has no value in one of the two compared.
_NOTHING: Final = object()
# EC2's own rule of a new group, which is there when no other is.
_ALL_OUT: Final = [{"IpProtocol": "-1", "CidrIp": "0.0.0.0/0"}]
# Tags that CloudFormation adds.
_RESERVED: Final = "aws:"


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where `found` is not as `wanted`: dotted names, [] for any place in a list.
    What else `found` has does not matter.
    """
    wanted, found = _pairs(wanted), _pairs(found)
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key, value in wanted.items():
            yield from differences(
                value, found.get(key, _NOTHING), f"{path}.{key}" if path else str(key)
            )
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for one, other in zip(wanted, found, strict=True):
            yield from differences(one, other, f"{path}[]")
    elif _plain(wanted) != _plain(found):
        yield path


def _pairs(value: Any) -> Any:
    """Tags and attributes by their keys; anything else as it is."""
    if value and isinstance(value, list) and all(_is_pair(each) for each in value):
        return {each["Key"]: each["Value"] for each in value}
    return value


def _is_pair(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"Key", "Value"}


def _plain(value: Any) -> Any:
    """CloudFormation takes numbers and truth values as text as well."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class _Gone(Exception):
    """There is no such resource."""


def _pascal(value: Any) -> Any:
    """ECS's names as the template has them; those of log options are names of others."""
    if isinstance(value, list):
        return [_pascal(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key[:1].upper() + key[1:]: each if key == "options" else _pascal(each)
        for key, each in value.items()
    }


def _first(found: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    if not found:
        raise _Gone
    return found[0]


class Created:
    """What there is in an account. `client`: makes a client of a service."""

    def __init__(self, client: Callable[[str], Any]) -> None:
        self._client = client
        self._clients: dict[str, Any] = {}

    def properties(self, kind: str, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Of the resource that Ref calls `name`, those that can be asked for; {}: there is none.

        `wanted`: the template's, for what has no name of its own.
        """
        try:
            return self._readers[kind](name, wanted)
        except _Gone:
            return {}
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 404):
                return {}
            raise

    def attribute(self, kind: str, name: str, attribute: str) -> Any:
        """What GetAtt makes of it."""
        match kind.removeprefix("AWS::"), attribute:
            case "DynamoDB::Table", "Arn":
                return self._table(name)["TableArn"]
            case "DynamoDB::Table", "StreamArn":
                return self._table(name)["LatestStreamArn"]
            case "ECS::Cluster", "Arn":
                (cluster,) = self._of("ecs").describe_clusters(clusters=[name])["clusters"]
                return cluster["clusterArn"]
            case "ECS::Service", "Name":
                return name.rpartition("/")[2]
            case "EC2::LaunchTemplate", "LatestVersionNumber":
                found = self._of("ec2").describe_launch_templates(LaunchTemplateIds=[name])
                return found["LaunchTemplates"][0]["LatestVersionNumber"]
            case "ElasticLoadBalancingV2::LoadBalancer", "LoadBalancerFullName":
                return name.partition("loadbalancer/")[2]
            case "ElasticLoadBalancingV2::TargetGroup", "TargetGroupFullName":
                return name.rpartition(":")[2]
            case "ElasticLoadBalancingV2::LoadBalancer", _:
                # The template's name for it has one capital letter more.
                key = {"CanonicalHostedZoneID": "CanonicalHostedZoneId"}.get(attribute, attribute)
                return self._balancer(name)[key]
            case "Events::Rule", "Arn":
                return self._of("events").describe_rule(Name=name)["Arn"]
            case "IAM::InstanceProfile", "Arn":
                return self._profile(name)["Arn"]
            case "IAM::Role", "Arn":
                return self._of("iam").get_role(RoleName=name)["Role"]["Arn"]
            case "Lambda::Function", "Arn":
                return self._function(name)["FunctionArn"]
            case "Lambda::Version", "Version":
                return name.rpartition(" ")[2]
            case "Logs::LogGroup", "Arn":
                return self._log_group(name)["arn"]
            case "S3::Bucket", "Arn":
                return f"arn:aws:s3:::{name}"
            case "SNS::Topic", "TopicName":
                return name.rpartition(":")[2]
        raise NotImplementedError(f"{attribute} of {kind}")

    # ---- readers

    @cached_property
    def _readers(self) -> dict[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]]:
        readers = {
            "AutoScaling::AutoScalingGroup": self._group,
            "CloudWatch::Dashboard": self._dashboard,
            "DynamoDB::Table": self._table_properties,
            "ECS::Cluster": self._cluster,
            "ECS::Service": self._service,
            "ECS::TaskDefinition": self._task_definition,
            "EC2::InternetGateway": self._internet_gateway,
            "EC2::LaunchTemplate": self._launch_template,
            "EC2::Route": self._route,
            "EC2::RouteTable": self._route_table_properties,
            "EC2::SecurityGroup": self._security_group,
            "EC2::SecurityGroupIngress": self._ingress,
            "EC2::Subnet": self._subnet,
            "EC2::SubnetRouteTableAssociation": self._association,
            "EC2::VPC": self._vpc,
            "EC2::VPCEndpoint": self._endpoint,
            "EC2::VPCGatewayAttachment": self._attachment,
            "ElasticLoadBalancingV2::Listener": self._listener,
            "ElasticLoadBalancingV2::ListenerRule": self._rule,
            "ElasticLoadBalancingV2::LoadBalancer": self._balancer_properties,
            "ElasticLoadBalancingV2::TargetGroup": self._target_group,
            "Events::Rule": self._event_rule,
            "IAM::InstanceProfile": self._profile_properties,
            "IAM::Policy": self._role_policy,
            "IAM::Role": self._role,
            "Lambda::Alias": self._alias,
            "Lambda::EventSourceMapping": self._mapping,
            "Lambda::Function": self._function_properties,
            "Lambda::Permission": self._permission,
            "Lambda::Version": self._version,
            "Logs::LogGroup": self._log_group_properties,
            "Route53::RecordSet": self._record,
            "S3::Bucket": self._bucket,
            "SNS::Topic": self._topic,
        }
        return {f"AWS::{kind}": reader for kind, reader in readers.items()}

    @property
    def kinds(self) -> set[str]:
        """Types that can be read."""
        return set(self._readers)

    def _of(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._client(service)
        return self._clients[service]

    # ---- network

    def _vpc(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        ec2 = self._of("ec2")
        (vpc,) = ec2.describe_vpcs(VpcIds=[name])["Vpcs"]
        found = _named(vpc, "CidrBlock") | _tagged(vpc["Tags"])
        for attribute in ("EnableDnsSupport", "EnableDnsHostnames"):
            asked = attribute[0].lower() + attribute[1:]
            found[attribute] = ec2.describe_vpc_attribute(VpcId=name, Attribute=asked)[attribute][
                "Value"
            ]
        return found

    def _subnet(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        (subnet,) = self._of("ec2").describe_subnets(SubnetIds=[name])["Subnets"]
        return _named(
            subnet, "VpcId", "AvailabilityZone", "CidrBlock", "MapPublicIpOnLaunch"
        ) | _tagged(subnet["Tags"])

    def _route_table(self, name: str) -> Mapping[str, Any]:
        (table,) = self._of("ec2").describe_route_tables(RouteTableIds=[name])["RouteTables"]
        found: Mapping[str, Any] = table
        return found

    def _route_table_properties(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        table = self._route_table(name)
        return _named(table, "VpcId") | _tagged(table["Tags"])

    def _association(self, _: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        for association in self._route_table(wanted["RouteTableId"])["Associations"]:
            if association.get("SubnetId") == wanted["SubnetId"]:
                return _named(association, "RouteTableId", "SubnetId")
        return {}

    def _route(self, _: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        for route in self._route_table(wanted["RouteTableId"])["Routes"]:
            if route.get("DestinationCidrBlock") == wanted["DestinationCidrBlock"]:
                return _named(route, "DestinationCidrBlock", "GatewayId") | _named(
                    wanted, "RouteTableId"
                )
        return {}

    def _internet_gateway(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        (gateway,) = self._of("ec2").describe_internet_gateways(InternetGatewayIds=[name])[
            "InternetGateways"
        ]
        return _tagged(gateway["Tags"])

    def _attachment(self, _: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        gateways = [wanted["InternetGatewayId"]]
        (gateway,) = self._of("ec2").describe_internet_gateways(InternetGatewayIds=gateways)[
            "InternetGateways"
        ]
        found = {"InternetGatewayId": gateway["InternetGatewayId"]}
        return (
            found | {"VpcId": gateway["Attachments"][0]["VpcId"]} if gateway["Attachments"] else {}
        )

    def _endpoint(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        (endpoint,) = self._of("ec2").describe_vpc_endpoints(VpcEndpointIds=[name])["VpcEndpoints"]
        if endpoint["State"] == "deleted":
            return {}
        return (
            _named(
                endpoint, "VpcEndpointType", "ServiceName", "VpcId", "RouteTableIds", "SubnetIds"
            )
            | _named(endpoint, "PrivateDnsEnabled")
            | {"SecurityGroupIds": [group["GroupId"] for group in endpoint.get("Groups", ())]}
            | {"PolicyDocument": _policy(endpoint["PolicyDocument"])}
            | _tagged(endpoint["Tags"])
        )

    def _groups_rules(self, name: str) -> tuple[Mapping[str, Any], list[Any], list[Any]]:
        """A security group, and what comes in and goes out."""
        (group,) = self._of("ec2").describe_security_groups(GroupIds=[name])["SecurityGroups"]
        coming = _rules(group["IpPermissions"], "Source")
        going = _rules(group["IpPermissionsEgress"], "Destination")
        return group, coming, [] if going == _ALL_OUT else going

    def _security_group(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        group, coming, going = self._groups_rules(name)
        # The others are resources of their own.
        ports = {str(rule["FromPort"]) for rule in wanted.get("SecurityGroupIngress", ())}
        own = [rule for rule in coming if str(rule.get("FromPort")) in ports]
        return (
            {"GroupDescription": group["Description"], "VpcId": group["VpcId"]}
            | {"SecurityGroupIngress": own, "SecurityGroupEgress": going}
            | _tagged(group["Tags"])
        )

    def _ingress(self, _: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        _group, coming, _going = self._groups_rules(wanted["GroupId"])
        from_port = str(wanted["FromPort"])
        for rule in coming:
            if str(rule.get("FromPort")) == from_port:
                return {**rule, "GroupId": wanted["GroupId"]}
        return {}

    # ---- tasks

    def _cluster(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        found = self._of("ecs").describe_clusters(clusters=[name], include=["TAGS"])["clusters"]
        cluster = _first([each for each in found if each["status"] == "ACTIVE"])
        tags = {tag["key"]: tag["value"] for tag in cluster.get("tags", ())}
        return {"ClusterName": cluster["clusterName"]} | _tagged(tags)

    def _task_definition(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        about = self._of("ecs").describe_task_definition(taskDefinition=name, include=["TAGS"])
        if about["taskDefinition"]["status"] != "ACTIVE":
            return {}
        tags = {tag["key"]: tag["value"] for tag in about.get("tags", ())}
        return {**_pascal(about["taskDefinition"]), **_tagged(tags)}

    def _service(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        service = _first(
            self._of("ecs").describe_services(cluster=wanted["Cluster"], services=[name])[
                "services"
            ]
        )
        if service["status"] != "ACTIVE":
            return {}
        tags = {tag["key"]: tag["value"] for tag in service.get("tags", ())}
        return {**_pascal(service), "Cluster": wanted["Cluster"]} | _tagged(tags)

    # ---- tables and topic

    def _table(self, name: str) -> Mapping[str, Any]:
        table: Mapping[str, Any] = self._of("dynamodb").describe_table(TableName=name)["Table"]
        return table

    def _table_properties(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        dynamodb, table = self._of("dynamodb"), self._table(name)
        expiry = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
        backups = dynamodb.describe_continuous_backups(TableName=name)[
            "ContinuousBackupsDescription"
        ]
        recovery = backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"]
        return (
            _named(table, "TableName", "AttributeDefinitions", "KeySchema", "StreamSpecification")
            | _named(table, "DeletionProtectionEnabled")
            | {"BillingMode": table.get("BillingModeSummary", {}).get("BillingMode")}
            | {
                "SSESpecification": {
                    "SSEEnabled": table.get("SSEDescription", {}).get("Status") == "ENABLED"
                }
            }
            | {
                "PointInTimeRecoverySpecification": {
                    "PointInTimeRecoveryEnabled": recovery == "ENABLED"
                }
            }
            | {
                "TimeToLiveSpecification": {
                    "AttributeName": expiry.get("AttributeName"),
                    "Enabled": expiry["TimeToLiveStatus"] == "ENABLED",
                }
            }
            | _tagged(dynamodb.list_tags_of_resource(ResourceArn=table["TableArn"])["Tags"])
        )

    def _topic(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        sns = self._of("sns")
        attributes = sns.get_topic_attributes(TopicArn=name)["Attributes"]
        return (
            {"TopicName": name.rpartition(":")[2]}
            | _named(attributes, "KmsMasterKeyId")
            | _tagged(sns.list_tags_for_resource(ResourceArn=name)["Tags"])
        )

    # ---- Lambdas and what runs them

    def _function(self, name: str) -> Mapping[str, Any]:
        function: Mapping[str, Any] = self._of("lambda").get_function(FunctionName=name)[
            "Configuration"
        ]
        return function

    def _function_properties(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        about = self._of("lambda").get_function(FunctionName=name)
        function = about["Configuration"]
        code = wanted["Code"]
        content = (
            self._of("s3").get_object(Bucket=code["S3Bucket"], Key=code["S3Key"])["Body"].read()
        )
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        return (
            _named(
                function, "Description", "Runtime", "Architectures", "Handler", "Role", "Timeout"
            )
            | _named(function, "MemorySize", "Environment", "LoggingConfig")
            | _named(about.get("Concurrency", {}), "ReservedConcurrentExecutions")
            | ({"Code": code} if function["CodeSha256"] == digest else {})
            | _tagged(about.get("Tags", {}))
        )

    def _mapping(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        mapping = self._of("lambda").get_event_source_mapping(UUID=name)
        return {**mapping, "FunctionName": mapping["FunctionArn"]}

    def _version(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        function = self._of("lambda").get_function(
            FunctionName=wanted["FunctionName"], Qualifier=name.rpartition(" ")[2]
        )
        return _named(function["Configuration"], "FunctionName", "Description")

    def _alias(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        function, alias = wanted["FunctionName"], name.rpartition(":")[2]
        found = self._of("lambda").get_alias(FunctionName=function, Name=alias)
        return {**found, "FunctionName": function}

    def _permission(self, _: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        policy = json.loads(
            self._of("lambda").get_policy(FunctionName=wanted["FunctionName"])["Policy"]
        )
        for statement in policy["Statement"]:
            source = statement["Condition"]["ArnLike"]["AWS:SourceArn"]
            if source == wanted["SourceArn"] and statement["Effect"] == "Allow":
                return {
                    "FunctionName": statement["Resource"].rpartition(":")[2],
                    "Action": statement["Action"],
                    "Principal": statement["Principal"]["Service"],
                    "SourceArn": source,
                }
        return {}

    def _event_rule(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        events = self._of("events")
        rule = events.describe_rule(Name=name)
        return (
            _named(rule, "Description", "ScheduleExpression", "State")
            | {"EventPattern": json.loads(rule.get("EventPattern") or "{}")}
            | {"Targets": events.list_targets_by_rule(Rule=name)["Targets"]}
            | _tagged(events.list_tags_for_resource(ResourceARN=rule["Arn"])["Tags"])
        )

    # ---- logs, failures, roles

    def _log_group(self, name: str) -> Mapping[str, Any]:
        groups = self._of("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        return _first([group for group in groups if group["logGroupName"] == name])

    def _log_group_properties(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        group = self._log_group(name)
        tags = self._of("logs").list_tags_log_group(logGroupName=name)["tags"]
        found = {
            "LogGroupName": group["logGroupName"],
            "RetentionInDays": group.get("retentionInDays"),
        }
        if "kmsKeyId" in group:
            found["KmsKeyId"] = group["kmsKeyId"]
        return found | _tagged(tags)

    def _bucket(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        s3 = self._of("s3")
        s3.head_bucket(Bucket=name)
        found: dict[str, Any] = {}
        with suppress(ClientError):
            rules = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"][
                "Rules"
            ]
            found["BucketEncryption"] = {
                "ServerSideEncryptionConfiguration": [
                    {"ServerSideEncryptionByDefault": rule["ApplyServerSideEncryptionByDefault"]}
                    for rule in rules
                ]
            }
        with suppress(ClientError):
            found["OwnershipControls"] = s3.get_bucket_ownership_controls(Bucket=name)[
                "OwnershipControls"
            ]
        with suppress(ClientError):
            found |= _named(
                s3.get_public_access_block(Bucket=name), "PublicAccessBlockConfiguration"
            )
        with suppress(ClientError):
            rules = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
            found["LifecycleConfiguration"] = {
                "Rules": [
                    {**rule, "Id": rule["ID"], "ExpirationInDays": rule["Expiration"]["Days"]}
                    for rule in rules
                ]
            }
        return found | _tagged(s3.get_bucket_tagging(Bucket=name)["TagSet"])

    def _role(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        iam = self._of("iam")
        role = iam.get_role(RoleName=name)["Role"]
        # Others are resources of their own.
        named = {each["PolicyName"] for each in wanted.get("Policies", ())}
        policies = [
            iam.get_role_policy(RoleName=name, PolicyName=policy)
            for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]
            if policy in named or not named
        ]
        return (
            _named(role, "AssumeRolePolicyDocument")
            | {
                "Policies": [
                    {
                        "PolicyName": each["PolicyName"],
                        "PolicyDocument": _policy(each["PolicyDocument"]),
                    }
                    for each in policies
                ]
            }
            | _tagged(role["Tags"])
        )

    def _role_policy(self, _: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """One that stands in several roles; as the last of them has it."""
        found: dict[str, Any] = {"Roles": []}
        for role in wanted["Roles"]:
            policy = self._of("iam").get_role_policy(RoleName=role, PolicyName=wanted["PolicyName"])
            found["PolicyName"] = policy["PolicyName"]
            found["PolicyDocument"] = _policy(policy["PolicyDocument"])
            found["Roles"].append(role)
        return found

    def _profile(self, name: str) -> Mapping[str, Any]:
        profile: Mapping[str, Any] = self._of("iam").get_instance_profile(InstanceProfileName=name)[
            "InstanceProfile"
        ]
        return profile

    def _profile_properties(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"Roles": [role["RoleName"] for role in self._profile(name)["Roles"]]}

    # ---- fleet and load balancer

    def _launch_template(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        ec2 = self._of("ec2")
        # It answers with nothing where AWS answers with an error.
        template = _first(
            ec2.describe_launch_templates(LaunchTemplateIds=[name])["LaunchTemplates"]
        )
        versions = ec2.describe_launch_template_versions(
            LaunchTemplateId=name, Versions=["$Latest"]
        )
        (version,) = versions["LaunchTemplateVersions"]
        tags = [{"ResourceType": "launch-template", "Tags": template["Tags"]}]
        return _named(version, "LaunchTemplateData") | {"TagSpecifications": tags}

    def _group(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        autoscaling = self._of("autoscaling")
        groups = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
        group = _first(groups["AutoScalingGroups"])
        hooks = autoscaling.describe_lifecycle_hooks(AutoScalingGroupName=name)["LifecycleHooks"]
        metrics = group["EnabledMetrics"]
        return (
            _named(
                group,
                "AutoScalingGroupName",
                "LaunchTemplate",
                "MinSize",
                "MaxSize",
                "DesiredCapacity",
            )
            | _named(group, "TargetGroupARNs", "HealthCheckType", "HealthCheckGracePeriod")
            | _named(group, "DefaultInstanceWarmup", "TerminationPolicies")
            | {"VPCZoneIdentifier": group["VPCZoneIdentifier"].split(",")}
            | ({"LifecycleHookSpecificationList": hooks} if hooks else {})
            | (
                {"MetricsCollection": [{"Metrics": [each["Metric"] for each in metrics]}]}
                if metrics
                else {}
            )
            | {"Tags": [_named(tag, "Key", "Value", "PropagateAtLaunch") for tag in group["Tags"]]}
        )

    def _balancer(self, name: str) -> Mapping[str, Any]:
        (balancer,) = self._of("elbv2").describe_load_balancers(LoadBalancerArns=[name])[
            "LoadBalancers"
        ]
        found: Mapping[str, Any] = balancer
        return found

    def _balancer_properties(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        balancer = self._balancer(name)
        attributes = self._of("elbv2").describe_load_balancer_attributes(LoadBalancerArn=name)[
            "Attributes"
        ]
        return (
            _named(balancer, "Type", "Scheme", "SecurityGroups")
            | {"Subnets": [zone["SubnetId"] for zone in balancer["AvailabilityZones"]]}
            | {"LoadBalancerAttributes": attributes}
            | self._balancing_tags(name)
        )

    def _balancing_tags(self, name: str) -> dict[str, Any]:
        """Of a load balancer or something that belongs to one."""
        (described,) = self._of("elbv2").describe_tags(ResourceArns=[name])["TagDescriptions"]
        return _tagged(described["Tags"])

    def _listener(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        (listener,) = self._of("elbv2").describe_listeners(ListenerArns=[name])["Listeners"]
        return {**listener, **self._balancing_tags(name)}

    def _rule(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        rules = self._of("elbv2").describe_rules(ListenerArn=wanted["ListenerArn"])["Rules"]
        for rule in rules:
            if rule["RuleArn"] == name:
                return {**rule, **_named(wanted, "ListenerArn"), **self._balancing_tags(name)}
        return {}

    def _target_group(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        elbv2 = self._of("elbv2")
        (group,) = elbv2.describe_target_groups(TargetGroupArns=[name])["TargetGroups"]
        attributes = elbv2.describe_target_group_attributes(TargetGroupArn=name)["Attributes"]
        return {**group, "TargetGroupAttributes": attributes, **self._balancing_tags(name)}

    def _record(self, _: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        zone, record = wanted["HostedZoneId"], wanted["Name"]
        for found in self._of("route53").list_resource_record_sets(HostedZoneId=zone)[
            "ResourceRecordSets"
        ]:
            if (found["Name"].rstrip("."), found["Type"]) == (record, wanted["Type"]):
                return {**found, "Name": record, "HostedZoneId": zone}
        return {}

    def _dashboard(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        dashboard = self._of("cloudwatch").get_dashboard(DashboardName=name)
        return _named(dashboard, "DashboardName") | {
            "DashboardBody": json.loads(dashboard["DashboardBody"])
        }


def _named(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of `names` that `found` has."""
    return {name: found[name] for name in names if name in found}


def _tagged(tags: Any) -> dict[str, Any]:
    """However the service tells tags."""
    pairs = tags if isinstance(tags, Mapping) else {tag["Key"]: tag["Value"] for tag in tags}
    return {"Tags": {key: value for key, value in pairs.items() if not key.startswith(_RESERVED)}}


def _policy(document: Any) -> Any:
    """The emulator writes some policies as Python would, and not as JSON."""
    return document if isinstance(document, Mapping) else ast.literal_eval(document)


def _rules(permissions: list[Mapping[str, Any]], other: str) -> list[dict[str, Any]]:
    """Rules of a security group, one for each that may connect. `other`: Source or Destination."""
    found: list[dict[str, Any]] = []
    for permission in permissions:
        ports = _named(permission, "IpProtocol", "FromPort", "ToPort")
        for key, value, name in (
            ("IpRanges", "CidrIp", "CidrIp"),
            ("UserIdGroupPairs", "GroupId", f"{other}SecurityGroupId"),
            ("PrefixListIds", "PrefixListId", f"{other}PrefixListId"),
        ):
            found += [
                ports | {name: each[value]} | _named(each, "Description")
                for each in permission[key]
            ]
    return found
