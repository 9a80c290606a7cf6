"""Publishes through a deployment's server API."""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

import aiohttp
import orjson

from roomcast.bench import advice
from roomcast.bench.advice import Declined, Step
from roomcast.bench.client import Shared, reason
from roomcast.bench.plan import payload

__all__ = ["CALLS_MAX", "ApiClient"]

# Calls under way at once; each has a connection.
CALLS_MAX: Final = 256
# When DynamoDB does not answer, a publication may take a minute. After that its outcome is known.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=70.0)


class ApiClient:
    """`key`: of the server API, "" = none."""

    def __init__(self, shared: Shared, key: str) -> None:
        self._shared = shared
        self._headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
        self.calls = 0

    @property
    def may_publish(self) -> bool:
        """Whether there are not too many calls under way."""
        return self.calls < CALLS_MAX

    async def publish(self, api: int, channel: int, number: int) -> None:
        """Publishes through the API of that number, and hears the answer."""
        plan, ledger = self._shared.plan, self._shared.ledger
        address = f"{plan.apis[api]}/api/publish"
        named = orjson.dumps(plan.channel_name(channel)).decode()
        body = f'{{"channel":{named},"data":{payload(plan, number)}}}'.encode()
        self.calls += 1
        try:
            async with self._shared.session.post(
                address, data=body, headers=self._headers, timeout=_TIMEOUT
            ) as response:
                answer = await response.read()
                now_s = perf_counter()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # Nobody knows whether it was published: it stays unanswered.
            ledger.abandons(1)
            self._unheard(advice.unreachable(address, reason(error)))
            return
        finally:
            self.calls -= 1
        if response.status != 200:
            told = advice.api(plan.apis[api], response.status)
            ledger.refuses(told)
            self._shared.gave_up(Declined(told))
            return
        match _document(answer):
            case {"result": dict()}:
                ledger.acknowledges(channel, number, now_s)
            case {"error": {"code": int(code), "message": str(message)}}:
                ledger.refuses(told := advice.refused(Step.PUBLISH, code, message))
                if advice.is_final(Step.PUBLISH, code):
                    self._shared.gave_up(Declined(told))
            case _:
                ledger.refuses(told := f"{address} answers with what is no answer of the API")
                self._shared.gave_up(Declined(told))

    def _unheard(self, told: str) -> None:
        self._shared.ledger.problems[told] += 1
        if not self._shared.ledger.acknowledged_us.count:
            # It is not there at all.
            self._shared.gave_up(Declined(told))


def _document(answer: bytes) -> Any:
    """The JSON of an answer; None if it is none."""
    try:
        return orjson.loads(answer)
    except ValueError:
        return None
