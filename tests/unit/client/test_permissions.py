"""service/roomcast/client/permissions.py: what tokens grant, and for how long.

The options are in test_session.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from roomcast.client.permissions import Permissions
from roomcast.wire.capabilities import Capability, Grant
from roomcast.wire.channels import ChannelOptions

CLOSED = ChannelOptions(history_size=1, history_ttl_s=60, presence=True)
Asks = Callable[[Permissions, str], bool]
ACTIONS: dict[Capability, Asks] = {
    Capability.PUBLISH: lambda held, name: held.may_publish(name, CLOSED, subscribed=True),
    Capability.HISTORY: lambda held, name: held.may_read_history(name, CLOSED, subscribed=True),
    Capability.PRESENCE: lambda held, name: held.may_see_presence(name, CLOSED, subscribed=True),
}


def permissions(*, insecure: bool = False) -> Permissions:
    held = Permissions(insecure=insecure)
    held.user = "ann"
    return held


@pytest.mark.parametrize("capability", ACTIONS)
def test_what_a_subscription_token_grants_ends_with_the_subscription(
    capability: Capability,
) -> None:
    held, may = permissions(), ACTIONS[capability]
    assert not may(held, "a")
    held.grant_in("a", frozenset({capability}))
    assert [name for name in ("a", "b") if may(held, name)] == ["a"]
    assert [each for each, other in ACTIONS.items() if other(held, "a")] == [capability]
    held.left("a")
    assert not may(held, "a")


@pytest.mark.parametrize("capability", ACTIONS)
def test_a_new_connection_token_takes_the_place_of_the_old_one(capability: Capability) -> None:
    held, may = permissions(), ACTIONS[capability]
    held.grant([Grant(("a",), frozenset({capability}))])
    assert [name for name in ("a", "b") if may(held, name)] == ["a"]
    held.grant([])
    assert not may(held, "a")


def test_insecure_allows_everything() -> None:
    held = permissions(insecure=True)
    assert all(may(held, "$a") for may in ACTIONS.values())
    assert held.may_subscribe("$a", CLOSED)
    assert held.may_recover("$a", CLOSED)
    assert held.may_be_positioned("$a", CLOSED)
