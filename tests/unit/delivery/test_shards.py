"""Which channel belongs to which topic shard, and where its records go."""

from __future__ import annotations

from collections import Counter
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from roomcast.config.options import TOPIC_SHARDS_MAX
from roomcast.delivery.canary_rules import CANARY_CHANNEL
from roomcast.delivery.shards import SHARDS_MAX, homes, is_for_all, shard_of, topic_arns, topic_of
from roomcast.delivery.signals import HELLO_CHANNEL

TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:roomcast-topic"
NUMBERS: Final = st.integers(1, SHARDS_MAX)


def test_the_topic_shard_of_a_channel_never_changes() -> None:
    """Releases mix, and applications compute it too: CRC-32 of the name, modulo the number."""
    assert [shard_of(channel, 16) for channel in ("lobby", "chat:1", "chat:2", "")] == [7, 2, 8, 0]


@given(st.text(max_size=30), NUMBERS)
def test_every_channel_has_a_topic_shard(channel: str, shards: int) -> None:
    assert shard_of(channel, shards) in range(shards)


def test_channels_are_spread_evenly() -> None:
    counts = Counter(shard_of(f"room:{number}", 16) for number in range(16_000))
    assert len(counts) == 16
    assert max(counts.values()) < 1.2 * 1000


@given(st.text(min_size=1, max_size=30), NUMBERS)
def test_a_record_goes_to_one_topic_unless_it_is_for_all(channel: str, shards: int) -> None:
    if shards == 1:
        assert homes(channel, shards) == (None,)
    elif is_for_all(channel):
        assert homes(channel, shards) == (None, *range(shards))
    else:
        assert homes(channel, shards) == (shard_of(channel, shards),)


def test_what_every_node_reads_is_for_all() -> None:
    assert is_for_all(CANARY_CHANNEL)
    assert is_for_all(HELLO_CHANNEL)
    assert not is_for_all("lobby")


def test_the_topics_are_named_after_the_base_topic() -> None:
    assert topic_arns(TOPIC, 1) == (TOPIC,)
    assert topic_arns(TOPIC, 2) == (TOPIC, f"{TOPIC}-shard-0", f"{TOPIC}-shard-1")
    assert topic_of(TOPIC, None) == TOPIC
    assert topic_of(TOPIC, 15) == f"{TOPIC}-shard-15"


def test_as_many_can_be_configured_as_there_may_be() -> None:
    assert TOPIC_SHARDS_MAX == SHARDS_MAX
