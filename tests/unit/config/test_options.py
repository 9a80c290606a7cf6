"""service/roomcast/config/options.py: what may be set, and its defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from roomcast.config import (
    OPTIONS,
    AdminConfig,
    AwsConfig,
    ClientConfig,
    Config,
    HooksConfig,
    HttpApiConfig,
    LogConfig,
    NodeConfig,
    Option,
    ProxyConfig,
    ProxyHttpConfig,
    ServerConfig,
    SubscriptionTokenConfig,
    TlsConfig,
    TokenConfig,
    TracingConfig,
    WebSocketConfig,
    dev_config,
    effective_toml,
    load,
)
from roomcast.config.proxy_options import SECTIONS
from roomcast.wire.channels import ChannelOptions
from tests.unit.config.files import refusal, write


def test_what_development_runs_with() -> None:
    development = dev_config()
    assert development.client.insecure
    assert development.client.token.hmac_secret_key == "secret"
    assert development.channel.options("room") == ChannelOptions(
        history_size=100,
        history_ttl_s=300,
        force_recovery=True,
        presence=True,
        join_leave=True,
        force_push_join_leave=True,
    )
    typing = development.channel.options("typing:room")
    assert typing is not None
    assert not typing.has_history


PEM = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\nAAAA\n-----END PUBLIC KEY-----"


def test_a_public_key_may_have_lines(tmp_path: Path) -> None:
    for text in (
        PEM,
        PEM + "\n",
        PEM.replace("\n", "\r\n"),
        PEM.replace("\n", "\\n"),
        PEM.replace("PUBLIC", "RSA PUBLIC"),
    ):
        loaded = load(None, {"ROOMCAST_CLIENT_TOKEN_RSA_PUBLIC_KEY": text})
        assert loaded.client.token.rsa_public_key == text
        assert loaded.client.token.has_key
        assert load(write(tmp_path, effective_toml(loaded)), {}) == loaded
    lines = f'[client.token]\ned25519_public_key = """\n{PEM}\n"""'
    assert load(write(tmp_path, lines), {}).client.token.ed25519_public_key == f"{PEM}\n"


@pytest.mark.parametrize(
    "value",
    [
        PEM.replace("PUBLIC", "PRIVATE"),
        PEM.replace("PUBLIC", "RSA PRIVATE"),
        PEM.replace("PUBLIC KEY", "CERTIFICATE"),
        PEM + "\x00",
        PEM + "secret",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKey",
        "of-the-wrong-kind",
    ],
)
def test_what_is_no_public_key_is_refused_and_not_told(value: str) -> None:
    """It may be the private one."""
    assert refusal(None, {"ROOMCAST_CLIENT_TOKEN_ECDSA_PUBLIC_KEY": value}) == (
        "environment: ROOMCAST_CLIENT_TOKEN_ECDSA_PUBLIC_KEY must be a public key in PEM form "
        "(-----BEGIN PUBLIC KEY-----…)"
    )


@pytest.mark.parametrize(
    "address",
    [
        "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbC/.well-known/jwks.json",
        "https://example.eu.auth0.com/.well-known/jwks.json",
        "https://login.example.com:8443/keys?policy=sign-in",
        "https://example.com",
        "http://localhost:8080/jwks",
        "http://127.0.0.1/jwks",
        "http://[::1]:8080/jwks",
    ],
)
def test_where_keys_may_be_published(address: str) -> None:
    token = load(None, {"ROOMCAST_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT": address}).client.token
    assert token.jwks_public_endpoint == address
    assert token.has_key


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/jwks",
        "http://localhost.example.com/jwks",
        "http://127.0.0.1.example.com/jwks",
        "http://127.0.0.1@example.com/jwks",
        "http://localhost@example.com/jwks",
        "https://user:password@example.com/jwks",
        "https://",
        "https:///jwks",
        "HTTPS://example.com/jwks",
        "file:///etc/keys",
        "//example.com/jwks",
        "example.com/jwks",
        "https://example.com/jwks#fragment",
        "https://example.com/a b",
        "https://example.com/{tenant}",
        "https://example.com/\n",
    ],
)
def test_where_keys_must_not_come_from(address: str) -> None:
    told = refusal(None, {"ROOMCAST_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT": address})
    assert "must be an https:// address (http:// only of this machine)" in told


def test_without_any_key_no_token_is_good() -> None:
    assert not TokenConfig(audience="chat", issuer="us").has_key
    assert TokenConfig(hmac_secret_key="k").has_key


@pytest.mark.parametrize("name", ["AWS/EC2", ":x", " x", "x" * 256])
def test_a_namespace_of_metrics_is_one_that_cloudwatch_takes(tmp_path: Path, name: str) -> None:
    assert "aws.metrics_namespace must be" in refusal(
        write(tmp_path, f"[aws]\nmetrics_namespace = '{name}'")
    )
    assert load(
        write(tmp_path, "[aws]\nmetrics_namespace = 'my rooms/chat'"), {}
    ).aws.metrics_namespace


# Options whose values say their unit.
VALUED = {
    "history_ttl_s": "history_ttl",
    "batch_max_delay_ms": "batch_max_delay",
    "write_delay_ms": "write_delay",
    "timeout_ms": "timeout",
}


def test_every_field_is_an_option() -> None:
    declared = {each.key for each in OPTIONS}
    parts: dict[str, Any] = {
        "client": ClientConfig,
        "client.token": TokenConfig,
        "client.subscription_token": SubscriptionTokenConfig,
        "channel.without_namespace": ChannelOptions,
        "websocket": WebSocketConfig,
        "server": ServerConfig,
        "server.tls": TlsConfig,
        "server.internal_tls": TlsConfig,
        "http_api": HttpApiConfig,
        "admin": AdminConfig,
        "hooks": HooksConfig,
        "aws": AwsConfig,
        "node": NodeConfig,
        "log": LogConfig,
        "tracing": TracingConfig,
    }
    for section in SECTIONS.values():
        parts |= {section: ProxyConfig, f"{section}.http": ProxyHttpConfig}
    expected = {
        f"{section}.{VALUED.get(each.name, each.name)}"
        for section, part in parts.items()
        for each in dataclasses.fields(part)
    }
    tables = {
        "client.token",
        "client.subscription_token",
        "server.tls",
        "server.internal_tls",
    }
    assert declared == expected - tables - {f"{section}.http" for section in SECTIONS.values()}
    assert {each.name for each in dataclasses.fields(Config)} == {
        "client",
        "channel",
        "websocket",
        "server",
        "http_api",
        "admin",
        "hooks",
        "proxies",
        "aws",
        "node",
        "log",
        "tracing",
        # Tables of which there may be several: test_loading.py.
        "consumers",
    }


@pytest.mark.parametrize("each", OPTIONS, ids=lambda each: each.key)
def test_every_default_is_one_of_the_values_it_stands_among(each: Option) -> None:
    assert each.rules.doc
    assert (
        each.kind in ("true or false", "text", "list", "structure")
        or each.rules.maximum is not None
    )
    shown = (
        each.default if each.rules.secret and not each.rules.codec else each.to_file(each.default)
    )
    assert each.from_file(shown) == each.default
