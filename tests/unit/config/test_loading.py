"""service/roomcast/config/loading.py: options from a file and the environment, and their errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roomcast.config import (
    OPTIONS,
    AwsConfig,
    ClientConfig,
    Config,
    ConfigError,
    NodeConfig,
    Option,
    TokenConfig,
    dev_config,
    load,
)
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.config.files import refusal, write

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
        "ROOMCAST_NODE_GAP_WAIT_MS": "700",
    }
    loaded = load(write(tmp_path, FULL), environ)
    assert not loaded.client.insecure
    assert loaded.client.allowed_origins == ("https://c.example", "*")
    assert loaded.client.token == TokenConfig(hmac_secret_key="other", audience="chat")
    assert loaded.channel.without_namespace == ChannelOptions(history_size=10, history_ttl_s=43_200)
    assert loaded.node == NodeConfig(lease_ttl_s=99.5, heartbeat_s=7.5, gap_wait_ms=700)
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


CONSUMERS = """
[[consumers]]
name = "orders"
enabled = true
type = "aws_sqs"
[consumers.aws_sqs]
queues = ["https://sqs.eu-west-1.amazonaws.com/123456789012/orders.fifo"]
visibility_timeout = "1m"
[consumers.aws_sqs.publication_data_mode]
enabled = true
[[consumers]]
name = "mails"
type = "aws_sqs"
"""


def test_consumers_come_from_the_file_or_from_one_variable(tmp_path: Path) -> None:
    orders, mails = load(write(tmp_path, CONSUMERS), {}).consumers
    assert orders.enabled
    assert not mails.enabled
    assert orders.aws_sqs.queues[0].endswith("orders.fifo")
    assert orders.aws_sqs.visibility_timeout_s == 60
    assert orders.aws_sqs.publication_data_mode.enabled
    assert mails.aws_sqs.wait_time_time_s == 20
    variable = json.dumps([{"name": "other", "type": "aws_sqs"}])
    (other,) = load(write(tmp_path, CONSUMERS), {"ROOMCAST_CONSUMERS": variable}).consumers
    assert other.name == "other"
    assert len(load(write(tmp_path, CONSUMERS), {"ROOMCAST_CONSUMERS": ""}).consumers) == 2
    secret = json.dumps({"ROOMCAST_CONSUMERS": variable})
    assert load(None, {"ROOMCAST_SECRET": secret}).consumers == (other,)


@pytest.mark.parametrize(
    "text, message",
    [
        ("no", "environment: ROOMCAST_CONSUMERS is not JSON"),
        ('{"name": "a"}', "environment: ROOMCAST_CONSUMERS: consumers must be tables"),
        (json.dumps([{}] * 17), "consumers must be at most 16 tables; found 17"),
        ('[{"nmae": "a"}]', "consumers[0].nmae is not an option (did you mean consumers.name?)"),
        ('[{"name": "a-b"}]', "consumers[0].name must be 2 to 64 letters, digits or _"),
        ('[{"type": "kafka"}]', "consumers[0].type must be `aws_sqs`; found 'kafka'"),
        ('[{"aws_sqs": 1}]', "consumers[0].aws_sqs must be a table; found 1"),
        ('[{"aws_sqs": {"queues": ["orders"]}}]', "must be a list of URLs such as"),
        ('[{"aws_sqs": {"queues": ["https://a:b@c/1/d"]}}]', "consumers[0].aws_sqs.queues must be"),
        ('[{"aws_sqs": {"visibility_timeout": "13h"}}]', "a duration such as"),
    ],
)
def test_a_wrong_consumer_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(None, {"ROOMCAST_CONSUMERS": text})
    assert message in str(raised.value)
    assert "a:b@" not in str(raised.value)


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
                "[[channel.namespaces]]\nname = 'a'\n"
                "[[channel.namespaces]]\nname = 'b'\npresense = true"
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
    path.write_text("a = " + "9" * 10_000)
    assert refusal(path).startswith(f"{path}: not valid TOML")


@pytest.mark.parametrize("number", [f"0x{'f' * 5000}", f"[0x{'f' * 5000}]"])
def test_a_number_that_python_does_not_write(tmp_path: Path, number: str) -> None:
    path = write(tmp_path, f"[client]\nchannel_limit = {number}\n")
    assert refusal(path) == (
        f"{path}, line 2: client.channel_limit must be a whole number from 1 to 10000; "
        "found a number that is too long to show"
    )


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


def test_a_secret_in_one_variable_is_as_good_as_its_variables_one_by_one() -> None:
    secret = {"ROOMCAST_HTTP_API_KEY": 'a key, $ " and all', "ROOMCAST_NODE_DRAIN_S": "20"}
    environ = {"ROOMCAST_SECRET": json.dumps(secret), "ROOMCAST_NODE_DRAIN_S": "30"}
    config = load(None, environ)
    assert (config.http_api.key, config.node.drain_s) == (secret["ROOMCAST_HTTP_API_KEY"], 20.0)
    assert load(None, {"ROOMCAST_SECRET": ""}) == load(None, {})


@pytest.mark.parametrize(
    "secret, said",
    [
        ("hush", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('["hush"]', "is not an object"),
        ('{"PATH": "hush"}', "PATH in ROOMCAST_SECRET is not an option"),
        ('{"ROOMCAST_CONFIG": "hush"}', "ROOMCAST_CONFIG in ROOMCAST_SECRET is not an option"),
        (
            '{"ROOMCAST_HTTP_API_KEYS": "hush"}',
            "is not an option (did you mean ROOMCAST_HTTP_API_KEY?)",
        ),
        ('{"ROOMCAST_HTTP_API_KEY": ["hush"]}', "is not text"),
    ],
)
def test_a_secret_that_is_wrong_is_refused_and_not_told(secret: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        load(None, {"ROOMCAST_SECRET": secret})
    assert "hush" not in str(refused.value)


def test_the_example_of_a_binary_namespace(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "payloads.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert load(write(tmp_path, example), {}).channel.is_binary("sensors:3")


@pytest.mark.parametrize("found", ["Binary", "json ", "xml", "null"])
def test_a_format_of_publications_that_is_not_known(tmp_path: Path, found: str) -> None:
    text = f'[channel.without_namespace]\npublication_data_format = "{found}"'
    assert "must be `json`, `json_object`, `binary`, or nothing" in refusal(write(tmp_path, text))
    name = "ROOMCAST_CHANNEL_WITHOUT_NAMESPACE_PUBLICATION_DATA_FORMAT"
    assert load(None, {name: "binary"}).channel.is_binary("room")
    assert not load(None, {name: ""}).channel.is_binary("room")
