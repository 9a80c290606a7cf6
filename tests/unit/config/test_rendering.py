"""service/roomcast/config/rendering.py: what is shown of a configuration, and the documentation."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from docs.options import BEGIN, END, PAGE, with_tables
from roomcast.config import (
    CONSUMER_OPTIONS,
    MASK,
    OPTIONS,
    AwsSqsConfig,
    ClientConfig,
    Config,
    ConsumerConfig,
    NodeConfig,
    PublicationDataModeConfig,
    TokenConfig,
    effective,
    effective_toml,
    load,
)
from roomcast.config.rendering import documented
from roomcast.wire.channels import ChannelOptions, ChannelRules
from tests.unit.config.files import write

DOCUMENTED = (*OPTIONS, *CONSUMER_OPTIONS)


def test_secrets_are_masked_wherever_a_configuration_is_shown() -> None:
    secretive = Config(client=ClientConfig(token=TokenConfig(hmac_secret_key="hush-hush")))
    for shown in (repr(secretive), json.dumps(effective(secretive)), effective_toml(secretive)):
        assert "hush" not in shown
    assert effective(secretive)["client"]["token"]["hmac_secret_key"] == MASK
    assert effective(Config())["client"]["token"]["hmac_secret_key"] == ""


def test_the_documentation_is_complete_and_right() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_tables(text), "out of date: run python -m docs.options"
    section = text.partition(BEGIN)[2].partition(END)[0]
    # And the table as a reader sees it names every option with its default.
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(.*)` \| .+ \|$", section, re.MULTILINE)
    options = documented()
    assert [name for name, _ in rows] == [each.key.rpartition(".")[2] for each in options]
    assert [json.loads(default) for _, default in rows] == [
        each.to_file(each.default) for each in options
    ]
    # Tables that are alike are described once.
    described = {(each.key.rpartition(".")[2], each.rules) for each in options}
    assert {
        (each.key.rpartition(".")[2], each.rules) for each in (*OPTIONS, *CONSUMER_OPTIONS)
    } == described


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert load(write(tmp_path, example), {}) != Config()


def consumers() -> st.SearchStrategy[tuple[ConsumerConfig, ...]]:
    one = st.builds(
        ConsumerConfig,
        name=st.just("orders"),
        enabled=st.booleans(),
        type=st.just("aws_sqs"),
        aws_sqs=st.builds(
            AwsSqsConfig,
            queues=st.just(("https://sqs.eu-central-1.amazonaws.com/123456789012/orders.fifo",)),
            sns_envelope=st.booleans(),
            visibility_timeout_s=st.integers(5, 43_200),
            publication_data_mode=st.builds(
                PublicationDataModeConfig,
                enabled=st.booleans(),
                tags_attribute_prefix=st.sampled_from(["", "tag."]),
            ),
        ),
    )
    return st.lists(one, max_size=1).map(tuple)


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
        consumers=draw(consumers()),
    )


@given(configurations())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_in_effect_means_the_same_when_it_is_loaded_again(
    tmp_path: Path, config: Config
) -> None:
    text = effective_toml(config)
    document = tomllib.loads(text)
    # An array of tables that has none is not written at all.
    document["channel"].setdefault("namespaces", [])
    document.setdefault("consumers", [])
    document.setdefault("proxies", [])
    assert document == effective(config)
    assert load(write(tmp_path, text), {}) == config
