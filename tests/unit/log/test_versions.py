"""service/roomcast/log/versions.py: what is stale, and how items and heads carry the newest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.log.item import Head, LogItem, MalformedItem, parse_head, parse_log_item
from roomcast.log.rules import (
    MIN_RETENTION_MS,
    Pending,
    Tail,
    append_item,
    head_tail,
    item_tail,
    next_head,
)
from roomcast.log.versions import fresh, is_stale
from roomcast.wire.versions import VERSION_MAX, Version, version_of
from tests.contract.items import log_item

NOW = 1_700_000_000_000
LATER_S = NOW // 1000 + 90_000

VERSIONS = st.builds(
    Version, st.integers(1, 6) | st.just(VERSION_MAX), st.sampled_from(["", "a", "b"])
)


@pytest.mark.parametrize(
    "version, newest, stale",
    [
        # As Centrifugo's memory and Redis brokers do.
        (Version(5), None, False),
        (None, Version(5), False),
        (Version(5), Version(5), True),
        (Version(4), Version(5), True),
        (Version(6), Version(5), False),
        (Version(4, "a"), Version(5, "a"), True),
        (Version(4, "b"), Version(5, "a"), False),
        (Version(4, ""), Version(5, "a"), True),
        (Version(4, "a"), Version(5, ""), False),
        (Version(6, ""), Version(5, "a"), False),
    ],
)
def test_what_is_stale(version: Version | None, newest: Version | None, stale: bool) -> None:
    assert is_stale(version, newest) is stale


@given(st.lists(st.none() | VERSIONS), st.none() | VERSIONS)
def test_an_append_is_decided_publication_by_publication(
    versions: list[Version | None], newest: Version | None
) -> None:
    kept, after = fresh(versions, newest)
    for version, keep in zip(versions, kept, strict=True):
        assert keep is not is_stale(version, newest)
        newest = version if keep and version else newest
    assert after == newest


def test_number_0_is_none() -> None:
    """So say publishers without versions."""
    assert version_of(0, "a") is None
    assert version_of(1, "") == Version(1)


# ---- in the table


def head(version: Version | None, floor: int = 3) -> Head:
    return Head("c", "0.e", floor, NOW + MIN_RETENTION_MS, 0, "v", LATER_S, version)


def item(version: Version | None, last: int = 3) -> LogItem:
    return LogItem("c", last, last, "0.e", "[{}]", "b", "n", NOW, LATER_S, None, version)


@given(st.none() | VERSIONS)
def test_items_and_heads_keep_it(version: Version | None) -> None:
    for each in (item(version), head(version)):
        attributes = each.attributes()
        # An item grows only where there are versions.
        assert ("newest_version" in attributes) is (version is not None)
        assert ("newest_version_epoch" in attributes) is bool(version and version.epoch)
    assert parse_log_item(item(version).attributes()) == item(version)
    assert parse_head(head(version).attributes()) == head(version)


@pytest.mark.parametrize("number", ["0", "-1", str(VERSION_MAX + 1), "x"])
def test_a_broken_one_is_not_passed_over(number: str) -> None:
    broken = item(None).attributes() | {"newest_version": {"N": number}}
    with pytest.raises(MalformedItem):
        parse_log_item(broken)


def test_an_append_carries_it_on() -> None:
    tail = Tail("0.e", 3, NOW + 1, 0, Version(7, "a"))
    pending = [Pending.of("{}")]
    kept = append_item("c", tail, pending, batch="b", node="n", now=NOW, history_ttl_ms=0)
    assert kept.newest_version == Version(7, "a")
    newer = append_item(
        "c",
        tail,
        pending,
        batch="b",
        node="n",
        now=NOW,
        history_ttl_ms=0,
        newest_version=Version(8, "a"),
    )
    assert newer.newest_version == Version(8, "a")
    found = item_tail(newer, NOW, "0")
    assert found is not None
    assert found.newest_version == Version(8, "a")


@pytest.mark.parametrize(
    "by_head, by_item, last, told",
    [
        # A head that was renewed, or hides all, is as new as the newest item.
        (Version(7), Version(7), 3, Version(7)),
        (Version(8), Version(7), 2, Version(8)),
        # What no release with versions wrote has none: an older one is better than none.
        (None, Version(7), 2, Version(7)),
        (Version(8), None, 2, Version(8)),
        (None, None, 3, None),
    ],
)
def test_a_head_tells_it(
    by_head: Version | None, by_item: Version | None, last: int, told: Version | None
) -> None:
    tail = head_tail(head(by_head), item(by_item, last), NOW, "0")
    assert tail is not None
    assert tail.newest_version == told


@pytest.mark.parametrize("epoch", ["0.e", "0.next"])
def test_a_head_that_is_renewed_hides_or_rotates_carries_it(epoch: str) -> None:
    newest = item(Version(9, "a"), last=5)
    for before in (None, head(Version(7, "a"))):
        after = next_head("c", before, newest, epoch=epoch, version="w", read_at=NOW, trim=5)
        assert after.newest_version == Version(9, "a")
    assert next_head(
        "c", head(Version(7)), None, epoch=epoch, version="w", read_at=NOW
    ).newest_version == Version(7)
    old = log_item(5)
    assert old.newest_version is None, "written by a release without versions"
    assert next_head("c", head(Version(7)), old, epoch=epoch, version="w", read_at=NOW)
