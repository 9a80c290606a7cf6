"""Renders a configuration as a file, and the tables of docs/configuration.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from roomcast.config.channel_options import NAMESPACE_OPTIONS, NAMESPACES, WITHOUT_NAMESPACE
from roomcast.config.consumer_options import (
    AWS_SQS,
    CONSUMER_OPTIONS,
    CONSUMERS,
    PUBLICATION_DATA_MODE,
    ConsumerConfig,
)
from roomcast.config.declaration import Option
from roomcast.config.options import OPTIONS, Config

__all__ = ["effective", "effective_toml", "reference"]


def effective(config: Config) -> dict[str, Any]:
    """The configuration with every option, in the layout of a file. Secrets are masked.

    All values are JSON types.
    """
    holders: dict[str, object] = {
        "client": config.client,
        "client.token": config.client.token,
        "client.subscription_token": config.client.subscription_token,
        WITHOUT_NAMESPACE: config.channel.without_namespace,
        "websocket": config.websocket,
        "server": config.server,
        "server.tls": config.server.tls,
        "server.internal_tls": config.server.internal_tls,
        "http_api": config.http_api,
        "admin": config.admin,
        "hooks": config.hooks,
        "aws": config.aws,
        "node": config.node,
        "log": config.log,
        "tracing": config.tracing,
    }
    document: dict[str, Any] = {}
    for option in OPTIONS:
        table = document
        for part in option.section.split("."):
            table = table.setdefault(part, {})
        table[option.key.rpartition(".")[2]] = option.to_file(
            getattr(holders[option.section], option.attribute)
        )
    document["channel"]["namespaces"] = [
        {"name": name}
        | {
            key: option.to_file(getattr(options, option.attribute))
            for key, option in NAMESPACE_OPTIONS.items()
        }
        for name, options in config.channel.namespaces.items()
    ]
    document[CONSUMERS] = [_effective_consumer(consumer) for consumer in config.consumers]
    return document


def _effective_consumer(consumer: ConsumerConfig) -> dict[str, Any]:
    mode: dict[str, Any] = {}
    sqs: dict[str, Any] = {"publication_data_mode": mode}
    table: dict[str, Any] = {"aws_sqs": sqs}
    tables: dict[str, tuple[dict[str, Any], object]] = {
        CONSUMERS: (table, consumer),
        AWS_SQS: (sqs, consumer.aws_sqs),
        PUBLICATION_DATA_MODE: (mode, consumer.aws_sqs.publication_data_mode),
    }
    for option in CONSUMER_OPTIONS:
        into, holder = tables[option.section]
        into[option.key.rpartition(".")[2]] = option.to_file(getattr(holder, option.attribute))
    return table


def effective_toml(config: Config) -> str:
    """`effective` as TOML. Apart from the masks, the file means the same."""
    document = effective(config)
    lines: list[str] = []

    def put(header: str, table: Mapping[str, Any]) -> None:
        lines.append(header)
        # JSON strings, numbers, booleans and lists are valid TOML.
        lines.extend(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in table.items()
            if not isinstance(value, dict)
        )
        lines.append("")

    put("[client]", document["client"])
    put("[client.token]", document["client"]["token"])
    put("[client.subscription_token]", document["client"]["subscription_token"])
    put(f"[{WITHOUT_NAMESPACE}]", document["channel"]["without_namespace"])
    for namespace in document["channel"]["namespaces"]:
        put(f"[[{NAMESPACES}]]", namespace)
    put("[websocket]", document["websocket"])
    put("[server]", document["server"])
    put("[server.tls]", document["server"]["tls"])
    put("[server.internal_tls]", document["server"]["internal_tls"])
    put("[http_api]", document["http_api"])
    put("[admin]", document["admin"])
    put("[hooks]", document["hooks"])
    put("[aws]", document["aws"])
    put("[node]", document["node"])
    put("[log]", document["log"])
    put("[tracing]", document["tracing"])
    for consumer in document[CONSUMERS]:
        put(f"[[{CONSUMERS}]]", consumer)
        put(f"[{AWS_SQS}]", consumer["aws_sqs"])
        put(f"[{PUBLICATION_DATA_MODE}]", consumer["aws_sqs"]["publication_data_mode"])
    return "\n".join(lines[:-1]) + "\n"


def reference(options: Sequence[Option] = (*OPTIONS, *CONSUMER_OPTIONS)) -> str:
    """The tables of docs/configuration.md, as Markdown."""
    lines: list[str] = []
    sections = list(dict.fromkeys(option.section for option in options))
    for section in sections:
        title = f"`[{section}]`"
        if section == WITHOUT_NAMESPACE:
            title += f" and `[[{NAMESPACES}]]`"
        if section == CONSUMERS:
            title = f"`[[{CONSUMERS}]]`"
        lines += [
            f"### {title}",
            "",
            "| option | takes | default | what and why |",
            "| --- | --- | --- | --- |",
        ]
        for option in options:
            if option.section != section:
                continue
            unit = f", {option.rules.unit}" if option.rules.unit else ""
            takes = option.expected().replace("*", r"\*")
            default = json.dumps(option.to_file(option.default))
            name = option.key.rpartition(".")[2]
            lines.append(f"| `{name}` | {takes}{unit} | `{default}` | {option.rules.doc} |")
        lines.append("")
    return "\n".join(lines)
