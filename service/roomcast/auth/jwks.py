"""The keys behind a JWKS endpoint: fetched ahead of need, kept while it is down.

How often the endpoint is asked is bounded.

One task, `run`, does all fetching, so there is never more than one fetch under way. It fetches at
the start and then every REFRESH_S. A token that names a key which is not known (the signer may have
a new one) makes it fetch at once, but not within DEMAND_PAUSE_S of the fetch before, whoever asks
and how often.
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

# Between fetches when all is well: for so long after it was withdrawn, a key still opens
# connections.
REFRESH_S: Final = 300.0
# From one fetch to the next that an unknown key may cause.
DEMAND_PAUSE_S: Final = 30.0
# One fetch, from the look-up of the name to the last byte.
FETCH_LIMIT_S: Final = 5.0
# How long a token waits for its key. SDKs give up, and reconnect, after 5 s.
KEY_WAIT_S: Final = 2.0
# For how long keys count when the endpoint does not answer any more: longer than its outages, and
# yet a key that was withdrawn meanwhile does not open connections for ever.
STALE_S_MAX: Final = 6 * 3600.0
# Between attempts after failures.
_BACKOFF: Final = Backoff(1.0, 30.0, FROM_HALF)
# Names of keys in one line of the log.
_KIDS_TOLD_MAX: Final = 10

_log = structlog.get_logger(__name__)


class FetchFailed(Exception):
    """The endpoint gave nothing. The message is for the log."""


class JwksKeys:
    """The keys of one endpoint.

    `fetch` gets its answer, bounded in size, or raises FetchFailed. `random`: [0, 1), for jitter.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[bytes]], clock: Clock, random: Callable[[], float]
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._random = random
        self._keys = KeySet()
        # How many fetches have begun, and when the last one did; which of them brought the keys,
        # and when it began.
        self._begun = 0
        self._begun_s = float("-inf")
        self._got = 0
        self._got_s = float("-inf")
        self._fetching = False
        self._wanted = asyncio.Event()
        # Set at the end of the fetch that is under way or comes next.
        self._fetched = asyncio.Event()

    @property
    def usable(self) -> bool:
        """Whether there are keys that are not too old."""
        return len(self._keys) > 0 and self._clock.monotonic_s() - self._got_s <= STALE_S_MAX

    def known(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """The key for a token with that `kid` and algorithm, if it is here."""
        return self._keys.find(kid, algorithm) if self.usable else None

    async def find(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """The same, fetched if need be; None: the endpoint has no such key.

        Takes KEY_WAIT_S at most.

        Raises TokenUnverifiable when that cannot be told: the last fetch failed, or began before
        the token came.
        """
        asked = self._begun
        with suppress(TimeoutError):
            async with asyncio.timeout(KEY_WAIT_S):
                while (key := self.known(kid, algorithm)) is None:
                    # Without a kid, or with one that is there for other algorithms, a fetch would
                    # not help.
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
        """Fetch, from now on. Runs until cancelled."""
        failures = 0
        while True:
            failures = 0 if await self._fetch_once() else failures + 1
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(failures)):
                    await self._wanted.wait()

    def _ask(self) -> bool:
        """Whether a fetch is under way, or begins now because somebody wants it."""
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
            _log.info("jwks_changed", keys=len(keys), kids=sorted(keys.kids)[:_KIDS_TOLD_MAX])
        self._keys, self._got, self._got_s = keys, self._begun, self._begun_s

    def _pause_s(self, failures: int) -> float:
        """Nodes that started together must not fetch together."""
        if failures == 0:
            return REFRESH_S * (0.9 + 0.2 * self._random())
        return _BACKOFF.pause_s(failures, self._random())
