"""Renders a configuration as a file, and the tables of docs/configuration.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

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
from roomcast.config.proxy_options import NAMED, NAMED_OPTIONS, SECTIONS, ProxyConfig

__all__ = ["documented", "effective", "effective_toml", "reference"]

_SECTIONS: Final = tuple(dict.fromkeys(option.section for option in OPTIONS))
# What is said of the first of these tables holds for the others.
_ALIKE: Final = {
    section: tuple(f"{each}{end}" for each in SECTIONS.values())
    for end in ("", ".http")
    for section in (f"{next(iter(SECTIONS.values()))}{end}",)
}
_TOLD_ELSEWHERE: Final = frozenset(section for alike in _ALIKE.values() for section in alike[1:])


def documented() -> tuple[Option, ...]:
    """The options that the documentation describes one by one: of tables that are alike, those of
    the first.
    """
    options = (*OPTIONS, *CONSUMER_OPTIONS)
    return tuple(option for option in options if option.section not in _TOLD_ELSEWHERE)


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
    for hook, section in SECTIONS.items():
        proxy = getattr(config.proxies, hook)
        holders |= {section: proxy, f"{section}.http": proxy.http}
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
    document[NAMED] = [
        {"name": name, **_proxy_document(proxy)} for name, proxy in config.proxies.named.items()
    ]
    return document


def _proxy_document(proxy: ProxyConfig) -> dict[str, Any]:
    document: dict[str, Any] = {"http": {}}
    for path, option in NAMED_OPTIONS.items():
        table, holder = (document["http"], proxy.http) if "." in path else (document, proxy)
        table[path.rpartition(".")[2]] = option.to_file(getattr(holder, option.attribute))
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

    def put(header: str, table: Mapping[str, Any], names: Iterable[str]) -> None:
        lines.append(header)
        lines.extend(f"{name} = {_toml(table[name])}" for name in names)
        lines.append("")

    def put_scalars(header: str, table: Mapping[str, Any]) -> None:
        put(header, table, (name for name in table if not isinstance(table[name], dict)))

    for section in _SECTIONS:
        table = document
        for part in section.split("."):
            table = table[part]
        put(
            f"[{section}]",
            table,
            (option.key.rpartition(".")[2] for option in OPTIONS if option.section == section),
        )
        if section == WITHOUT_NAMESPACE:
            for namespace in document["channel"]["namespaces"]:
                put(f"[[{NAMESPACES}]]", namespace, namespace)
    for proxy in document[NAMED]:
        put(f"[[{NAMED}]]", proxy, proxy)
    for consumer in document[CONSUMERS]:
        put_scalars(f"[[{CONSUMERS}]]", consumer)
        put_scalars(f"[{AWS_SQS}]", consumer["aws_sqs"])
        put_scalars(f"[{PUBLICATION_DATA_MODE}]", consumer["aws_sqs"]["publication_data_mode"])
    return "\n".join(lines[:-1]) + "\n"


def _toml(value: Any) -> str:
    """A value on one line. JSON's strings, numbers, booleans and lists are TOML as well."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def reference(options: Sequence[Option] | None = None) -> str:
    """The tables of docs/configuration.md, as Markdown. None: of all that are documented."""
    if options is None:
        options = documented()
    lines: list[str] = []
    sections = list(dict.fromkeys(option.section for option in options))
    for section in sections:
        title = f"`[{section}]`"
        if section == WITHOUT_NAMESPACE:
            title += f" and `[[{NAMESPACES}]]`"
        elif section == CONSUMERS:
            title = f"`[[{CONSUMERS}]]`"
        elif section in _ALIKE:
            more = [f"[{each}]" for each in _ALIKE[section][1:]]
            end = section.removeprefix(next(iter(SECTIONS.values())))
            more.append(f"[{NAMED}.http]" if end else f"[[{NAMED}]]")
            title += f", {', '.join(f'`{each}`' for each in more[:-1])} and `{more[-1]}`"
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
