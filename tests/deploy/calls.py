"""What IAM is asked for a request to AWS: the action, the resource and the condition keys
of each of its calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from tests.deploy.iam import Call

__all__ = ["ACCOUNT", "asked", "calls"]

# The emulator's.
ACCOUNT: Final = "123456789012"
_PARTITION: Final = "aws"
# Operations whose permission has another name; those of one item have theirs.
_PERMISSIONS: Final = {
    "sns:PublishBatch": "sns:Publish",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
}
_TRANSACTED: Final = {"Put": "PutItem", "Delete": "DeleteItem", "Update": "UpdateItem"}
_S3_OPERATIONS: Final = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject"}


def asked(target: str, body: bytes) -> tuple[str, dict[str, Any]]:
    """Operation and parameters, in the JSON protocol (`target`:
    its header) or in the older one of forms.
    """
    if target:
        return target.rpartition(".")[2], json.loads(body or b"{}")
    form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
    return form.get("Action", ""), form


def calls(
    service: str,
    region: str,
    operation: str,
    parameters: Mapping[str, Any],
    tags_of: Callable[[str], Mapping[str, str]],
    *,
    method: str = "",
    path: str = "",
) -> Iterator[Call]:
    """One for each resource that a request is about.

    `service`: as the signature names it. `tags_of` gives the tags of a queue,
    none of one that is not there. `method` and `path`: of S3, whose operations are told by them.
    """
    context = {"aws:principalaccount": ACCOUNT}
    match service:
        case "dynamodb":
            for name, table in _of_tables(operation, parameters):
                resource = table if ":" in table else _arn(service, region, f"table/{table}")
                yield Call(f"dynamodb:{name}", resource, context)
        case "sqs":
            yield from _of_queues(operation, parameters, region, context, tags_of)
        case "sns":
            keys = {"sns:protocol": "Protocol", "sns:endpoint": "Endpoint"}
            context |= {key: parameters[name] for key, name in keys.items() if name in parameters}
            yield _call("sns", operation, parameters.get("TopicArn", "*"), context)
        case "monitoring":
            yield _call("cloudwatch", operation, "*", context)
        case "autoscaling":
            group = (
                f"autoScalingGroup:uuid:autoScalingGroupName/{parameters['AutoScalingGroupName']}"
            )
            yield _call(service, operation, _arn(service, region, group), context)
        case "secretsmanager":
            yield _call(service, operation, parameters["SecretId"], context)
        case "s3":
            resource = f"arn:{_PARTITION}:s3:::{path.lstrip('/')}"
            yield _call(service, _S3_OPERATIONS[method], resource, context)
        case _:
            yield _call(service, operation, "*", context)


def _of_tables(operation: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Operation, and name or ARN of table or stream."""
    if operation == "TransactWriteItems":
        for item in parameters["TransactItems"]:
            ((kind, one),) = item.items()
            yield _TRANSACTED[kind], one["TableName"]
    elif operation == "BatchWriteItem":
        for name in parameters["RequestItems"]:
            yield operation, name
    elif "ShardIterator" in parameters:
        # It begins with the stream's ARN.
        yield operation, parameters["ShardIterator"].partition("|")[0]
    else:
        yield operation, parameters.get("StreamArn") or parameters["TableName"]


def _of_queues(
    operation: str,
    parameters: Mapping[str, Any],
    region: str,
    context: Mapping[str, str],
    tags_of: Callable[[str], Mapping[str, str]],
) -> Iterator[Call]:
    name = parameters.get("QueueName") or parameters.get("QueueUrl", "").rpartition("/")[2]
    tags = {
        f"aws:requesttag/{key.lower()}": value for key, value in parameters.get("tags", {}).items()
    }
    tags |= {f"aws:resourcetag/{key.lower()}": value for key, value in tags_of(name).items()}
    resource = _arn("sqs", region, name) if name else "*"
    yield _call("sqs", operation, resource, {**context, **tags})
    if operation == "CreateQueue" and "tags" in parameters:
        yield _call("sqs", "TagQueue", resource, {**context, **tags})


def _call(service: str, operation: str, resource: str, context: Mapping[str, str]) -> Call:
    action = f"{service}:{operation}"
    return Call(_PERMISSIONS.get(action, action), resource, context)


def _arn(service: str, region: str, resource: str) -> str:
    return f"arn:{_PARTITION}:{service}:{region}:{ACCOUNT}:{resource}"
