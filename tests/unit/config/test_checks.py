"""service/roomcast/config/checks.py: options that are fine alone and not together."""

from __future__ import annotations

from pathlib import Path

import pytest

from roomcast.config import (
    Config,
    dev_config,
    load,
)
from roomcast.config.checks import conflicts
from tests.unit.config.files import refusal, write

CONSUMER = "[[consumers]]\nname = 'orders'\nenabled = true\ntype = 'aws_sqs'\n"
QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders"
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
            (
                "[aws]\ntopic_shards = 2\n"
                f"topic_arn = 'arn:aws:sns:eu-west-1:123456789012:{'t' * 248}'"
            ),
            "line 2: aws.topic_shards needs a topic whose name has at most 247 characters",
        ),
        ("[[consumers]]\ntype = 'aws_sqs'", "line 1: consumers[0] needs a name"),
        ("[[consumers]]\nname = 'ab'", "line 1: consumers[0] needs a type"),
        (
            "[[consumers]]\nname = 'orders'\ntype = 'aws_sqs'\n" * 2,
            "line 5: consumers[1].name must differ from the others; found 'orders'",
        ),
        (CONSUMER, "line 1: consumers[0].aws_sqs.queues needs at least one URL"),
        (
            f"{CONSUMER}[consumers.aws_sqs]\nqueues = [{', '.join([repr(QUEUE)] * 2)}]",
            "consumers[0].aws_sqs.queues has a queue twice",
        ),
        (
            f"{CONSUMER}[consumers.aws_sqs]\nqueues = {[f'{QUEUE}{n}' for n in range(17)]}",
            "consumers must have at most 16 queues in all; found 17",
        ),
        (
            (
                f"{CONSUMER}aws_sqs.queues = ['{QUEUE}']\n"
                "aws_sqs.publication_data_mode = {enabled = true, channels_attribute = ''}"
            ),
            "consumers[0].aws_sqs.publication_data_mode.channels_attribute must not be empty",
        ),
        (
            "[server.tls]\ncert_file = 'c.pem'",
            "line 2: server.tls.cert_file needs server.tls.key_file too",
        ),
        (
            "[server]\ninternal_port = 9000\n[server.internal_tls]\nkey_file = 'k.pem'",
            "line 4: server.internal_tls.key_file needs server.internal_tls.cert_file too",
        ),
        (
            "[server]\ninternal_address = '127.0.0.1'",
            "line 2: server.internal_address needs server.internal_port too",
        ),
        (
            "[server.internal_tls]\ncert_file = 'c.pem'\nkey_file = 'k.pem'",
            "line 2: server.internal_tls.cert_file needs server.internal_port too",
        ),
        (
            "[server]\ntls_external = true",
            "line 2: server.tls_external needs server.internal_port too",
        ),
        (
            "[server]\ninternal_port = 9000\ntls_external = true",
            "line 3: server.tls_external needs server.tls.cert_file and server.tls.key_file",
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
            "[channel.without_namespace]\nexpress = true",
            "line 2: channel.without_namespace.express needs history_size and history_ttl",
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
            "[client]\npong_timeout_s = 0.5\nwrite_delay = '500ms'",
            "line 3: client.write_delay must be below client.pong_timeout_s (0.5 s)",
        ),
        (
            (
                f"[channel.without_namespace]\n{HISTORY}force_recovery = true\n"
                "auto_cache_recover = true"
            ),
            "auto_cache_recover needs force_recovery and force_recovery_mode",
        ),
        (
            (
                f"[channel.without_namespace]\n{HISTORY}force_recovery_mode = 'cache'\n"
                "auto_cache_recover = true"
            ),
            "auto_cache_recover needs force_recovery and force_recovery_mode",
        ),
        (
            "[channel.without_namespace]\nforce_recovery_mode = 'newest'",
            "line 2: channel.without_namespace.force_recovery_mode must be `stream` or `cache`",
        ),
        (
            "[channel.without_namespace]\nbatch_max_size = 10",
            "line 2: channel.without_namespace.batch_max_size needs batch_max_delay",
        ),
        (
            "[[channel.namespaces]]\nname = 'a'\nbatch_flush_latest = true",
            "channel.namespaces[0].batch_flush_latest needs batch_max_delay",
        ),
        (
            (
                f"[[channel.namespaces]]\nname = 'a'\n{HISTORY}force_recovery = true\n"
                "[[channel.namespaces]]\nname = 'b'\nforce_recovery = true"
            ),
            "line 8: channel.namespaces[1].force_recovery needs history_size and history_ttl",
        ),
        (
            "[client]\nuser_personal_single_connection = true",
            (
                "line 2: client.user_personal_single_connection needs "
                "client.subscribe_to_user_personal_channel"
            ),
        ),
        (
            "[client.token]\nhmac_previous_secret_key_valid_until = 1700000000",
            "hmac_previous_secret_key_valid_until needs client.token.hmac_previous_secret_key",
        ),
        (
            "[client.subscription_token]\nenabled = true",
            "line 2: client.subscription_token.enabled needs a key",
        ),
        (
            f"[client.subscription_token]\nhmac_secret_key = '{'k' * 32}'",
            "client.subscription_token.enabled must be true",
        ),
        (
            "[client.token]\nissuer = 'us'\nissuer_regex = 'us|them'",
            "line 3: client.token.issuer_regex cannot be together with client.token.issuer",
        ),
        (
            "[client.token]\naudience = 'us'\naudience_regex = 'us|them'",
            "line 3: client.token.audience_regex cannot be together with client.token.audience",
        ),
        (
            "[client.token]\nissuer_regex = '('\njwks_public_endpoint = 'https://{{t}}.example/'",
            "client.token.issuer_regex must be a regular expression of RE2; found '(': missing )",
        ),
        (
            (
                "[client.token]\nissuer_regex = '(?P<t>.+)'\n"
                "jwks_public_endpoint = 'https://{{t}}.example/'"
            ),
            "line 3: client.token.jwks_public_endpoint needs a group t that lists its values",
        ),
        (
            "[[channel.namespaces]]\nname = 'a'\nchannel_regex = '(?=a)'",
            "channel.namespaces[0].channel_regex must be a regular expression of RE2",
        ),
        (
            "[channel.without_namespace]\nchannel_regex = '(x?){900}'",
            "too large",
        ),
        ("[aws]\nlaunch_hook = 'h'", "line 2: aws.launch_hook needs aws.autoscaling_group"),
        ("[aws]\nterminate_hook = 'h'", "line 2: aws.terminate_hook needs aws.autoscaling_group"),
        (
            "[node]\nlifecycle_poll_s = 0\n[aws]\nautoscaling_group = 'g'\nlaunch_hook = 'h'",
            "line 5: aws.launch_hook needs a node.lifecycle_poll_s above 0",
        ),
        (
            "[node]\nlifecycle_poll_s = 0\n[aws]\nautoscaling_group = 'g'\nterminate_hook = 'h'",
            "line 5: aws.terminate_hook needs a node.lifecycle_poll_s above 0",
        ),
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


def test_defaults_and_what_development_runs_with_have_no_conflicts() -> None:
    assert list(conflicts(Config(), {})) == []
    assert list(conflicts(dev_config(), {})) == []


PERSONAL = "[client]\nsubscribe_to_user_personal_channel = true\n"


OF_ALL = "[channel.without_namespace]\nallow_subscribe_for_client = true\n"


OWN = 'user_personal_channel_namespace = "own"\n[[channel.namespaces]]\nname = "own"\n'


WRITE = "allow_publish_for_client = true\n"
SEE = "presence = true\nallow_presence_for_client = true\n"
READ = "history_size = 1\nhistory_ttl = '1s'\nallow_history_for_client = true\n"


@pytest.mark.parametrize(
    "text, key",
    [
        (PERSONAL + OF_ALL, "channel.without_namespace.allow_subscribe_for_client"),
        (PERSONAL + OWN + READ, "channel.namespaces[0].allow_history_for_client"),
        (PERSONAL + OWN + WRITE, "channel.namespaces[0].allow_publish_for_client"),
        (PERSONAL + OWN + SEE, "channel.namespaces[0].allow_presence_for_client"),
    ],
)
def test_personal_channels_that_everybody_may_use_stop_the_start(
    tmp_path: Path, text: str, key: str
) -> None:
    told = refusal(write(tmp_path, text))
    assert key in told
    assert "needs allow_user_limited_channels too" in told
    load(write(tmp_path, text + "allow_user_limited_channels = true\n"), {})
    # Nothing is kept from anybody there.
    load(write(tmp_path, text), {"ROOMCAST_CLIENT_INSECURE": "true"})


def test_personal_channels_that_nobody_else_may_use_need_nothing(tmp_path: Path) -> None:
    load(write(tmp_path, PERSONAL + OWN + OF_ALL), {})
    # Who is in them: the user alone.
    load(write(tmp_path, PERSONAL + OWN + WRITE.replace("client", "subscriber")), {})
    load(write(tmp_path, PERSONAL + OF_ALL.replace("true", "false")), {})


@pytest.mark.parametrize(
    "network", ["10.0.0.0/33", "10.0.0.1/8", "1.2.3", "300.0.0.1", "fd00::/129"]
)
def test_a_trusted_proxy_is_a_network(tmp_path: Path, network: str) -> None:
    text = f"[client]\ntrusted_proxies = ['10.0.0.0/8', '{network}']"
    assert "client.trusted_proxies must be networks" in refusal(write(tmp_path, text))
    good = load(None, {"ROOMCAST_CLIENT_TRUSTED_PROXIES": "10.0.0.0/8, fd00::/8"})
    assert good.client.trusted_proxies == ("10.0.0.0/8", "fd00::/8")
