"""service/roomcast/wire/channels.py: which names a channel can have, and whose options are its."""

from __future__ import annotations

import string
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.wire.channels import ChannelOptions, ChannelOverride, ChannelRules
from roomcast.wire.codes import Error
from roomcast.wire.names import (
    CHANNEL_BYTES_MAX,
    RESERVED_PREFIX,
    is_valid_name,
    listed_users,
    personal_channel,
)

PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " "
PLAIN, CHAT, FEED = ChannelOptions(), ChannelOptions(presence=True), ChannelOptions(join_leave=True)
RULES = ChannelRules(PLAIN, {"chat": CHAT, "feed": FEED})


@given(st.text(PRINTABLE, min_size=1, max_size=CHANNEL_BYTES_MAX))
def test_printable_ascii_is_a_name(name: str) -> None:
    assert is_valid_name(name)


@given(st.text(PRINTABLE, max_size=20), st.characters().filter(lambda char: char not in PRINTABLE))
def test_any_other_character_spoils_it(name: str, character: str) -> None:
    assert not is_valid_name(name + character)
    assert not is_valid_name(character + name)


def test_names_are_bounded() -> None:
    assert is_valid_name("x" * 255)
    assert not is_valid_name("x" * 256)
    assert not is_valid_name("")


@pytest.mark.parametrize(
    "channel, is_taken",
    [
        ("chat:1", True),
        ("$chat:22", True),
        ("chat:", False),
        ("chat:x", False),
        ("chat:1:2", False),
        ("chat:chat:1", False),
        ("7", True),
        ("$7", False),
        ("x", False),
    ],
)
def test_names_may_have_to_match_an_expression(channel: str, is_taken: bool) -> None:
    """Without the namespace, and where there is none with all before it: as Centrifugo has it."""
    options = ChannelOptions(channel_regex="^[0-9]+$")
    rules = ChannelRules(options, {"chat": options})
    assert options.takes_name(channel) == is_taken
    assert rules.find(channel) == (options if is_taken else Error.BAD_REQUEST)
    assert rules.options(channel) == options, "the server's own names are not looked at"


@given(st.text(PRINTABLE, max_size=20))
def test_no_client_can_name_a_reserved_channel(name: str) -> None:
    assert not is_valid_name(RESERVED_PREFIX + name)


@pytest.mark.parametrize(
    "channel, options",
    [
        ("lobby", PLAIN),
        ("$lobby", PLAIN),
        ("chat", PLAIN),
        ("chat:", CHAT),
        ("chat:1", CHAT),
        ("chat:1:2", CHAT),
        ("$chat:1", CHAT),
        ("feed:x", FEED),
        ("Chat:1", None),
        (" chat:1", None),
        ("$$chat:1", None),
        (":1", None),
        ("$:1", None),
        ("chat2:1", None),
        ("1:chat:1", None),
    ],
)
def test_the_first_separator_ends_the_namespace(
    channel: str, options: ChannelOptions | None
) -> None:
    assert RULES.options(channel) is options


@pytest.mark.parametrize(
    "size, ttl_s, has", [(0, 0, False), (1, 0, False), (0, 1, False), (1, 1, True)]
)
def test_history_needs_a_size_and_a_time(size: int, ttl_s: int, has: bool) -> None:
    assert ChannelOptions(history_size=size, history_ttl_s=ttl_s).has_history is has


def test_everything_is_off_until_it_is_switched_on() -> None:
    options = ChannelOptions()
    switches = set(ChannelOptions.__slots__) - {"presence_shards", "force_recovery_mode"}
    assert not any(getattr(options, name) for name in switches)
    assert options.presence_shards == 1
    assert not options.recovers_newest
    assert ChannelRules().options("a") == options
    assert ChannelRules().options("a:b") is None


def test_an_override_changes_what_it_names_and_nothing_else() -> None:
    options = ChannelOptions(
        history_size=5, history_ttl_s=60, presence=True, allow_publish_for_client=True
    )
    assert ChannelOverride().over(options) is options
    changed = ChannelOverride(presence=False, force_recovery=True).over(options)
    assert changed == replace(options, presence=False, force_recovery=True)
    for each in fields(ChannelOverride):
        for value in (False, True):
            over = ChannelOverride(**{each.name: value}).over(ChannelOptions())
            said: dict[str, Any] = {each.name: value}
            assert over == replace(ChannelOptions(), **said)


@pytest.mark.parametrize(
    "channel, users",
    [
        ("dialogue", None),
        ("dialogue#ann,bob", {"ann", "bob"}),
        ("ns:dialogue#ann", {"ann"}),
        ("a#b#c", {"c"}),
        ("#ann", {"ann"}),
        ("dialogue#", {""}),
    ],
)
def test_the_name_of_a_user_limited_channel_lists_its_users(
    channel: str, users: set[str] | None
) -> None:
    assert listed_users(channel) == (None if users is None else frozenset(users))


@pytest.mark.parametrize(
    "user, namespace, channel",
    [
        ("ann", "", "#ann"),
        ("ann", "alerts", "alerts:#ann"),
        ("a b", "", "#a b"),
        ("a:b", "alerts", "alerts:#a:b"),
        ("a:b", "", None),
        ("", "", None),
        ("", "alerts", None),
        ("ann,bob", "", None),
        ("ann#bob", "alerts", None),
        ("Zoë", "", None),
        ("x" * 254, "", "#" + "x" * 254),
        ("x" * 255, "", None),
    ],
)
def test_a_personal_channel_is_for_one_user_or_there_is_none(
    user: str, namespace: str, channel: str | None
) -> None:
    assert personal_channel(user, namespace) == channel
    if channel is not None:
        assert listed_users(channel) == frozenset([user])


def test_a_channel_is_express_by_its_namespace() -> None:
    rules = ChannelRules(namespaces={"fast": ChannelOptions(express=True)})
    assert [rules.is_express(name) for name in ("fast:a", "$fast:a", "a", "other:a")] == [
        True,
        True,
        False,
        False,
    ]
    assert rules.has_express
    assert not ChannelRules().has_express
    assert ChannelRules(ChannelOptions(express=True)).has_express


def test_what_may_be_published_by_the_format() -> None:
    values = [b"", b"{}", {}, {"a": 1}, [], "{}", 1, None]
    taken = {
        "": values[2:],
        "json": values[2:],
        "json_object": values[2:4],
        "binary": values[:2],
        # A name that no configuration can have takes nothing.
        "xml": [],
    }
    for name, expected in taken.items():
        options = ChannelOptions(publication_data_format=name)
        assert [value for value in values if options.takes(value)] == expected, name
        assert options.is_binary == (name == "binary")


def test_a_channel_is_binary_by_its_namespace() -> None:
    rules = ChannelRules(namespaces={"bin": ChannelOptions(publication_data_format="binary")})
    assert rules.is_binary("bin:room")
    assert not rules.is_binary("room")
    assert not rules.is_binary("unknown:room")
