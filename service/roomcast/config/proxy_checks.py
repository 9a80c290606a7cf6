"""Checks the options of hooks over HTTP against each other and those of hooks in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from roomcast.config.channel_options import NAMESPACES, WITHOUT_NAMESPACE
from roomcast.config.messages import quoted
from roomcast.config.options import Config
from roomcast.config.proxy_options import NAMED, SECTIONS, ProxyConfig
from roomcast.wire.channels import ChannelOptions

__all__ = ["aws_service", "proxy_conflicts"]

# Headers that belong to one connection, say where a message ends, or are the server's own: RFC 9110
# §7.6.1, RFC 9112 §6.
_NOT_PASSED: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_PASSED_BEGINNINGS: Final = ("proxy-", "sec-websocket-")
# What a signature is written into.
_SIGNED: Final = ("authorization", "x-amz-")
# Where AWS_IAM guards an address, and for what a request is signed then.
_AWS_HOSTS: Final = (
    (re.compile(r"[a-z0-9]+\.lambda-url\.([a-z0-9-]+)\.on\.aws"), "lambda"),
    (re.compile(r"[a-z0-9-]+\.execute-api\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?"), "execute-api"),
)
_OF_CHANNELS: Final = ("subscribe", "publish", "sub_refresh")


def aws_service(endpoint: str) -> tuple[str, str] | None:
    """The service and the region that a request to `endpoint` is signed for. None: it is no
    address over TLS of a Lambda function URL or an API Gateway.
    """
    scheme, _, rest = endpoint.partition("://")
    host = re.split(r"[/?]", rest, maxsplit=1)[0]
    if scheme == "https":
        for pattern, service in _AWS_HOSTS:
            if found := pattern.fullmatch(host):
                return service, found[1]
    return None


def proxy_conflicts(config: Config, places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Keys and messages. `places`: of namespaces in the file."""
    proxies = config.proxies
    for place, proxy in proxies.by_place():
        yield from _own_conflicts(place, proxy)
    for hook in ("connect", "refresh", "rpc"):
        if getattr(proxies, hook).is_on and getattr(config.hooks, hook):
            yield (
                f"{SECTIONS[hook]}.endpoint",
                f"must be empty with hooks.{hook}: one of them decides",
            )
    tables = [(WITHOUT_NAMESPACE, config.channel.without_namespace)]
    tables += [
        (places.get(name, NAMESPACES), options)
        for name, options in config.channel.namespaces.items()
    ]
    for hook in _OF_CHANNELS:
        for table, options in tables:
            yield from _channel_conflicts(config, hook, table, options)
        is_asked = any(
            getattr(options, f"{hook}_proxy_enabled") and not getattr(options, f"{hook}_proxy_name")
            for _, options in tables
        )
        if getattr(proxies, hook).is_on and not is_asked:
            yield (
                f"{SECTIONS[hook]}.endpoint",
                (
                    f"is asked by no channel: set {hook}_proxy_enabled in [{WITHOUT_NAMESPACE}] or "
                    f"in [[{NAMESPACES}]]"
                ),
            )


def _own_conflicts(place: str, proxy: ProxyConfig) -> Iterator[tuple[str, str]]:
    static = [name.lower() for name, _ in proxy.http.static_headers]
    if len(set(static)) < len(static):
        yield f"{place}.http.static_headers", "must not name a header twice"
    for key, names in (
        ("http.static_headers", [name for name, _ in proxy.http.static_headers]),
        ("http_headers", proxy.http_headers),
        ("emulated_headers", proxy.emulated_headers),
    ):
        for name in names:
            small = name.lower()
            if small in _NOT_PASSED or small.startswith(_NOT_PASSED_BEGINNINGS):
                yield (
                    f"{place}.{key}",
                    f"must not have {quoted(name)}: it belongs to the request itself",
                )
            elif proxy.aws_iam and small.startswith(_SIGNED):
                yield (
                    f"{place}.{key}",
                    f"must not have {quoted(name)}: with aws_iam it is the signature's",
                )
            elif key != "http.static_headers" and small in static:
                # Whoever connects could say who the server is.
                yield (
                    f"{place}.{key}",
                    (
                        f"must not have {quoted(name)}, which http.static_headers has: clients "
                        "could replace it"
                    ),
                )
    if proxy.aws_iam and proxy.is_on and aws_service(proxy.endpoint) is None:
        yield (
            f"{place}.aws_iam",
            (
                "needs an endpoint that is the https:// address of a Lambda function URL or of an "
                "API Gateway"
            ),
        )


def _channel_conflicts(
    config: Config, hook: str, table: str, options: ChannelOptions
) -> Iterator[tuple[str, str]]:
    enabled, name = f"{hook}_proxy_enabled", getattr(options, f"{hook}_proxy_name")
    if not getattr(options, enabled):
        if name:
            yield f"{table}.{hook}_proxy_name", f"needs {enabled} too"
        return
    if getattr(config.hooks, hook):
        yield f"{table}.{enabled}", f"must be false with hooks.{hook}: one of them decides"
    elif not name and not getattr(config.proxies, hook).is_on:
        yield f"{table}.{enabled}", f"needs {SECTIONS[hook]}.endpoint, or {hook}_proxy_name"
    elif name and name not in config.proxies.named:
        yield (
            f"{table}.{hook}_proxy_name",
            f"must be the name of one of [[{NAMED}]]; found {quoted(name)}",
        )
    elif name and not config.proxies.named[name].is_on:
        yield f"{table}.{hook}_proxy_name", f"needs an endpoint of {quoted(name)} in [[{NAMED}]]"
