"""service/roomcast/client/comings.py: one line at a client's connect, one at its end, and what is
in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from structlog.testing import capture_logs

from roomcast.client import comings
from roomcast.wire.codes import Disconnect
from tests.unit.worlds import SECRET, Client, Fleet, LocalNode

Logs = list[Any]


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as found:
        yield found


async def connected(node: LocalNode) -> Client:
    return await node.client(token=jwt.encode({"sub": "ann", "info": {"a": "secretive"}}, SECRET))


def told(logs: Logs) -> Logs:
    """The lines about clients coming and going, without their levels."""
    return [
        {name: value for name, value in line.items() if name != "log_level"}
        for line in logs
        if line["event"].startswith("client_")
    ]


async def test_who_connects_and_is_closed_has_two_lines(logs: Logs) -> None:
    node = Fleet().node(insecure=False, secret=SECRET)
    client = await connected(node)
    client.connection.close(Disconnect.SHUTDOWN)
    client.connection.close(Disconnect.EXPIRED)
    await node.close()
    assert told(logs) == [
        {"event": "client_connected", "client": client.id, "user": "ann"},
        {
            "event": "client_closed",
            "client": client.id,
            "user": "ann",
            "code": 3001,
            "reason": "shutdown",
        },
    ]
    assert "secretive" not in repr(logs)


async def test_who_is_slow_is_told_of_by_its_transport_alone(logs: Logs) -> None:
    node = Fleet().node(insecure=False, secret=SECRET)
    client = await connected(node)
    client.connection.close(Disconnect.SLOW)
    await node.close()
    assert [line["event"] for line in told(logs)] == ["client_connected"]
    comings.slow(client.id, "ann", Disconnect.SLOW.value)
    assert told(logs)[1:] == [
        {
            "event": "client_slow",
            "client": client.id,
            "user": "ann",
            "code": 3008,
            "reason": "slow",
        }
    ]


def test_who_is_gone_has_the_code_that_it_gave(logs: Logs) -> None:
    comings.gone("c", "ann", 1000)
    comings.gone("c", "", None)
    assert told(logs) == [
        {"event": "client_gone", "client": "c", "user": "ann", "code": 1000},
        {"event": "client_gone", "client": "c", "user": ""},
    ]
