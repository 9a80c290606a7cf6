"""service/roomcast/config/config.py: what is accepted, what is refused,
and how the refusal reads.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roomcast.config import config as config_module
from roomcast.config.config import (
    MASK,
    OPTIONS,
    AwsConfig,
    ClientConfig,
    Config,
    ConfigError,
    HooksConfig,
    HttpApiConfig,
    NodeConfig,
    Option,
    TokenConfig,
    dev_config,
    effective,
    effective_toml,
    format_duration,
    load,
    reference,
)
from roomcast.wire.channels import ChannelOptions, ChannelRules

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "configuration.md"

FULL = """\
# every table once
[client]
insecure = true
allowed_origins = ["https://a.example", "https://*.b.example"]
channel_limit = 12
ping_interval_s = 20          # a whole number where a number is due

[client.token]
hmac_secret_key = "0123456789abcdef0123456789abcdef"
audience = "chat"

[channel.without_namespace]
history_size = 10
history_ttl = "1h30m"

[[channel.namespaces]]
name = "chat"
history_size = 100
history_ttl = "7d"
force_recovery = true
join_leave = true
force_push_join_leave = true

[[channel.namespaces]]
name = "cursors"
allow_publish_for_subscriber = true

[aws]
region = "eu-central-1"
topic_arn = "arn:aws:sns:eu-central-1:123456789012:roomcast-topic"

[node]
lease_ttl_s = 30
heartbeat_s = 7.5
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "roomcast.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    message = str(caught.value)
    assert "\n" not in message
    return message


def option(key: str) -> Option:
    return next(each for each in OPTIONS if each.key == key)


def test_nothing_given_means_the_defaults() -> None:
    assert load(None, {}) == Config()
    assert not Config().client.insecure


def test_a_file_that_sets_something_in_every_table(tmp_path: Path) -> None:
    assert load(write(tmp_path, FULL), {}) == Config(
        client=ClientConfig(
            insecure=True,
            allowed_origins=("https://a.example", "https://*.b.example"),
            channel_limit=12,
            ping_interval_s=20.0,
            token=TokenConfig(hmac_secret_key="0123456789abcdef0123456789abcdef", audience="chat"),
        ),
        channel=ChannelRules(
            ChannelOptions(history_size=10, history_ttl_s=5400),
            {
                "chat": ChannelOptions(
                    history_size=100,
                    history_ttl_s=7 * 86_400,
                    force_recovery=True,
                    join_leave=True,
                    force_push_join_leave=True,
                ),
                "cursors": ChannelOptions(allow_publish_for_subscriber=True),
            },
        ),
        aws=AwsConfig(
            region="eu-central-1", topic_arn="arn:aws:sns:eu-central-1:123456789012:roomcast-topic"
        ),
        node=NodeConfig(lease_ttl_s=30.0, heartbeat_s=7.5),
    )


def test_numbers_of_seconds_are_floats_however_they_are_written(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "[node]\ndrain_s = 3\n"), {"ROOMCAST_NODE_HEARTBEAT_S": "4"})
    assert (type(loaded.node.drain_s), type(loaded.node.heartbeat_s)) == (float, float)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = {
        "ROOMCAST_CLIENT_INSECURE": "False",
        "ROOMCAST_CLIENT_ALLOWED_ORIGINS": "https://c.example, *",
        "ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": "other",
        "ROOMCAST_CHANNEL_WITHOUT_NAMESPACE_HISTORY_TTL": "12h",
        "ROOMCAST_NODE_LEASE_TTL_S": "99.5",
        "ROOMCAST_NODE_GAP_WAIT_MS": "0",
    }
    loaded = load(write(tmp_path, FULL), environ)
    assert not loaded.client.insecure
    assert loaded.client.allowed_origins == ("https://c.example", "*")
    assert loaded.client.token == TokenConfig(hmac_secret_key="other", audience="chat")
    assert loaded.channel.without_namespace == ChannelOptions(history_size=10, history_ttl_s=43_200)
    assert loaded.node == NodeConfig(lease_ttl_s=99.5, heartbeat_s=7.5, gap_wait_ms=0)
    assert set(loaded.channel.namespaces) == {"chat", "cursors"}


def test_an_empty_list_in_the_environment(tmp_path: Path) -> None:
    assert (
        load(write(tmp_path, FULL), {"ROOMCAST_CLIENT_ALLOWED_ORIGINS": ""}).client.allowed_origins
        == ()
    )


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "[client]\nchannel_limit = 3\n")
    other = tmp_path / "other.toml"
    other.write_text("[client]\nchannel_limit = 4\n")
    assert load(None, {"ROOMCAST_CONFIG": str(path)}).client.channel_limit == 3
    assert load(other, {"ROOMCAST_CONFIG": str(path)}).client.channel_limit == 4
    assert load(None, {"ROOMCAST_CONFIG": ""}) == Config()


def test_variables_of_others_are_left_alone() -> None:
    foreign = {"ROOMCAST_REQUIRE": "browser", "ROOMCAST_CHROMIUM": "x", "ROOMCAST_TOPIC_ARN": "y"}
    assert load(None, {**foreign, "PATH": "/bin", "roomcast_client_insecure": "1"}) == Config()


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_bytes(b"\xef\xbb\xbf[client]\ninsecure = true\n")
    assert load(path, {}).client.insecure


def test_demo_defaults_hold_only_without_a_file(tmp_path: Path) -> None:
    assert load(None, {}, demo=True) == dev_config()
    assert load(write(tmp_path, ""), {}, demo=True) == Config()
    loaded = load(None, {"ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": "mine"}, demo=True)
    assert loaded.client.insecure
    assert loaded.client.token.hmac_secret_key == "mine"


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


def test_variables_leave_the_namespaces_of_development_alone() -> None:
    loaded = load(None, {"ROOMCAST_NODE_DRAIN_S": "2"}, demo=True)
    assert loaded.channel == dev_config().channel


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "[client]\n\ninsecur = true",
            "line 3: client.insecur is not an option (did you mean client.insecure?)",
        ),
        ("[client]\nhmac_secret_key = 'x'", "(did you mean client.token.hmac_secret_key?)"),
        ("[clients]\ninsecure = true", "line 1: clients is not an option (did you mean client?)"),
        ("zebra = 1", "line 1: zebra is not an option"),
        ('"a\\nb" = 1', r"'a\nb' is not an option"),
        ("client = 5", "line 1: client must be a table, written [client]; found 5"),
        ("[client]\ntoken = 'x'", "line 2: client.token must be a table"),
        ("[client]\ninsecure = 1", "line 2: client.insecure must be true or false; found 1"),
        ("[client]\ninsecure = 'true'", "must be true or false; found 'true'"),
        ("[client]\nchannel_limit = true", "must be a whole number from 1 to 10000; found true"),
        ("[client]\nchannel_limit = 1.0", "must be a whole number from 1 to 10000; found 1.0"),
        ("[client]\nchannel_limit = 0", "must be a whole number from 1 to 10000; found 0"),
        (
            "[client]\nchannel_limit = 99999999999999999999999",
            "must be a whole number from 1 to 10000",
        ),
        (
            "[client]\nmessage_size_limit = 98305",
            "must be a whole number from 1024 to 98304; found 98305",
        ),
        (
            "[client]\nping_interval_s = nan",
            "line 2: client.ping_interval_s must be a number from 1 to 3600; found nan",
        ),
        ("[client]\nping_interval_s = inf", "must be a number from 1 to 3600; found inf"),
        ("[client]\nping_interval_s = '25'", "must be a number from 1 to 3600; found '25'"),
        ("[client]\nallowed_origins = 'https://a.example'", "must be a list of origins"),
        ("[client]\nallowed_origins = [1]", "must be a list of origins"),
        ("[client]\nallowed_origins = ['https://a.example/']", "must be a list of origins"),
        ("[client]\nallowed_origins = ['']", "must be a list of origins"),
        (
            "[client.token]\naudience = 7",
            "line 2: client.token.audience must be text without control characters",
        ),
        (
            "[aws]\nendpoint_url = 'localhost:4566'",
            "must be an address such as http://127.0.0.1:5000",
        ),
        ("[aws]\nendpoint_url = 'http://me:pw@host'", "must be an address"),
        ("[aws]\nregion = 'europe'", "must be a region such as eu-central-1; found 'europe'"),
        (
            "[aws]\ntopic_arn = 'roomcast-topic'",
            "must be the ARN of an SNS topic; found 'roomcast-topic'",
        ),
        ("[aws]\ntable_prefix = ''", "must be 1 to 200 letters"),
        ("[aws]\nqueue_prefix = 'a.b'", "must be 1 to 40 letters, digits, - or _; found 'a.b'"),
        ("[aws]\nlog_generation = 1", "must be 1 to 8 digits or small letters; found 1"),
        (
            "[channel.without_namespace]\nhistory_ttl = 300",
            'must be a duration such as "300s", "5m"',
        ),
        ("[channel.without_namespace]\nhistory_ttl = '5 minutes'", "must be a duration"),
        ("[channel.without_namespace]\nhistory_ttl = ''", "must be a duration"),
        ("[channel.without_namespace]\nhistory_ttl = '400d'", "up to 366d; found '400d'"),
        (
            "[channel.without_namespace]\nhistory_ttl_s = 300",
            "(did you mean channel.without_namespace.history_ttl?)",
        ),
        ("[channel.namespaces]\nname = 'a'", "each written [[channel.namespaces]]"),
        ("[[channel.namespaces]]\npresence = true", "line 1: channel.namespaces[0] needs a name"),
        ("[[channel.namespaces]]\nname = 3", "channel.namespaces[0].name must be 1 to 64 letters"),
        (
            "[[channel.namespaces]]\nname = 'a:b'",
            "must be 1 to 64 letters, digits, -, _ or .; found 'a:b'",
        ),
        ("[[channel.namespaces]]\nname = ''", "must be 1 to 64 letters"),
        (
            "[[channel.namespaces]]\nname = 'a'\n[[channel.namespaces]]\nname = 'a'",
            "line 4: channel.namespaces[1].name must differ from the others; found 'a' again",
        ),
        (
            (
                "[[channel.namespaces]]\nname = 'a'\n[[channel.namespaces]]\nname = 'b'\n"
                "presense = true"
            ),
            "line 5: channel.namespaces[1].presense is not an option (did you mean presence?)",
        ),
        (
            "[[channel.namespaces]]\nname = 'a'\npresence = 'yes'",
            "line 3: channel.namespaces[0].presence must be",
        ),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    told = refusal(path)
    assert told.startswith(str(path))
    assert message in told


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("ROOMCAST_CLIENT_INSECURE", "yes", "must be true or false; found 'yes'"),
        ("ROOMCAST_CLIENT_INSECURE", "", "must be true or false; found ''"),
        (
            "ROOMCAST_CLIENT_CHANNEL_LIMIT",
            "1_000",
            "must be a whole number from 1 to 10000; found '1_000'",
        ),
        ("ROOMCAST_CLIENT_CHANNEL_LIMIT", " 5", "must be a whole number"),
        ("ROOMCAST_CLIENT_CHANNEL_LIMIT", "٣", "must be a whole number"),
        ("ROOMCAST_CLIENT_CHANNEL_LIMIT", "9" * 5000, "must be a whole number"),
        ("ROOMCAST_CLIENT_PING_INTERVAL_S", "nan", "must be a number from 1 to 3600; found 'nan'"),
        ("ROOMCAST_CLIENT_PING_INTERVAL_S", "inf", "must be a number"),
        ("ROOMCAST_CLIENT_PING_INTERVAL_S", "1e9", "must be a number"),
        ("ROOMCAST_CLIENT_ALLOWED_ORIGINS", "https://a.example,,", "must be a list of origins"),
        ("ROOMCAST_CHANNEL_WITHOUT_NAMESPACE_HISTORY_TTL", "1 h", "must be a duration"),
        ("ROOMCAST_AWS_REGION", "a\nb", r"found 'a\nb'"),
    ],
)
def test_what_a_variable_must_not_say(variable: str, value: str, message: str) -> None:
    told = refusal(None, {variable: value})
    assert told.startswith(f"environment: {variable} ")
    assert message in told
    assert len(told) < 300


@pytest.mark.parametrize(
    "variable, hint",
    [
        ("ROOMCAST_CLIENT_INSECUR", " (did you mean ROOMCAST_CLIENT_INSECURE?)"),
        ("ROOMCAST_CHANNEL_NAMESPACES", ""),
        (
            "ROOMCAST_CHANEL_WITHOUT_NAMESPACE_PRESENCE",
            " (did you mean ROOMCAST_CHANNEL_WITHOUT_NAMESPACE_PRESENCE?)",
        ),
    ],
)
def test_a_variable_that_nobody_knows(variable: str, hint: str) -> None:
    assert f"environment: {variable} is not an option{hint}" in refusal(None, {variable: "1"})


def test_an_option_that_only_begins_alike_is_not_suggested() -> None:
    assert (
        refusal(None, {"ROOMCAST_CLIENT_FOO": "1"})
        == "environment: ROOMCAST_CLIENT_FOO is not an option"
    )


@pytest.mark.parametrize("value", ["with a newline\n", "\x00", "\udcff"])
def test_a_secret_is_never_told(value: str) -> None:
    told = refusal(None, {"ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": value})
    assert told == (
        "environment: ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY must be text without control characters"
    )


def test_a_secret_of_the_wrong_type_is_not_told_either(tmp_path: Path) -> None:
    assert "4711" not in refusal(write(tmp_path, "[client.token]\nhmac_secret_key = 4711"))


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(None, {"ROOMCAST_AWS_REGION": "x" * 10_000})) < 200


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
        "https://{{tenant}}.example.com/jwks",
        "https://example.com/\n",
    ],
)
def test_where_keys_must_not_come_from(address: str) -> None:
    told = refusal(None, {"ROOMCAST_CLIENT_TOKEN_JWKS_PUBLIC_ENDPOINT": address})
    assert "must be an https:// address (http:// only of this machine)" in told


def test_without_any_key_no_token_is_good() -> None:
    assert not TokenConfig(audience="chat", issuer="us").has_key
    assert TokenConfig(hmac_secret_key="k").has_key


HISTORY = "history_size = 10\nhistory_ttl = '5m'\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "[client]\npong_timeout_s = 25",
            "line 2: client.pong_timeout_s must be below client.ping_interval_s (25); found 25",
        ),
        (
            "[node]\nheartbeat_s = 30",
            "line 2: node.heartbeat_s must be below half of node.lease_ttl_s (60); found 30",
        ),
        # Only the other option of the two is in the file: its table is named.
        (
            "[node]\nlease_ttl_s = 30",
            "line 1: node.heartbeat_s must be below half of node.lease_ttl_s (30); found 15",
        ),
        (
            "[aws]\nregion = 'us-east-1'\ntopic_arn = 'arn:aws:sns:eu-west-1:123456789012:t'",
            "line 3: aws.topic_arn must be in aws.region (us-east-1)",
        ),
        (
            "[channel.without_namespace]\nhistory_size = 1",
            "line 2: channel.without_namespace.history_size needs history_ttl",
        ),
        (
            "[channel.without_namespace]\nhistory_ttl = '1s'",
            "channel.without_namespace.history_ttl needs history_size",
        ),
        (
            "[channel.without_namespace]\nforce_recovery = true",
            "force_recovery needs history_size and history_ttl",
        ),
        (
            "[channel.without_namespace]\nforce_positioning = true",
            "force_positioning needs history_size and history_ttl",
        ),
        (
            "[channel.without_namespace]\nforce_push_join_leave = true",
            "force_push_join_leave needs join_leave",
        ),
        (
            (
                f"[[channel.namespaces]]\nname = 'a'\n{HISTORY}force_recovery = true\n"
                "[[channel.namespaces]]\nname = 'b'\nforce_recovery = true"
            ),
            "line 8: channel.namespaces[1].force_recovery needs history_size and history_ttl",
        ),
        ("[aws]\nlaunch_hook = 'h'", "line 2: aws.launch_hook needs aws.autoscaling_group"),
        ("[aws]\nterminate_hook = 'h'", "line 2: aws.terminate_hook needs aws.autoscaling_group"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(write(tmp_path, text))


def test_a_conflict_that_comes_from_the_environment_says_so() -> None:
    told = refusal(None, {"ROOMCAST_NODE_HEARTBEAT_S": "31"})
    assert told.startswith(
        "environment: ROOMCAST_NODE_HEARTBEAT_S must be below half of node.lease_ttl_s (60)"
    )


def test_options_that_go_together(tmp_path: Path) -> None:
    text = f"[channel.without_namespace]\n{HISTORY}force_recovery = true\nforce_positioning = true"
    assert load(write(tmp_path, text), {}).channel.without_namespace.has_history


@pytest.mark.parametrize(
    "text, environ, endpoint",
    [
        ("", {}, "http://169.254.169.254"),
        ("[node]\nimds_endpoint = 'http://[fd00:ec2::254]'", {}, "http://[fd00:ec2::254]"),
        ("[node]\nimds_endpoint = ''", {}, ""),
        ("", {"ROOMCAST_NODE_IMDS_ENDPOINT": ""}, ""),
        ("", {"AWS_EC2_METADATA_DISABLED": "true"}, ""),
        ("", {"AWS_EC2_METADATA_DISABLED": "False"}, "http://169.254.169.254"),
        (
            "[node]\nimds_endpoint = 'http://127.0.0.1:1338'",
            {"AWS_EC2_METADATA_DISABLED": "True"},
            "",
        ),
    ],
)
def test_the_instance_metadata_can_be_switched_off(
    tmp_path: Path, text: str, environ: dict[str, str], endpoint: str
) -> None:
    assert load(write(tmp_path, text), environ).node.imds_endpoint == endpoint


@pytest.mark.parametrize("name", ["AWS/EC2", ":x", " x", "x" * 256])
def test_a_namespace_of_metrics_is_one_that_cloudwatch_takes(tmp_path: Path, name: str) -> None:
    assert "aws.metrics_namespace must be" in refusal(
        write(tmp_path, f"[aws]\nmetrics_namespace = '{name}'")
    )
    assert load(
        write(tmp_path, "[aws]\nmetrics_namespace = 'my rooms/chat'"), {}
    ).aws.metrics_namespace


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refusal(path) == f"{path}: cannot be read: No such file or directory"
    assert refusal(tmp_path).endswith("cannot be read: Is a directory")


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = write(tmp_path, "[client]\ninsecure = yes\n")
    told = refusal(path)
    assert told.startswith(f"{path}: not valid TOML: ")
    assert "line 2" in told
    path.write_bytes(b"a = '\xff'")
    assert refusal(path) == f"{path}: not UTF-8 text"
    path.write_text("a = " + "[" * 10_000)
    assert refusal(path).startswith(f"{path}: not valid TOML")


def test_secrets_are_masked_wherever_a_configuration_is_shown() -> None:
    secretive = Config(client=ClientConfig(token=TokenConfig(hmac_secret_key="hush-hush")))
    for shown in (repr(secretive), json.dumps(effective(secretive)), effective_toml(secretive)):
        assert "hush" not in shown
    assert effective(secretive)["client"]["token"]["hmac_secret_key"] == MASK
    assert effective(Config())["client"]["token"]["hmac_secret_key"] == ""


def test_every_field_is_an_option() -> None:
    declared = {each.key for each in OPTIONS}
    parts: dict[str, Any] = {
        "client": ClientConfig,
        "client.token": TokenConfig,
        "channel.without_namespace": ChannelOptions,
        "http_api": HttpApiConfig,
        "hooks": HooksConfig,
        "aws": AwsConfig,
        "node": NodeConfig,
    }
    expected = {
        f"{section}.{each.name}".replace("history_ttl_s", "history_ttl")
        for section, part in parts.items()
        for each in dataclasses.fields(part)
    }
    assert declared == expected - {"client.token"}
    assert {each.name for each in dataclasses.fields(Config)} == {
        "client",
        "channel",
        "http_api",
        "hooks",
        "aws",
        "node",
    }


@pytest.mark.parametrize("each", OPTIONS, ids=lambda each: each.key)
def test_every_default_is_one_of_the_values_it_stands_among(each: Option) -> None:
    assert each.rules.doc
    assert each.kind in ("true or false", "text", "list") or each.rules.maximum is not None
    shown = each.default if each.kind != "duration" else format_duration(each.default)
    assert each.from_file(list(shown) if each.kind == "list" else shown) == each.default


def test_defaults_and_what_development_runs_with_have_no_conflicts() -> None:
    assert list(config_module._conflicts(Config(), {})) == []
    assert list(config_module._conflicts(dev_config(), {})) == []


PERSONAL = "[client]\nsubscribe_to_user_personal_channel = true\n"
OF_ALL = "[channel.without_namespace]\nallow_subscribe_for_client = true\n"
OWN = 'user_personal_channel_namespace = "own"\n[[channel.namespaces]]\nname = "own"\n'
READ = "history_size = 1\nhistory_ttl = '1s'\nallow_history_for_client = true\n"


@pytest.mark.parametrize(
    "text, key",
    [
        (PERSONAL + OF_ALL, "channel.without_namespace.allow_subscribe_for_client"),
        (PERSONAL + OWN + READ, "channel.namespaces[0].allow_history_for_client"),
    ],
)
def test_personal_channels_that_everybody_may_read_stop_the_start(
    tmp_path: Path, text: str, key: str
) -> None:
    told = refusal(write(tmp_path, text))
    assert key in told
    assert "needs allow_user_limited_channels too" in told
    load(write(tmp_path, text + "allow_user_limited_channels = true\n"), {})
    # Nothing is kept from anybody there.
    load(write(tmp_path, text), {"ROOMCAST_CLIENT_INSECURE": "true"})


def test_personal_channels_that_nobody_else_may_read_need_nothing(tmp_path: Path) -> None:
    load(write(tmp_path, PERSONAL + OWN + OF_ALL), {})
    load(write(tmp_path, PERSONAL + OF_ALL.replace("true", "false")), {})


def test_the_documentation_is_complete_and_right() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    section = text.partition("<!-- reference: begin -->\n")[2].partition("<!-- reference: end -->")[
        0
    ]
    assert section.strip() == reference().strip(), (
        'out of date: put what `python -c "from roomcast.config.config import reference; '
        'print(reference())"` prints between the marks'
    )
    # And the table as a reader sees it names every option with its default.
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(.*)` \| .+ \|$", section, re.MULTILINE)
    assert [name for name, _ in rows] == [each.key.rpartition(".")[2] for each in OPTIONS]
    assert [json.loads(default) for _, default in rows] == [
        each.to_file(each.default) for each in OPTIONS
    ]


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"```toml\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL
    )
    assert load(write(tmp_path, example), {}) != Config()


@given(st.integers(0, 400 * 86_400))
def test_a_duration_survives_being_written(duration_s: int) -> None:
    assert config_module._seconds(format_duration(duration_s)) == duration_s


@pytest.mark.parametrize(
    "text, seconds",
    [("300s", 300), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("1d2h3m4s", 93_784)],
)
def test_durations(text: str, seconds: int) -> None:
    assert config_module._seconds(text) == seconds


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    def channel_options() -> ChannelOptions:
        size = draw(st.integers(0, 1000))
        join_leave = draw(st.booleans())
        return ChannelOptions(
            history_size=size,
            history_ttl_s=draw(st.integers(1, 366 * 86_400)) if size else 0,
            force_recovery=bool(size) and draw(st.booleans()),
            presence=draw(st.booleans()),
            join_leave=join_leave,
            force_push_join_leave=join_leave and draw(st.booleans()),
            allow_history_for_client=draw(st.booleans()),
        )

    ping_interval_s = draw(st.floats(1, 3600))
    names = draw(
        st.lists(st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True), unique=True, max_size=3)
    )
    return Config(
        client=ClientConfig(
            insecure=draw(st.booleans()),
            allowed_origins=tuple(
                draw(st.lists(st.sampled_from(["*", "https://a.example", "http://*.b:80"])))
            ),
            ping_interval_s=ping_interval_s,
            pong_timeout_s=min(8.0, ping_interval_s / 2),
            connection_limit=draw(st.integers(0, 10_000_000)),
            publish_rate_limit=draw(st.floats(0, 1_000_000)),
            trusted_proxies=tuple(draw(st.lists(st.ip_addresses().map(str), max_size=3))),
            token=TokenConfig(audience=draw(st.text().filter(str.isprintable))),
        ),
        channel=ChannelRules(channel_options(), {name: channel_options() for name in names}),
        node=NodeConfig(drain_s=draw(st.floats(0, 3600))),
    )


@pytest.mark.parametrize(
    "network", ["10.0.0.0/33", "10.0.0.1/8", "1.2.3", "300.0.0.1", "fd00::/129"]
)
def test_a_trusted_proxy_is_a_network(tmp_path: Path, network: str) -> None:
    text = f"[client]\ntrusted_proxies = ['10.0.0.0/8', '{network}']"
    assert "client.trusted_proxies must be networks" in refusal(write(tmp_path, text))
    good = load(None, {"ROOMCAST_CLIENT_TRUSTED_PROXIES": "10.0.0.0/8, fd00::/8"})
    assert good.client.trusted_proxies == ("10.0.0.0/8", "fd00::/8")


@given(configurations())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_in_effect_means_the_same_when_it_is_loaded_again(
    tmp_path: Path, config: Config
) -> None:
    text = effective_toml(config)
    document = tomllib.loads(text)
    # An array of tables that has none is not written at all.
    document["channel"].setdefault("namespaces", [])
    assert document == effective(config)
    assert load(write(tmp_path, text), {}) == config


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


@given(st.sampled_from(OPTIONS), values)
def test_an_option_takes_a_value_of_its_type_or_refuses(each: Option, value: object) -> None:
    try:
        taken = each.from_file(value)
    except config_module._Wrong:
        return
    assert type(taken) is (int if each.kind == "duration" else type(each.default))
    assert each.from_file(each.to_file(taken)) == taken or each.rules.secret


@given(
    st.sampled_from(OPTIONS),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
def test_any_text_in_a_variable_loads_or_is_refused_in_one_line(each: Option, text: str) -> None:
    try:
        load(None, {each.variable: text})
    except ConfigError as error:
        told = str(error)
    else:
        return
    assert (
        told.startswith(f"environment: {each.variable} ")
        or "needs" in told
        or "must be below" in told
    )
    assert len(told.splitlines()) == 1


@given(st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_in_a_file_loads_or_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "roomcast.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        load(path, {})
    except ConfigError as error:
        told = str(error)
    else:
        return
    assert len(told.splitlines()) == 1
