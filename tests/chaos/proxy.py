"""Stands between the instances and their AWS, and does to calls what networks and AWS do on bad
days. Loopback only.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web

__all__ = ["LATE_S", "Call", "Deliveries", "Fault", "FaultProxy", "Phase", "forward", "refusal"]

# Of what a latency phase adds to a call.
_LATENCY_S: Final = (0.05, 1.5)
# A request that arrives after its sender has given up:
# the instances wait 5 s for DynamoDB's answer.
LATE_S: Final = (5.5, 8.0)
# SQS's bound on one answer.
_RECEIVE_MAX: Final = 10
# Messages of each queue that may come once more.
_SEEN_MAX: Final = 100
# Every connection of the instances, and the pump's, at once.
_BACKLOG: Final = 512
# What names a call of an instance; the stream pump, as the Lambda in its place,
# uses the SDK's own name.
_INSTANCE_AGENT: Final = "roomcast"
# Of one connection only.
_HOP_BY_HOP: Final = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
# SO_LINGER with a time of zero: closing resets.
_RESET: Final = struct.pack("ii", 1, 0)


class Fault(StrEnum):
    """What can happen to one call."""

    SLOW = "slow"
    ERROR = "5xx, nothing done"
    ERROR_AFTER = "5xx, though done"
    THROTTLED = "throttled"
    EXPIRED = "credentials expired"
    DENIED = "no permission"
    RESET = "reset before it was forwarded"
    RESET_AFTER = "answer lost"
    SWALLOWED = "swallowed by a black hole"
    LATE = "arrived after its sender gave up"
    # Nobody listens: not a matter of one call, counted by connection that was cut.
    DOWN = "cut by an outage"


@dataclass(frozen=True, slots=True)
class Phase:
    """A time of trouble. `odds`: of each fault, for one call (together at most 1).
    `down`: nobody listens at all.

    `pump`: whether the stream pump's calls suffer as well. `services`: whose calls; None = all.
    """

    name: str
    odds: Mapping[Fault, float] = field(default_factory=dict)
    down: bool = False
    pump: bool = False
    services: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What is done to the answers of ReceiveMessage, each with its odds for one answer
    (`withhold`: one message).

    A message that is withheld comes again after its visibility time-out:
    far behind those that came after it.
    """

    repeat: float = 0.0
    shuffle: float = 0.0
    withhold: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request to AWS. `service`: dynamodb, sqs or sns."""

    service: str
    operation: str
    of_instance: bool


class FaultProxy:
    """Forwards to `upstream`, apart from what `phase` and `deliveries` say;
    both may be changed at any time.

    `injected` counts faults, `calls` operations;
    `repeated`, `shuffled` and `withheld` what was done to messages.
    """

    def __init__(
        self,
        upstream: str,
        random: Random,
        late_s: tuple[float, float] = LATE_S,
        slow_s: tuple[float, float] = _LATENCY_S,
    ) -> None:
        """`late_s`: how late a late request arrives, from and to; `slow_s`:
        how much a slow one is delayed.
        """
        self._upstream = upstream
        self._slow_s = slow_s
        self._late_s = late_s
        self._random = random
        self._phase = Phase("calm")
        # Faults that are due whatever the phase, by operation of the instances: "sqs.CreateQueue".
        self._planned: dict[str, deque[Fault]] = {}
        # Ends with the phase: what a black hole has swallowed is given up then.
        self._over = asyncio.Event()
        self.deliveries = Deliveries()
        self.injected: Counter[Fault] = Counter()
        self.calls: Counter[str] = Counter()
        # Operations that arrived after their sender had given up.
        self.came_late: Counter[str] = Counter()
        self.repeated = self.shuffled = self.withheld = 0
        self._seen: dict[str, deque[dict[str, Any]]] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._server: web.Server | None = None
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._session: aiohttp.ClientSession | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._server = web.Server(self._handle, access_log=None)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await self._runner.setup()
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        assert self._session is not None
        self._over.set()
        for late in self._late:
            late.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
        self._cut()
        await self._runner.cleanup()
        await self._session.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def phase(self) -> Phase:
        return self._phase

    async def enter(self, phase: Phase) -> None:
        """From now on it is `phase`."""
        before, self._phase = self._phase, phase
        self._over.set()
        self._over = asyncio.Event()
        if phase.down and not before.down:
            assert self._site is not None
            await self._site.stop()
            self._site = None
            self.injected[Fault.DOWN] += self._cut()
        elif before.down and not phase.down:
            await self._listen()

    def plan(self, operation: str, fault: Fault, times: int) -> None:
        """The next `times` calls of one operation, such as "sqs.CreateQueue", meet `fault`."""
        self._planned.setdefault(operation, deque()).extend([fault] * times)

    async def calm_down(self) -> None:
        """No more faults; returns when nothing that was delayed is still to come."""
        self.deliveries = Deliveries()
        await self.enter(Phase("calm"))
        while self._late:
            await asyncio.wait(self._late)

    # ---- one call

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        call = _call(request, body)
        self.calls[f"{call.service}.{call.operation}"] += 1
        fault = self._choose(call)
        if fault is not None:
            self.injected[fault] += 1
        match fault:
            case Fault.SLOW:
                await asyncio.sleep(self._random.uniform(*self._slow_s))
            case Fault.ERROR | Fault.THROTTLED | Fault.EXPIRED | Fault.DENIED:
                return refusal(call, fault, self._random)
            case Fault.ERROR_AFTER:
                await self._forward(request, body)
                return refusal(call, fault, self._random)
            case Fault.RESET:
                return _reset(request)
            case Fault.RESET_AFTER:
                await self._forward(request, body)
                return _reset(request)
            case Fault.SWALLOWED:
                await self._over.wait()
                return _reset(request)
            case Fault.LATE:
                self.came_late[f"{call.service}.{call.operation}"] += 1
                late = asyncio.create_task(self._forward_late(request, body))
                self._late.add(late)
                late.add_done_callback(self._late.discard)
                await asyncio.wait((late,))
                return _reset(request)
        try:
            answer = await self._forward(request, body)
        except aiohttp.ClientError:
            return _reset(request)  # the AWS behind us is ending
        if call.operation == "ReceiveMessage" and answer.status == 200:
            answer = self._disorder(body, answer)
        return answer

    def _choose(self, call: Call) -> Fault | None:
        if not (call.of_instance or self._phase.pump):
            return None
        if call.of_instance and (planned := self._planned.get(f"{call.service}.{call.operation}")):
            return planned.popleft()
        if self._phase.services is not None and call.service not in self._phase.services:
            return None
        luck = self._random.random()
        for fault, odds in self._phase.odds.items():
            if luck < odds:
                return fault
            luck -= odds
        return None

    async def _forward(self, request: web.BaseRequest, body: bytes) -> web.Response:
        assert self._session is not None
        return await forward(self._session, self._upstream, request, body)

    async def _forward_late(self, request: web.BaseRequest, body: bytes) -> None:
        await asyncio.sleep(self._random.uniform(*self._late_s))
        await self._forward(request, body)

    def _disorder(self, body: bytes, answer: web.Response) -> web.Response:
        """SQS delivers at least once and in any order; so do we, more often."""
        queue = str(json.loads(body)["QueueUrl"])
        assert isinstance(answer.body, bytes)
        content = json.loads(answer.body)
        came: list[dict[str, Any]] = content.get("Messages", [])
        seen = self._seen.setdefault(queue, deque(maxlen=_SEEN_MAX))
        kept = [message for message in came if self._random.random() >= self.deliveries.withhold]
        self.withheld += len(came) - len(kept)
        again: list[dict[str, Any]] = []
        if seen and self._random.random() < self.deliveries.repeat:
            again = self._random.sample(list(seen), min(len(seen), _RECEIVE_MAX - len(kept), 3))
            self.repeated += len(again)
        seen.extend(kept)
        order = kept + again
        if self._random.random() < self.deliveries.shuffle:
            self._random.shuffle(order)
            self.shuffled += order[: len(kept)] != kept
        if order == came:
            return answer
        content["Messages"] = order
        return web.json_response(content, content_type="application/x-amz-json-1.0")

    # ---- outages

    async def _listen(self) -> None:
        assert self._runner is not None
        # The same port each time: that is where the instances look for AWS.
        self._site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, backlog=_BACKLOG, reuse_address=True
        )
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    def _cut(self) -> int:
        """Reset every connection; how many there were."""
        assert self._server is not None
        transports = [
            each.transport for each in self._server.connections if each.transport is not None
        ]
        for transport in transports:
            _abort(transport)
        return len(transports)


async def forward(
    session: aiohttp.ClientSession, upstream: str, request: web.BaseRequest, body: bytes
) -> web.Response:
    """The answer of `upstream` to a request whose body was read."""
    headers = {
        name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
    }
    async with session.request(
        request.method, upstream + request.path_qs, headers=headers, data=body
    ) as response:
        content = await response.read()
        kept = {
            name: value
            for name, value in response.headers.items()
            if name.lower() not in _HOP_BY_HOP
        }
        return web.Response(status=response.status, headers=kept, body=content)


def refusal(call: Call, fault: Fault, random: Random) -> web.Response:
    """What AWS would say, in the protocol of its service."""
    if fault is Fault.THROTTLED:
        return _throttling(call, random)
    if fault is Fault.EXPIRED:
        text = "The security token included in the request is expired"
        if call.service == "sns":
            return _xml(403, "ExpiredToken", text)
        status = 400 if call.service == "dynamodb" else 403
        return _json(status, "com.amazon.coral.service#ExpiredTokenException", text)
    if fault is Fault.DENIED:
        return _denied(call)
    if random.random() < 0.5:
        # A load balancer in front of the service, which speaks no protocol of AWS.
        return web.Response(status=503, text="<html><body>Service Unavailable</body></html>")
    if call.service == "sns":
        return _xml(500, "InternalFailure", "", kind="Receiver")
    name = "com.amazonaws.dynamodb.v20120810#InternalServerError"
    return _json(500, name if call.service == "dynamodb" else "InternalFailure", "")


def _denied(call: Call) -> web.Response:
    text = f"not authorized to perform: {call.service}:{call.operation}"
    if call.service == "sns":
        return _xml(403, "AuthorizationError", text)
    if call.service == "sqs":
        answer = _json(403, "com.amazonaws.sqs#AccessDenied", text)
        answer.headers["x-amzn-query-error"] = "AccessDenied;Sender"
        return answer
    return _json(400, "com.amazon.coral.service#AccessDeniedException", text)


def _throttling(call: Call, random: Random) -> web.Response:
    if call.service == "dynamodb":
        name, text = random.choice([
            ("com.amazon.coral.availability#ThrottlingException", "Rate exceeded"),
            (
                "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
                "The level of configured provisioned throughput for the table was exceeded.",
            ),
        ])  # fmt: skip
        return _json(400, name, text)
    if call.service == "sqs":
        answer = _json(400, "com.amazonaws.sqs#RequestThrottled", "Request is throttled.")
        answer.headers["x-amzn-query-error"] = "RequestThrottled;Sender"
        return answer
    return _xml(400, "Throttling", "Rate exceeded")


def _json(status: int, name: str, text: str) -> web.Response:
    return web.json_response(
        {"__type": name, "message": text},
        status=status,
        content_type="application/x-amz-json-1.0",
        headers={"x-amzn-RequestId": secrets.token_hex(16)},
    )


def _xml(status: int, code: str, text: str, *, kind: str = "Sender") -> web.Response:
    return web.Response(
        status=status,
        content_type="text/xml",
        text=(
            '<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">'
            f"<Error><Type>{kind}</Type><Code>{code}</Code><Message>{text}</Message></Error>"
            f"<RequestId>{secrets.token_hex(16)}</RequestId></ErrorResponse>"
        ),
    )


def _call(request: web.BaseRequest, body: bytes) -> Call:
    of_instance = _INSTANCE_AGENT in request.headers.get("User-Agent", "")
    target = request.headers.get("X-Amz-Target", "")
    if target:
        api, _, operation = target.partition(".")
        return Call("sqs" if api == "AmazonSQS" else "dynamodb", operation, of_instance)
    return Call("sns", parse_qs(body.decode()).get("Action", ["?"])[0], of_instance)


def _reset(request: web.BaseRequest) -> web.Response:
    """Cut the connection. What is returned goes nowhere."""
    if request.transport is not None:
        _abort(request.transport)
    return web.Response()


def _abort(transport: asyncio.BaseTransport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()
