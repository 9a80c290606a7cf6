"""drain: what the API makes of the order to one node. (info: test_channels.py.)"""

from __future__ import annotations

import pytest

from roomcast.fleet.drain_signals import Drains
from roomcast.fleet.mailbox import NodeUnknown
from roomcast.log.appender import Full
from roomcast.ports import Rejected, UnknownOutcome
from tests.unit.gateway.api.conftest import Caller


async def test_the_node_that_is_asked_drains(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(caller.node.assembly.node.draining, "_end", lambda: ended.append(True))
    client = await caller.node.client()
    assert await caller.result("drain", node="a") == {"num_clients": 1, "here": True}
    assert ended == [True]
    caller.node.assembly.node.closed(client.connection)


async def test_what_another_node_answers(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drain(node: str) -> Drains:
        assert node == "b"
        return Drains(7)

    monkeypatch.setattr(caller.node.assembly.node.draining, "drain", drain)
    assert await caller.result("drain", node="b") == {"num_clients": 7, "here": False}


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            NodeUnknown("no node 'b'"),
            (107, "bad request: node must be the id of a node that lives, as info tells it"),
        ),
        (Full("too many"), (111, "too many requests")),
        *(
            (
                error("why"),
                (
                    100,
                    "internal server error: the node did not say that it drains; perhaps it does",
                ),
            )
            for error in (UnknownOutcome, Rejected)
        ),
    ],
)
async def test_what_is_refused(
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: tuple[int, str],
) -> None:
    async def drain(_: str) -> Drains:
        raise error

    monkeypatch.setattr(caller.node.assembly.node.draining, "drain", drain)
    assert await caller.refusal("drain", node="b") == expected


@pytest.mark.parametrize(
    "params, why",
    [
        ({}, "bad request: node is required"),
        ({"node": 1}, "bad request: node must be a string of at most 256 characters"),
    ],
)
async def test_what_is_malformed(caller: Caller, params: dict[str, object], why: str) -> None:
    assert await caller.refusal("drain", **params) == (107, why)
