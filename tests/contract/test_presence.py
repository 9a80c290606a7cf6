"""What every Presence guarantees."""

from __future__ import annotations

import asyncio

from service.core.publication import ClientInfo
from service.ports import Member
from tests.contract.backends import Backend


def member(client: str, *, node: str = "node-1", user: str = "ann") -> Member:
    return Member(node, ClientInfo(user, client, {"name": "Änn\n😀"}, ["#"]))


async def test_members_of_all_nodes_are_found(backend: Backend) -> None:
    here, there = backend.presence(), backend.presence()
    members = [member("c1"), member("c2", user="bob"), member("c1", node="node-2")]
    await here.add("room", members[0])
    await here.add("room", members[1])
    await there.add("room", members[2])
    await there.add("room#2", member("c9", node="node-2"))
    for presence in (here, there):
        assert sorted(await presence.members("room"), key=repr) == sorted(members, key=repr)


async def test_nobody_is_in_an_unknown_channel(backend: Backend) -> None:
    assert not await backend.presence().members("room")


async def test_a_member_without_info(backend: Backend) -> None:
    presence, plain = backend.presence(), Member("node-1", ClientInfo("", "c1"))
    await presence.add("room", plain)
    assert list(await presence.members("room")) == [plain]


async def test_adding_again_replaces(backend: Backend) -> None:
    presence = backend.presence()
    await presence.add("room", member("c1", user="ann"))
    await presence.add("room", member("c1", user="bob"))
    assert list(await presence.members("room")) == [member("c1", user="bob")]


async def test_removing_is_idempotent_and_leaves_the_others(backend: Backend) -> None:
    presence = backend.presence()
    await presence.add("room", member("c1"))
    await presence.add("room", member("c2"))
    await presence.remove("room", member("c1"))
    await presence.remove("room", member("c1"))
    await presence.remove("elsewhere", member("c1"))
    assert list(await presence.members("room")) == [member("c2")]
    await presence.remove("room", member("c2"))
    assert not await presence.members("room")


async def test_another_process_may_remove(backend: Backend) -> None:
    await backend.presence().add("room", member("c1"))
    other = backend.presence()
    await other.remove("room", member("c1"))
    assert not await other.members("room")


async def test_many_at_once(backend: Backend) -> None:
    presence = backend.presence()
    members = [member(f"c{number:02}") for number in range(40)]
    await asyncio.gather(*(presence.add("room", one) for one in members))
    await asyncio.gather(*(presence.remove("room", one) for one in members[1:]))
    assert list(await presence.members("room")) == members[:1]
