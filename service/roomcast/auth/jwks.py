"""Holds the keys of a JWKS endpoint: fetches them ahead of need, and keeps them during outages.

The rate of requests to the endpoint is bounded. One task, `run`, makes all of them, so there is
never more than one at a time. It fetches at the start and then every REFRESH_S. A token that names
an unknown key causes a fetch at once, because the signer may have a new key. Such fetches are at
least DEMAND_PAUSE_S apart, however many tokens ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from roomcast.auth.claims import TokenUnverifiable
from roomcast.auth.keys import KeyRefused, KeySet, VerifyingKey, read_jwks
from roomcast.backoff import FROM_HALF, Backoff
from roomcast.ports import Clock

__all__ = [
    "DEMAND_PAUSE_S",
    "FETCH_LIMIT_S",
    "KEY_WAIT_S",
    "REFRESH_S",
    "STALE_S_MAX",
    "FetchFailed",
    "JwksKeys",
]

# The interval between fetches. A withdrawn key still opens connections for this long.
REFRESH_S: Final = 300.0
# The shortest pause before a fetch for an unknown key.
DEMAND_PAUSE_S: Final = 30.0
# One fetch, from the DNS query to the last byte.
FETCH_LIMIT_S: Final = 5.0
# How long a token waits for its key. SDKs give up after 5 s and reconnect.
KEY_WAIT_S: Final = 2.0
# How long keys are used while the endpoint does not answer: longer than its outages, but a
# withdrawn key must not open connections for ever.
STALE_S_MAX: Final = 6 * 3600.0
# Between attempts after failures.
_BACKOFF: Final = Backoff(1.0, 30.0, FROM_HALF)
# Names of keys in one line of the log.
_KIDS_TOLD_MAX: Final = 10

_log = structlog.get_logger(__name__)


class FetchFailed(Exception):
    """The fetch returned no keys. The message is for the log."""


class JwksKeys:
    """The keys of one endpoint.

    `fetch` returns the endpoint's answer, bounded in size, or raises FetchFailed. `random`: [0, 1),
    for jitter. `endpoint`: its address, for the log; "" = there is
    no other.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        clock: Clock,
        random: Callable[[], float],
        *,
        endpoint: str = "",
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._random = random
        self._about = {"endpoint": endpoint} if endpoint else {}
        self._keys = KeySet()
        # The number of fetches begun, and the start of the last one. The number of the fetch that
        # brought the present keys, and its start.
        self._begun = 0
        self._begun_s = float("-inf")
        self._got = 0
        self._got_s = float("-inf")
        self._fetching = False
        self._wanted = asyncio.Event()
        # Set at the end of the present or next fetch.
        self._fetched = asyncio.Event()

    @property
    def usable(self) -> bool:
        """Whether there are keys that are recent enough."""
        return len(self._keys) > 0 and self._clock.monotonic_s() - self._got_s <= STALE_S_MAX

    def known(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """The key for a token with that `kid` and algorithm, if it is known already."""
        return self._keys.find(kid, algorithm) if self.usable else None

    async def find(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """The key, fetched if need be. None: the endpoint has no such key.

        Takes KEY_WAIT_S at most.

        Raises TokenUnverifiable when the answer is unknown: the last fetch failed, or began before
        the token came.
        """
        asked = self._begun
        with suppress(TimeoutError):
            async with asyncio.timeout(KEY_WAIT_S):
                while (key := self.known(kid, algorithm)) is None:
                    # A fetch would not help without a kid, or if the kid exists for other
                    # algorithms.
                    settled = kid is None or kid in self._keys.kids or self._got > asked
                    if self.usable and settled:
                        return None
                    if not self._ask():
                        raise TokenUnverifiable(
                            "its key is not here, and was asked for a moment ago"
                        )
                    await self._fetched.wait()
                return key
        raise TokenUnverifiable("its key did not come in time")

    async def run(self) -> None:
        """Fetches keys until cancelled."""
        failures = 0
        while True:
            failures = 0 if await self._fetch_once() else failures + 1
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(failures)):
                    await self._wanted.wait()

    def _ask(self) -> bool:
        """Whether a fetch is running, or begins now on demand."""
        if self._fetching:
            return True
        if self._clock.monotonic_s() - self._begun_s < DEMAND_PAUSE_S:
            return False
        self._wanted.set()
        return True

    async def _fetch_once(self) -> bool:
        self._begun += 1
        self._begun_s = self._clock.monotonic_s()
        self._fetching = True
        try:
            async with asyncio.timeout(FETCH_LIMIT_S):
                body = await self._fetch()
            self._take(read_jwks(body))
        except (FetchFailed, KeyRefused, TimeoutError) as error:
            _log.warning(
                "jwks_fetch_failed",
                reason=str(error) or f"no answer within {FETCH_LIMIT_S:g} s",
                keys=len(self._keys) if self.usable else 0,
                **self._about,
            )
            return False
        finally:
            self._fetching = False
            self._wanted.clear()
            done, self._fetched = self._fetched, asyncio.Event()
            done.set()
        return True

    def _take(self, keys: KeySet) -> None:
        if keys.kids != self._keys.kids or len(keys) != len(self._keys):
            _log.info(
                "jwks_changed",
                keys=len(keys),
                kids=sorted(keys.kids)[:_KIDS_TOLD_MAX],
                **self._about,
            )
        if keys.refused and keys.refused != self._keys.refused:
            _log.warning(
                "jwks_keys_refused",
                keys=len(keys.refused),
                reasons=keys.refused[:_KIDS_TOLD_MAX],
                **self._about,
            )
        self._keys, self._got, self._got_s = keys, self._begun, self._begun_s

    def _pause_s(self, failures: int) -> float:
        """The pause with jitter: nodes that started together must not fetch together."""
        if failures == 0:
            return REFRESH_S * (0.9 + 0.2 * self._random())
        return _BACKOFF.pause_s(failures, self._random())
