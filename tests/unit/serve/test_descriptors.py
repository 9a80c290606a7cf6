"""service/roomcast/serve/descriptors.py: whatever the limits are,
there is something for clients and something for AWS.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.aws import clients as aws
from roomcast.config import Config, ProxiesConfig, ProxyConfig
from roomcast.hooks.calls import CALLS_UNDER_WAY_MAX
from roomcast.hooks.over_http import CALLS_OF_A_HOOK_MAX, connections_max
from roomcast.serve.descriptors import RESERVED, Places, places

POOLS = sum(getattr(aws, name) for name in dir(aws) if name.endswith("_CONNECTIONS_MAX"))


def test_what_is_reserved_is_enough_for_every_pool_and_as_much_again_for_small_things() -> None:
    # Of the last one there are two: autoscaling and cloudwatch.
    assert POOLS + aws.SIDE_CONNECTIONS_MAX + 64 <= RESERVED
    assert POOLS > 100, "the pools were found"


@pytest.mark.parametrize(
    "descriptors, connection_limit, expected",
    [
        (1_048_576, 0, Places(1_048_320, 1_048_064)),
        (65_536, 0, Places(65_280, 65_024)),
        (65_536, 10_000, Places(12_500, 10_000)),
        (65_536, 100, Places(164, 100)),
        (65_536, 1_000_000, Places(65_280, 65_024)),
        (1024, 0, Places(768, 692)),
        # Half of few.
        (200, 0, Places(100, 90)),
        (200, 50, Places(100, 50)),
        (1, 0, Places(1, 1)),
    ],
)
def test_places(descriptors: int, connection_limit: int, expected: Places) -> None:
    assert places(descriptors, connection_limit) == expected


@pytest.mark.parametrize(
    "descriptors, connection_limit, expected",
    [
        (1_048_576, 0, Places(1_047_296, 1_047_040, 1024)),
        (65_536, 0, Places(64_256, 64_000, 1024)),
        (65_536, 10_000, Places(12_500, 10_000, 1024)),
        (1024, 0, Places(692, 623, 76)),
        (200, 50, Places(90, 50, 10)),
        (1, 0, Places(1, 1, 1)),
    ],
)
def test_places_beside_an_internal_port(
    descriptors: int, connection_limit: int, expected: Places
) -> None:
    assert places(descriptors, connection_limit, has_internal_port=True) == expected


@given(st.integers(4, 2_000_000), st.integers(0, 2_000_000))
def test_both_ports_have_no_more_places_than_one(descriptors: int, connection_limit: int) -> None:
    found = places(descriptors, connection_limit, has_internal_port=True)
    assert 1 <= found.clients <= found.sockets
    assert found.internal >= 1
    assert found.sockets + found.internal <= places(descriptors, 0).sockets
    assert not connection_limit or found.clients <= connection_limit


@given(st.integers(1, 2_000_000), st.integers(0, 2_000_000))
def test_nobody_gets_what_is_reserved(descriptors: int, connection_limit: int) -> None:
    found = places(descriptors, connection_limit)
    assert 1 <= found.clients <= found.sockets
    assert descriptors - found.sockets >= min(RESERVED, descriptors // 2)
    assert not connection_limit or found.clients <= connection_limit
    if descriptors > 4:
        assert found.clients < found.sockets, "there is one for a health check"


@pytest.mark.parametrize("soft, hard", [(64, 128), (128, 128)])
def test_the_limit_becomes_what_it_may_be(soft: int, hard: int) -> None:
    script = (
        "import resource; from roomcast.serve.descriptors import widened\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "print(widened(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert told.split() == [str(hard)] * 3


def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from roomcast.serve.descriptors import widened

    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert widened() == 256


def test_hooks_over_http_have_descriptors_of_their_own() -> None:
    assert places(65_536, 0, back_ends=768) == places(65_536 - 768, 0)
    # Half is for clients all the same.
    assert places(1024, 0, back_ends=1000).sockets == 512
    proxy = ProxyConfig(endpoint="https://a.example/")
    assert connections_max(Config()) == 0
    assert connections_max(Config(proxies=ProxiesConfig(connect=proxy))) == CALLS_OF_A_HOOK_MAX
    every = ProxiesConfig(proxy, proxy, proxy, proxy, proxy, proxy, {"a": proxy, "b": proxy})
    assert connections_max(Config(proxies=every)) == CALLS_UNDER_WAY_MAX
