"""What every Leases guarantees."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from roomcast.fleet.lease_record import Lease, Tombstone
from roomcast.fleet.ports import Leases
from tests.contract.backends import Backend

LEASE = Lease(
    "node-1", "roomcast-node-1", "starting", 1_700_000_000_001, 1_700_000_000_002, 1_700_000_030_003
)
# What a node writes when it knows all about itself.
FULL = replace(
    LEASE,
    state="live",
    canary=7,
    queue_url="https://sqs.example.com/1/roomcast-node-1",
    subscription_arn="arn:aws:sns:eu-west-1:000000000000:topic:1",
    instance="i-1",
    version="1.2.3",
    connections=4,
    channels=5,
    lag_ms=6,
    skew_ms=-7,
    badge="0badcafe",
)
REAPED_AT = 1_700_000_060_000
CLEARED_AT = 1_700_000_061_000


async def stored(leases: Leases) -> Lease:
    [lease] = await leases.all()
    return lease


async def test_every_lease_is_found_as_it_was_written(backend: Backend) -> None:
    leases, other = backend.leases(), replace(FULL, node="node-2", state="draining", expires_at=1)
    await leases.put(LEASE)
    await leases.put(other)
    assert sorted(await backend.leases().all(), key=lambda lease: lease.node) == [LEASE, other]


async def test_a_heartbeat_replaces(backend: Backend) -> None:
    leases, beaten = backend.leases(), replace(FULL, heartbeat_at=LEASE.heartbeat_at + 1)
    await leases.put(LEASE)
    assert await leases.heartbeat(beaten)
    assert list(await leases.all()) == [beaten]


async def test_a_heartbeat_without_a_lease_is_refused_and_writes_nothing(backend: Backend) -> None:
    leases = backend.leases()
    assert not await leases.heartbeat(LEASE)
    assert not await leases.all()


async def test_a_heartbeat_of_a_reaped_node_is_refused(backend: Backend) -> None:
    leases = backend.leases()
    await leases.put(LEASE)
    assert await backend.leases().reap(LEASE, REAPED_AT)
    for beaten in (replace(LEASE, state="live"), replace(LEASE, heartbeat_at=REAPED_AT + 1)):
        assert not await leases.heartbeat(beaten)
    assert await stored(leases) == replace(LEASE, reaped=REAPED_AT)


async def test_a_lease_is_marked_once_and_says_so_again(backend: Backend) -> None:
    leases = backend.leases()
    await leases.put(FULL)
    assert await leases.reap(FULL, REAPED_AT)
    marked = await stored(leases)
    assert marked == replace(FULL, reaped=REAPED_AT)
    for read in (FULL, marked):
        assert await backend.leases().reap(read, REAPED_AT + 1)
    assert await stored(leases) == marked


async def test_a_node_that_beat_meanwhile_is_not_marked(backend: Backend) -> None:
    leases, beaten = backend.leases(), replace(LEASE, heartbeat_at=LEASE.heartbeat_at + 1)
    await leases.put(LEASE)
    assert await leases.heartbeat(beaten)
    assert not await leases.reap(LEASE, REAPED_AT)
    assert await stored(leases) == beaten
    assert await leases.heartbeat(replace(beaten, state="live"))


async def test_of_a_heartbeat_and_a_reaper_one_wins(backend: Backend) -> None:
    leases, beaten = backend.leases(), replace(LEASE, heartbeat_at=LEASE.heartbeat_at + 1)
    for _ in range(10):
        await leases.put(LEASE)
        lives, dead = await asyncio.gather(leases.heartbeat(beaten), leases.reap(LEASE, REAPED_AT))
        assert lives is not dead
        assert await stored(leases) == (beaten if lives else replace(LEASE, reaped=REAPED_AT))


async def test_a_lease_that_is_gone_cannot_be_marked(backend: Backend) -> None:
    leases = backend.leases()
    assert not await leases.reap(LEASE, REAPED_AT)
    assert not await leases.all()


async def test_only_a_marked_lease_becomes_a_tombstone(backend: Backend) -> None:
    leases = backend.leases()
    await leases.put_tombstone(FULL.node, CLEARED_AT)
    assert not await leases.tombstones()
    await leases.put(FULL)
    await leases.put_tombstone(FULL.node, CLEARED_AT)
    assert await stored(leases) == FULL
    assert not await leases.tombstones()
    await leases.reap(FULL, REAPED_AT)
    await leases.put_tombstone(FULL.node, CLEARED_AT)
    assert not await leases.all()
    assert list(await backend.leases().tombstones()) == [Tombstone(FULL.node, "i-1", CLEARED_AT)]
    await leases.put_tombstone(FULL.node, CLEARED_AT + 1)
    assert list(await leases.tombstones()) == [Tombstone(FULL.node, "i-1", CLEARED_AT + 1)]


async def with_tombstone(leases: Leases) -> Tombstone:
    await leases.put(LEASE)
    await leases.reap(LEASE, REAPED_AT)
    await leases.put_tombstone(LEASE.node, CLEARED_AT)
    [tombstone] = await leases.tombstones()
    return tombstone


async def test_who_has_a_tombstone_neither_beats_nor_dies_again(backend: Backend) -> None:
    leases = backend.leases()
    tombstone = await with_tombstone(leases)
    assert not await leases.heartbeat(LEASE)
    assert not await leases.reap(LEASE, REAPED_AT + 1)
    assert not await leases.all()
    assert list(await leases.tombstones()) == [tombstone]


async def test_a_tombstone_that_was_cleared_again_is_not_dropped(backend: Backend) -> None:
    leases = backend.leases()
    tombstone = await with_tombstone(leases)
    await leases.put_tombstone(tombstone.node, CLEARED_AT + 1)
    await leases.drop_tombstone(tombstone)
    [again] = await leases.tombstones()
    assert again.cleared_at == CLEARED_AT + 1
    for _ in range(2):
        await leases.drop_tombstone(again)
        assert not await leases.tombstones()


async def test_a_lease_that_is_written_over_a_tombstone_is_one_like_any_other(
    backend: Backend,
) -> None:
    leases = backend.leases()
    tombstone = await with_tombstone(leases)
    await leases.put(LEASE)
    assert await stored(leases) == LEASE
    assert not await leases.tombstones()
    await leases.drop_tombstone(tombstone)
    assert await leases.heartbeat(LEASE)
    assert await leases.reap(LEASE, REAPED_AT)


async def test_a_tombstone_may_be_dropped_like_a_lease(backend: Backend) -> None:
    leases = backend.leases()
    await leases.drop((await with_tombstone(leases)).node)
    assert not await leases.tombstones()


async def test_an_id_that_is_used_again_is_not_marked(backend: Backend) -> None:
    leases = backend.leases()
    await leases.put(LEASE)
    await leases.reap(LEASE, REAPED_AT)
    await leases.put(await stored(leases))
    assert await stored(leases) == LEASE
    assert await leases.heartbeat(LEASE)


async def test_dropping_is_idempotent(backend: Backend) -> None:
    leases = backend.leases()
    await leases.put(LEASE)
    await leases.drop(LEASE.node)
    await leases.drop(LEASE.node)
    assert not await leases.all()
