"""Creates the pipeline's resources on an emulator: tables, stream, time to live, topics.

Production uses deploy/.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, HTTPClientError
from botocore.parsers import ResponseParserError

from roomcast.aws.schema import TableSchema, channels_table, presence_table, table_schemas
from roomcast.delivery.shards import topic_arns

__all__ = [
    "DUMMY_CREDENTIALS",
    "EVENTS_QUEUE",
    "TOPIC_NAME",
    "Credentials",
    "EmulatorUnreachable",
    "ProvisionError",
    "Provisioned",
    "client",
    "provision",
]

TOPIC_NAME: Final = "roomcast-topic"
EVENTS_QUEUE: Final = "roomcast-events"
# An emulator starts within a few seconds, even in a container on the same machine.
DEADLINE_S: Final = 10.0
_CONNECT_TIMEOUT_S: Final = 2
_READ_TIMEOUT_S: Final = 10
_ATTEMPTS_MAX: Final = 3
_PROBE_INTERVAL_S: Final = 0.1
# A real table becomes active after some 10 s.
_TABLE_ACTIVE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key pair. Emulators accept any pair. Some read an account number from the key id."""

    access_key_id: str
    secret_access_key: str


DUMMY_CREDENTIALS: Final = Credentials("roomcast", "roomcast")


class ProvisionError(Exception):
    """The resources could not be created. The message is one line."""


class EmulatorUnreachable(ProvisionError):
    """No server, or none like AWS, answers at the address."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """The resources that exist now. `created` names the new tables. `topic_shards`: their number,
    1 = there is only the base topic, `topic_arn`. `presence_table` and its stream are what events
    are made of. `events_queue_url`: where they go; "" = none are wanted.
    """

    topic_arn: str
    stream_arn: str
    tables: tuple[str, ...]
    created: tuple[str, ...]
    topic_shards: int = 1
    presence_table: str = ""
    presence_stream_arn: str = ""
    events_queue_url: str = ""


def provision(
    endpoint_url: str,
    table_prefix: str,
    *,
    region: str,
    credentials: Credentials | None = None,
    topic_name: str = TOPIC_NAME,
    topic_shards: int = 1,
    events: bool = False,
    deadline_s: float = DEADLINE_S,
) -> Provisioned:
    """Creates missing resources. A second call changes nothing. Blocks: call it in a thread.

    `events`: also a queue for events.

    `credentials` None: found as every AWS tool finds them. Waits up to `deadline_s` for the
    emulator to answer. Raises EmulatorUnreachable, or ProvisionError when it answers but refuses.
    """
    try:
        dynamodb = client("dynamodb", endpoint_url, region, credentials)
        sns = client("sns", endpoint_url, region, credentials)
        probe = client("dynamodb", endpoint_url, region, credentials, attempts_max=1)
        existing = _first_answer(probe, endpoint_url, deadline_s)
        schemas = table_schemas(table_prefix)
        created = [
            schema.name
            for schema in schemas
            if schema.name not in existing and _create_table(dynamodb, schema)
        ]
        for schema in schemas:
            _wait_active(dynamodb, schema.name)
            _enable_ttl(dynamodb, schema)
        # For an existing topic, CreateTopic returns its ARN.
        topic_arn = str(sns.create_topic(Name=topic_name)["TopicArn"])
        for shard_arn in topic_arns(topic_arn, topic_shards)[1:]:
            sns.create_topic(Name=shard_arn.rpartition(":")[2])
        table = dynamodb.describe_table(TableName=channels_table(table_prefix))["Table"]
        presence = dynamodb.describe_table(TableName=presence_table(table_prefix))["Table"]
        queue_url = ""
        if events:
            sqs = client("sqs", endpoint_url, region, credentials)
            queue_url = str(sqs.create_queue(QueueName=EVENTS_QUEUE)["QueueUrl"])
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        raise ProvisionError(
            f"the AWS emulator at {endpoint_url} refused: {_one_line(error)}"
        ) from error
    for each in (table, presence) if events else (table,):
        if each.get("StreamSpecification", {}).get("StreamEnabled"):
            continue
        raise ProvisionError(
            f"table {each['TableName']} at {endpoint_url} has no stream: delete it and try again"
        )
    return Provisioned(
        topic_arn,
        str(table["LatestStreamArn"]),
        tuple(schema.name for schema in schemas),
        tuple(created),
        topic_shards,
        str(presence["TableName"]),
        str(presence.get("LatestStreamArn", "")),
        queue_url,
    )


def client(
    service: str,
    endpoint_url: str,
    region: str,
    credentials: Credentials | None,
    attempts_max: int = _ATTEMPTS_MAX,
) -> Any:
    """A boto3 client of an emulator: no proxy, short time-outs, few attempts."""
    return _session().client(
        service,
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=credentials and credentials.access_key_id,
        aws_secret_access_key=credentials and credentials.secret_access_key,
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": attempts_max},
            proxies={},
        ),
    )


@cache
def _session() -> Any:
    """One session for all clients: it caches the services' models, which take some 100 ms
    to load.
    """
    return boto3.session.Session()


def _first_answer(dynamodb: Any, endpoint_url: str, deadline_s: float) -> set[str]:
    """The names of all tables, once the emulator answers."""
    give_up_s = time.monotonic() + deadline_s
    while True:
        try:
            pages = dynamodb.get_paginator("list_tables").paginate()
            return {str(name) for page in pages for name in page["TableNames"]}
        except (HTTPClientError, EndpointConnectionError) as error:
            if time.monotonic() > give_up_s:
                raise EmulatorUnreachable(f"no AWS emulator answers at {endpoint_url}") from error
        except (ClientError, ResponseParserError, KeyError) as error:
            # An emulator may answer oddly while it starts. Another kind of server always does.
            if time.monotonic() > give_up_s:
                raise EmulatorUnreachable(
                    f"what answers at {endpoint_url} is not an AWS emulator: {_one_line(error)}"
                ) from error
        time.sleep(_PROBE_INTERVAL_S)


def _create_table(dynamodb: Any, schema: TableSchema) -> bool:
    try:
        dynamodb.create_table(**schema.create)
    except dynamodb.exceptions.ResourceInUseException:
        return False  # another process was quicker
    return True


def _wait_active(dynamodb: Any, name: str) -> None:
    give_up_s = time.monotonic() + _TABLE_ACTIVE_S
    while dynamodb.describe_table(TableName=name)["Table"]["TableStatus"] != "ACTIVE":
        if time.monotonic() > give_up_s:
            raise ProvisionError(
                f"table {name} did not become active within {_TABLE_ACTIVE_S:.0f} s"
            )
        time.sleep(_PROBE_INTERVAL_S)


def _enable_ttl(dynamodb: Any, schema: TableSchema) -> None:
    if schema.ttl_attribute is None:
        return
    state = dynamodb.describe_time_to_live(TableName=schema.name)["TimeToLiveDescription"]
    if state.get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
        return
    dynamodb.update_time_to_live(
        TableName=schema.name,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": schema.ttl_attribute},
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
