"""Counts and times the calls of an SDK client, by operation and outcome, and bounds how many are
made at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from botocore.exceptions import ClientError

from roomcast.aws.errors import LOG_CALL_LIMIT_S, is_condition_failure, mapped
from roomcast.concurrency import Portions
from roomcast.delivery.ports import Gone
from roomcast.observe.counters import Histogram
from roomcast.ports import Throttled, UnknownOutcome

__all__ = ["CALLS_A_TURN", "PLACE_WAIT_S", "Calls", "Timed"]

# Calls of one client that are begun in one turn of the event loop: each is some 0.3 ms of the SDK's
# work, and as many are answered in a turn as were begun in one.
CALLS_A_TURN: Final = 8

# The wait of a call for a place, half of what a call of the log has in all. One that gets none was
# not made: whoever appends knows then that nothing is in.
PLACE_WAIT_S: Final = LOG_CALL_LIMIT_S / 2

# Any other error is "refused". A call is "given_up" when its time was over, or its caller was
# cancelled.
_OUTCOMES: Final = ((Gone, "gone"), (Throttled, "throttled"), (UnknownOutcome, "unknown"))


class Calls:
    """The outcomes of one process's calls.

    The number of keys is the number of operations times the few outcomes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.histograms: dict[tuple[str, str], Histogram] = {}

    def timed(self, client: Any, service: str, at_once: int | None = None) -> Any:
        """`client` of the SDK, with its operations counted under `service`. CALLS_A_TURN of them
        are begun in one turn.

        `at_once`: how many of its calls may be under way; further ones wait, and that counts as
        their time. One that waited for PLACE_WAIT_S raises Throttled. None = any number.
        """
        return Timed(client, service, self, at_once)

    async def call(
        self, operation: str, called: Callable[..., Awaitable[Any]], **params: Any
    ) -> Any:
        """Makes the call, and raises what the call raises."""
        started_s, outcome = self._clock(), "ok"
        try:
            return await called(**params)
        except asyncio.CancelledError:
            outcome = "given_up"
            raise
        except Exception as error:
            outcome = _outcome(error)
            raise
        finally:
            key = (operation, outcome)
            histogram = self.histograms.get(key)
            if histogram is None:
                histogram = self.histograms[key] = Histogram()
            histogram.add(self._clock() - started_s)


class Timed:
    """Stands for a client of the SDK. Attributes that are no operation, such as `meta`, are the
    client's own.

    The SDK prepares and signs a call, half a millisecond of CPU, before it waits for one of its
    connections. A thousand calls that wait for each other here have not cost that yet.
    """

    def __init__(self, client: Any, service: str, calls: Calls, at_once: int | None = None) -> None:
        self._client = client
        self._service = service
        self._calls = calls
        self._places = None if at_once is None else asyncio.Semaphore(at_once)
        self._portions = Portions(CALLS_A_TURN)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        operation = self._client.meta.method_to_api_mapping.get(name)
        if operation is None:
            return found
        calls, label = self._calls, f"{self._service}.{operation}"
        called = _in_its_turn(self._portions, found)
        if self._places is not None:
            called = _in_its_place(self._places, called)

        async def timed(**params: Any) -> Any:
            return await calls.call(label, called, **params)

        # Kept, so that each operation is wrapped only once.
        setattr(self, name, timed)
        return timed


def _in_its_place(
    places: asyncio.Semaphore, call: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    async def in_its_place(**params: Any) -> Any:
        try:
            if places.locked():
                async with asyncio.timeout(PLACE_WAIT_S):
                    await places.acquire()
            else:
                await places.acquire()
        except TimeoutError:
            raise Throttled(f"no connection was free within {PLACE_WAIT_S:g} s") from None
        try:
            return await call(**params)
        finally:
            places.release()

    return in_its_place


def _in_its_turn(
    portions: Portions, call: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    async def in_its_turn(**params: Any) -> Any:
        await portions.wait()
        return await call(**params)

    return in_its_turn


def _outcome(error: Exception) -> str:
    if isinstance(error, ClientError) and is_condition_failure(error):
        return "condition_failed"
    means = mapped(error)
    return next((name for kind, name in _OUTCOMES if isinstance(means, kind)), "refused")
