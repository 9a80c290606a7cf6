"""What every Leases guarantees."""

from __future__ import annotations

from dataclasses import replace

from service.ports import Lease
from tests.contract.backends import Backend

LEASE = Lease(
    "node-1", "roomcast-node-1", "starting", 1_700_000_000_001, 1_700_000_000_002, 1_700_000_030_003
)


async def test_every_lease_is_found_as_it_was_written(backend: Backend) -> None:
    leases, other = backend.leases(), replace(LEASE, node="node-2", state="draining", expires_at=1)
    await leases.put(LEASE)
    await leases.put(other)
    assert sorted(await backend.leases().all(), key=lambda lease: lease.node) == [LEASE, other]


async def test_a_heartbeat_replaces(backend: Backend) -> None:
    leases, beaten = backend.leases(), replace(LEASE, state="live", heartbeat_at=LEASE.heartbeat_at + 1)
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
    await backend.mark_reaped(LEASE.node)
    assert not await leases.heartbeat(replace(LEASE, state="live"))
    assert list(await leases.all()) == [LEASE]


async def test_dropping_is_idempotent(backend: Backend) -> None:
    leases = backend.leases()
    await leases.put(LEASE)
    await leases.drop(LEASE.node)
    await leases.drop(LEASE.node)
    assert not await leases.all()
