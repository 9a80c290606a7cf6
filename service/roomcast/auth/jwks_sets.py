"""Holds the keys of all JWKS endpoints of a configuration, each fetched for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from roomcast.auth.jwks import JwksKeys
from roomcast.auth.jwks_endpoint import fetch_jwks
from roomcast.config import ClientConfig
from roomcast.config.issuers import endpoints
from roomcast.ports import Clock

__all__ = ["JwksSets", "jwks_sets"]


class JwksSets:
    """By address. There is one at least."""

    def __init__(self, by_endpoint: Mapping[str, JwksKeys]) -> None:
        self._by_endpoint = dict(by_endpoint)

    @property
    def usable(self) -> bool:
        """Whether each has keys that are recent enough."""
        return all(keys.usable for keys in self._by_endpoint.values())

    def of(self, endpoint: str) -> JwksKeys | None:
        """The keys of that address; None: it is none of ours."""
        return self._by_endpoint.get(endpoint)

    async def run(self) -> None:
        """Fetches until cancelled. No endpoint waits for another one."""
        async with asyncio.TaskGroup() as fetching:
            for keys in self._by_endpoint.values():
                fetching.create_task(keys.run(), name="jwks")


def jwks_sets(client: ClientConfig, clock: Clock, random: Callable[[], float]) -> JwksSets | None:
    """Of the endpoints that tokens of this configuration may need; None = of none."""
    found = dict.fromkeys((*endpoints(client.token), *endpoints(client.token_of_subscriptions)))
    if not found:
        return None
    several = len(found) > 1
    return JwksSets(
        {
            each: JwksKeys(
                partial(fetch_jwks, each), clock, random, endpoint=each if several else ""
            )
            for each in found
        }
    )
