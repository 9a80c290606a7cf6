"""Checks options against each other, as pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from roomcast.config.channel_options import NAMESPACES, WITHOUT_NAMESPACE
from roomcast.config.consumer_options import CONSUMERS, QUEUES_MAX, ConsumerConfig
from roomcast.config.issuers import IssuersRefused, endpoints
from roomcast.config.messages import quoted
from roomcast.config.options import ClientConfig, Config, ServerConfig, TokenConfig
from roomcast.config.proxy_checks import proxy_conflicts
from roomcast.patterns import PatternRefused, pattern
from roomcast.wire.channels import ChannelOptions
from roomcast.wire.event_kinds import PUBLISHED

__all__ = ["TOPIC_NAME_CHARS_MAX", "conflicts"]

# The limit of SNS is 256, and the names of topic shards are up to nine longer.
TOPIC_NAME_CHARS_MAX: Final = 247


def conflicts(config: Config, places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Keys and messages for options that are valid alone but conflict."""
    client, node, aws = config.client, config.node, config.aws
    if client.pong_timeout_s >= client.ping_interval_s:
        yield (
            "client.pong_timeout_s",
            (
                f"must be below client.ping_interval_s ({client.ping_interval_s:g}); found "
                f"{client.pong_timeout_s:g}"
            ),
        )
    if client.write_delay_ms >= client.pong_timeout_s * 1000:
        # Pings would come so late that no answer is in time.
        yield (
            "client.write_delay",
            f"must be below client.pong_timeout_s ({client.pong_timeout_s:g} s)",
        )
    if client.queue_total_max_size < client.queue_max_size:
        yield (
            "client.queue_total_max_size",
            f"must be at least client.queue_max_size ({client.queue_max_size})",
        )
    for network in client.trusted_proxies:
        if not _is_network(network):
            yield (
                "client.trusted_proxies",
                f"must be networks such as 10.0.0.0/16; found {quoted(network)}",
            )
    namespace = client.user_personal_channel_namespace
    if namespace and namespace not in config.channel.namespaces:
        yield (
            "client.user_personal_channel_namespace",
            f"must be the name of one of [[{NAMESPACES}]]; found {quoted(namespace)}",
        )
    elif client.subscribe_to_user_personal_channel and not client.insecure:
        yield from _personal_channel_conflicts(config, namespace, places)
    if client.user_personal_single_connection and not client.subscribe_to_user_personal_channel:
        yield (
            "client.user_personal_single_connection",
            "needs client.subscribe_to_user_personal_channel too",
        )
    yield from _token_conflicts(client)
    yield from _server_conflicts(config.server)
    yield from proxy_conflicts(config, places)
    if node.heartbeat_s >= node.lease_ttl_s / 2:
        yield (
            "node.heartbeat_s",
            (
                f"must be below half of node.lease_ttl_s ({node.lease_ttl_s:g}); found "
                f"{node.heartbeat_s:g}"
            ),
        )
    for name in ("launch_hook", "terminate_hook"):
        if getattr(aws, name) and not aws.autoscaling_group:
            yield f"aws.{name}", "needs aws.autoscaling_group"
        elif getattr(aws, name) and not node.lifecycle_poll_s:
            # Nobody would complete the hook, and the group would give up each new instance.
            yield f"aws.{name}", "needs a node.lifecycle_poll_s above 0"
    if aws.topic_arn and aws.region and aws.topic_arn.split(":")[3] != aws.region:
        yield (
            "aws.topic_arn",
            f"must be in aws.region ({aws.region}); found {quoted(aws.topic_arn)}",
        )
    if aws.topic_shards > 1 and len(aws.topic_arn.rpartition(":")[2]) > TOPIC_NAME_CHARS_MAX:
        yield (
            "aws.topic_shards",
            (
                f"needs a topic whose name has at most {TOPIC_NAME_CHARS_MAX} characters: those of "
                "the topic shards are longer"
            ),
        )
    yield from _consumer_conflicts(config.consumers)
    yield from _channel_conflicts(config.channel.without_namespace, WITHOUT_NAMESPACE)
    for name, options in config.channel.namespaces.items():
        yield from _channel_conflicts(options, places.get(name, NAMESPACES))


def _token_conflicts(client: ClientConfig) -> Iterator[tuple[str, str]]:
    own = client.subscription_token
    if own.enabled and not own.has_key:
        yield "client.subscription_token.enabled", "needs a key in the same table"
    if own.has_key and not own.enabled:
        # Its keys would hold for nothing, and those of [client.token] for what they are meant for.
        yield "client.subscription_token.enabled", "must be true for the keys of this table to hold"
    for table, token in (("client.token", client.token), ("client.subscription_token", own)):
        yield from _one_token_conflicts(table, token)


def _one_token_conflicts(table: str, token: TokenConfig) -> Iterator[tuple[str, str]]:
    if token.hmac_previous_secret_key_valid_until and not token.hmac_previous_secret_key:
        yield (
            f"{table}.hmac_previous_secret_key_valid_until",
            f"needs {table}.hmac_previous_secret_key too",
        )
    refused = False
    for name in ("audience", "issuer"):
        expression = getattr(token, f"{name}_regex")
        if expression and getattr(token, name):
            yield f"{table}.{name}_regex", f"cannot be together with {table}.{name}"
        if why := _no_pattern(expression):
            refused = True
            yield f"{table}.{name}_regex", why
    if not refused:
        try:
            endpoints(token)
        except IssuersRefused as error:
            yield f"{table}.jwks_public_endpoint", str(error)


def _no_pattern(expression: str) -> str:
    """Why `expression` is no regular expression. "": it is one, or there is none."""
    try:
        if expression:
            pattern(expression)
    except PatternRefused as error:
        return f"must be a regular expression of RE2; found {quoted(expression)}: {error}"
    return ""


def _server_conflicts(server: ServerConfig) -> Iterator[tuple[str, str]]:
    for table, tls in (("tls", server.tls), ("internal_tls", server.internal_tls)):
        if tls.cert_file and not tls.key_file:
            yield f"server.{table}.cert_file", f"needs server.{table}.key_file too"
        if tls.key_file and not tls.cert_file:
            yield f"server.{table}.key_file", f"needs server.{table}.cert_file too"
    if not server.internal_port:
        # What is only meant for inside would be where the clients are.
        if server.internal_address:
            yield "server.internal_address", "needs server.internal_port too"
        if server.internal_tls.is_on:
            yield "server.internal_tls.cert_file", "needs server.internal_port too"
        if server.tls_external:
            yield "server.tls_external", "needs server.internal_port too"
    if server.tls_external and not server.tls.is_on:
        yield "server.tls_external", "needs server.tls.cert_file and server.tls.key_file"


def _consumer_conflicts(consumers: Sequence[ConsumerConfig]) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    queues: set[str] = set()
    for index, consumer in enumerate(consumers):
        place, sqs = f"{CONSUMERS}[{index}]", consumer.aws_sqs
        if not consumer.name:
            yield place, "needs a name"
        elif consumer.name in names:
            yield f"{place}.name", f"must differ from the others; found {quoted(consumer.name)}"
        names.add(consumer.name)
        if not consumer.type:
            yield place, 'needs a type: "aws_sqs"'
        if not consumer.enabled:
            continue
        if not sqs.queues:
            yield f"{place}.aws_sqs.queues", "needs at least one URL"
        for queue in sqs.queues:
            if queue in queues:
                # Its messages would be read as the one or the other, by chance.
                yield f"{place}.aws_sqs.queues", f"has a queue twice: {quoted(queue)}"
            queues.add(queue)
        mode = sqs.publication_data_mode
        if mode.enabled and not mode.channels_attribute:
            yield f"{place}.aws_sqs.publication_data_mode.channels_attribute", "must not be empty"
    if len(queues) > QUEUES_MAX:
        yield CONSUMERS, f"must have at most {QUEUES_MAX} queues in all; found {len(queues)}"


# Options of a namespace that open all of its channels to every client with a user.
_OPENING: Final = (
    "allow_subscribe_for_client",
    "allow_publish_for_client",
    "allow_presence_for_client",
    "allow_history_for_client",
)


def _personal_channel_conflicts(
    config: Config, namespace: str, places: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Personal channels that other users could use: `#` alone keeps nobody out."""
    options, table = config.channel.without_namespace, WITHOUT_NAMESPACE
    if namespace:
        options, table = config.channel.namespaces[namespace], places.get(namespace, NAMESPACES)
    for name in _OPENING:
        if getattr(options, name) and not options.allow_user_limited_channels:
            yield (
                f"{table}.{name}",
                "needs allow_user_limited_channels too: others could use personal channels",
            )


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _channel_conflicts(options: ChannelOptions, table: str) -> Iterator[tuple[str, str]]:
    if options.history_size and not options.history_ttl_s:
        yield f"{table}.history_size", "needs history_ttl too"
    if options.history_ttl_s and not options.history_size:
        yield f"{table}.history_ttl", "needs history_size too"
    for name in ("force_recovery", "force_positioning"):
        if getattr(options, name) and not options.has_history:
            yield f"{table}.{name}", "needs history_size and history_ttl"
    if options.auto_cache_recover and not (options.force_recovery and options.recovers_newest):
        yield (
            f"{table}.auto_cache_recover",
            'needs force_recovery and force_recovery_mode = "cache"',
        )
    if options.allowed_delta_types and not options.has_history:
        yield f"{table}.allowed_delta_types", "needs history_size and history_ttl"
    if options.express and not options.has_history:
        yield f"{table}.express", "needs history_size and history_ttl"
    if PUBLISHED in options.events and not options.has_history:
        # What is not in the log reaches no stream.
        yield f"{table}.events", f"needs history_size and history_ttl for `{PUBLISHED}`"
    if options.delta_publish and not options.allowed_delta_types:
        yield f"{table}.delta_publish", "needs allowed_delta_types"
    for name in ("batch_max_size", "batch_flush_latest"):
        if getattr(options, name) and not options.batch_max_delay_ms:
            # Without a time, the last publication would wait for the next one.
            yield f"{table}.{name}", "needs batch_max_delay"
    if why := _no_pattern(options.channel_regex):
        yield f"{table}.channel_regex", why
    if options.force_push_join_leave and not options.join_leave:
        yield f"{table}.force_push_join_leave", "needs join_leave"
