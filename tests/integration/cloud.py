"""The embedded AWS as an account that a template is deployed into:
`python -m tests.integration.cloud`.

It is service/roomcast/dev/emulator.py, and takes its options, with two differences.
What moto's CloudFormation does otherwise than AWS documents is put right,
as far as deploy/template.yaml needs it. And roles count: a call with the credentials of a role
is refused unless the role's policies allow it, and for a role of nodes also the policy of the
endpoint that the call would go through. Who has no role, such as a test, may do everything.
"""

from __future__ import annotations

import io
import ipaddress
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from moto.awslambda.models import LambdaBackend, LambdaVersion, lambda_backends
from moto.cloudformation import models, parsing, responses
from moto.cloudformation.utils import yaml_tag_constructor
from moto.core.common_models import CloudFormationModel
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models import ec2_backends
from moto.ec2.models.route_tables import RouteTable
from moto.ec2.models.vpcs import VPCEndPoint
from moto.elbv2.models import FakeTargetGroup, elbv2_backends
from moto.iam.models import iam_backends
from moto.logs.models import LogGroup
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.sqs.models import sqs_backends
from moto.sts.models import sts_backends

from roomcast.dev import emulator
from tests.deploy.calls import asked, calls
from tests.deploy.iam import Call, allowed

_PARTITION: Final = "aws"
_ZONES: Final = "abc"


# ---- CloudFormation as it is documented


def _repair() -> None:
    # What is not supported is told by the test, once.
    warnings.filterwarnings("ignore", "Tried to parse", UserWarning)
    logging.getLogger("moto").setLevel(logging.ERROR)
    _repair_functions()
    _repair_deletions()
    # GetAtt of a log group's Arn ends in ":*", which is what the policies that use it count on.
    attribute = LogGroup.get_cfn_attribute

    def with_streams(self: LogGroup, attribute_name: str) -> Any:
        found = attribute(self, attribute_name)
        return f"{found}:*" if attribute_name == "Arn" else found

    LogGroup.get_cfn_attribute = with_streams  # type: ignore[method-assign]  # this is what it is for
    FakeTargetGroup.get_cfn_attribute = _of_target_group  # type: ignore[attr-defined]  # as above
    _repair_versions()
    # moto would start a container for each item that is written. Tests run the function.
    LambdaBackend.send_dynamodb_items = lambda *_args: ""  # type: ignore[method-assign]  # as above


def _of_target_group(self: FakeTargetGroup, name: str) -> str:
    assert name == "TargetGroupFullName"
    return str(self.arn).rpartition(":")[2]


def _repair_functions() -> None:
    """Fn::Cidr, Fn::GetAZs of the stack's region, AWS::NoValue in lists, and !Condition in YAML."""
    clean = parsing.clean_json

    def cleaned(resource_json: Any, resources_map: Any) -> Any:
        part, resources = resource_json, resources_map
        if isinstance(part, list):
            return [
                value for each in part if (value := parsing.clean_json(each, resources)) is not None
            ]
        if isinstance(part, dict) and "Fn::Cidr" in part:
            block, count, bits = parsing.clean_json(part["Fn::Cidr"], resources)
            subnets = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
            return [str(next(subnets)) for _ in range(int(count))]
        if isinstance(part, dict) and "Fn::GetAZs" in part:
            region = parsing.clean_json(part["Fn::GetAZs"], resources) or resources["AWS::Region"]
            return [f"{region}{zone}" for zone in _ZONES]
        return clean(part, resources)

    parsing.clean_json = cleaned
    construct = yaml_tag_constructor

    def constructed(loader: Any, tag: Any, node: Any) -> Any:
        made = construct(loader, tag, node)
        return {"Condition": made["Fn::Condition"]} if tag == "!Condition" else made

    # Each has the name for itself.
    users: tuple[Any, ...] = (models, responses)
    for user in users:
        user.yaml_tag_constructor = constructed


class _Alias(CloudFormationModel):  # moto finds it among the subclasses
    """AWS::Lambda::Alias, which moto has and CloudFormation does not make there."""

    # By which moto tells what service it is of.
    __module__ = "moto.awslambda.models"

    def __init__(self, arn: str) -> None:
        self.arn = arn

    @property
    def physical_resource_id(self) -> str:
        return self.arn

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::Lambda::Alias"

    @classmethod
    def create_from_cloudformation_json(
        cls,
        resource_name: str,  # noqa: ARG003  # as moto calls it
        cloudformation_json: Any,
        account_id: str,
        region_name: str,
        **_kwargs: Any,
    ) -> _Alias:
        about = cloudformation_json["Properties"]
        made = lambda_backends[account_id][region_name].create_alias(
            about["Name"], about["FunctionName"], about["FunctionVersion"], "", ""
        )
        return cls(made.arn)


def _repair_versions() -> None:
    """Versions of functions have no names there, and do not tell their numbers;
    and a mapping of an alias becomes one of its version.
    """
    create = LambdaBackend.create_event_source_mapping

    def of_an_alias(self: LambdaBackend, spec: Any) -> Any:
        made = create(self, spec)
        made.function_arn = spec["FunctionName"]
        return made

    LambdaBackend.create_event_source_mapping = of_an_alias  # type: ignore[method-assign]  # as above

    def name(self: LambdaVersion) -> str:
        return f"version {self.version}"

    def attribute(self: LambdaVersion, _name: str) -> str:
        return str(self.version)

    model: Any = LambdaVersion
    model.physical_resource_id = property(name)
    model.has_cfn_attr = classmethod(lambda _cls, attr: attr == "Version")
    model.get_cfn_attribute = attribute


def _repair_deletions() -> None:
    """Of what moto makes in a stack and does not remove with it;
    a VPC that still has them cannot go either.
    """

    def delete_route_table(self: RouteTable, account: str, region: str) -> None:
        backend = ec2_backends[account][region]
        for endpoint in backend.vpc_end_points.values():
            if endpoint.state == "available" and self.id in (endpoint.route_table_ids or ()):
                # It is tried again when the endpoint is gone.
                raise DependencyViolationError(f"{endpoint.id} uses {self.id}")
        backend.delete_route_table(self.id)

    def delete_endpoint(self: VPCEndPoint, account: str, region: str) -> None:
        ec2_backends[account][region].delete_vpc_endpoints([self.id])

    def delete_target_group(self: FakeTargetGroup, account: str, region: str) -> None:
        elbv2_backends[account][region].delete_target_group(self.arn)

    deletions: list[tuple[type, Callable[..., None]]] = [
        (RouteTable, delete_route_table),
        (VPCEndPoint, delete_endpoint),
        (FakeTargetGroup, delete_target_group),
    ]
    for model, delete in deletions:
        model.delete = delete  # type: ignore[attr-defined]  # as above
    delete_all = parsing.ResourceMap.delete

    def keeping(self: parsing.ResourceMap) -> None:
        """It knows Retain only. Here stacks are deleted and never rolled back,
        so that the two are the same.
        """
        for each in self._resource_json_map.values():
            if each.get("DeletionPolicy") == "RetainExceptOnCreate":
                each["DeletionPolicy"] = "Retain"
        delete_all(self)

    parsing.ResourceMap.delete = keeping  # type: ignore[method-assign]  # as above


# ---- roles that count

_CREDENTIAL: Final = re.compile(
    r"Credential=(?P<key>[^/]+)/[^/]+/(?P<region>[^/]+)/(?P<service>[^/]+)/"
)
# Whose roles' calls go through the endpoints of the VPC.
_INSIDE: Final = ("ec2.amazonaws.com", "ecs-tasks.amazonaws.com")
_DENIED: Final = "is not authorized to perform"


class _Guarded(DomainDispatcherApplication):
    """Looks at each request first."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        complaint = _refused(environ)
        if complaint is None:
            return super().__call__(environ, start_response)
        sys.stderr.write(f"cloud: {complaint}\n")
        status, kind, body = _refusal(environ, complaint)
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]


def _refused(environ: dict[str, Any]) -> str | None:
    """Why the request is refused; None: it is not."""
    signed = _CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    role = _role_of(signed["key"]) if signed else None
    if signed is None or role is None:
        return None
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    region, service = signed["region"], signed["service"]
    policies = [_document(policy) for policy in role.policies.values()]
    through = None
    trust = json.dumps(_document(role.assume_role_policy_document))
    if any(service in trust for service in _INSIDE):
        through = _endpoint_policies(region, service)
    for call in _calls(service, region, environ, body):
        what = f"{role.name} {_DENIED} {call.action} on {call.resource}"
        if not allowed(policies, call):
            return what
        if through is not None and not allowed(through, call):
            return f"{what} through an endpoint of the VPC"
    return None


def _role_of(access_key: str) -> Any:
    """None: the key is nobody's role."""
    for assumed in sts_backends[DEFAULT_ACCOUNT_ID][_PARTITION].assumed_roles:
        if assumed.access_key_id == access_key:
            return iam_backends[DEFAULT_ACCOUNT_ID][_PARTITION].get_role_by_arn(assumed.role_arn)
    return None


def _endpoint_policies(region: str, service: str) -> list[Mapping[str, Any]]:
    return [
        _document(endpoint.policy_document)
        for endpoint in ec2_backends[DEFAULT_ACCOUNT_ID][region].vpc_end_points.values()
        if endpoint.service_name == f"com.amazonaws.{region}.{service}"
        and endpoint.state == "available"
    ]


def _document(policy: Any) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads(policy) if isinstance(policy, str) else policy
    return document


def _calls(service: str, region: str, environ: Mapping[str, Any], body: bytes) -> Iterator[Call]:
    """What IAM has to allow for a request."""
    operation, parameters = asked(environ.get("HTTP_X_AMZ_TARGET", ""), body)

    def tags_of(queue: str) -> Mapping[str, str]:
        found = sqs_backends[DEFAULT_ACCOUNT_ID][region].queues.get(queue)
        return {} if found is None else found.tags

    return calls(
        service,
        region,
        operation,
        parameters,
        tags_of,
        method=environ["REQUEST_METHOD"],
        path=environ["PATH_INFO"],
    )


def _refusal(environ: Mapping[str, Any], complaint: str) -> tuple[str, str, bytes]:
    """Status, content type and body, as the service's protocol has them."""
    if "HTTP_X_AMZ_TARGET" in environ:
        told = {"__type": "com.amazon.coral.service#AccessDeniedException", "message": complaint}
        return "400 Bad Request", "application/x-amz-json-1.0", json.dumps(told).encode()
    error = (
        f"<Error><Type>Sender</Type><Code>AccessDenied</Code><Message>{complaint}</Message></Error>"
    )
    if not environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return "403 Forbidden", "text/xml", error.encode()
    return "403 Forbidden", "text/xml", f"<ErrorResponse>{error}</ErrorResponse>".encode()


def main(arguments: Iterable[str] | None = None) -> int:
    """As the emulator's."""
    _repair()
    served: Any = emulator
    served.DomainDispatcherApplication = _Guarded
    return emulator.main(None if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(main())
