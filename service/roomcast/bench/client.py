"""One client of a run: its connection, its subscriptions, and what it publishes.

It comes back when its connection ends, as an SDK does, and recovers what it missed where it may.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import aiohttp

from roomcast import __version__
from roomcast.backoff import FROM_HALF, Backoff
from roomcast.bench import advice, commands
from roomcast.bench.advice import Declined, Step
from roomcast.bench.ledger import Ledger
from roomcast.bench.plan import Plan, payload
from roomcast.wire.codes import DisconnectCode

__all__ = ["ANSWER_S", "ATTEMPTS_MAX", "UNANSWERED_MAX", "Client", "Shared", "reason"]

# The time for a handshake with its subscriptions, and for an orderly close. Silence after that has
# no bound: a timer for each frame costs a third of reading it, and what a silent server does not
# deliver is lost.
ANSWER_S: Final = 10.0
_CLOSE_S: Final = 2.0
# Attempts to connect for the first time. Who was connected before tries again until the run ends.
ATTEMPTS_MAX: Final = 5
_BACKOFF: Final = Backoff(0.2, 3.0, FROM_HALF)
# Publications of a client that are not answered yet: what the server takes of one.
UNANSWERED_MAX: Final = 256
# A frame of a server: half a MiB that a recovery may bring, and more.
_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
# From this code on an unsubscribe push asks for a new subscribe. A lower code is final.
_AGAIN: Final = 2500
_MICRO: Final = 1_000_000


class _Lost(Exception):
    """The connection is gone, and a new one may work."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all clients of a run have in common.

    `token_of`: the connection token of a client, "" = none. `origin`: the header that they send,
    "" = none. `gave_up`: is told a refusal that concerns all clients.
    """

    plan: Plan
    ledger: Ledger
    session: aiohttp.ClientSession
    token_of: Callable[[int], str]
    origin: str
    gave_up: Callable[[Declined], None]


class Client:
    """To be run, and to leave. `attempts`: to connect for the first time, before it gives up."""

    def __init__(self, number: int, shared: Shared, attempts: int = ATTEMPTS_MAX) -> None:
        self.number = number
        # Whether it is connected with all its subscriptions now.
        self.is_ready = False
        # It has been ready, or has given up. `refusal`: why it gave up.
        self.settled = asyncio.Event()
        self.refusal: Declined | None = None
        self._shared = shared
        self._plan, self._ledger = shared.plan, shared.ledger
        self._url = self._plan.urls[self._plan.url_of(number)]
        self._channels = {
            self._plan.channel_name(each): each for each in self._plan.channels_of(number)
        }
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._leaving = False
        self._task: asyncio.Task[None] | None = None
        self._attempts, self._attempts_max = 0, attempts
        self._has_been = False
        self._command = 0
        # By the id of their commands: the channel, and the number of a publication.
        self._subscribing: dict[int, int] = {}
        self._publishing: dict[int, tuple[int, int]] = {}

    # ---- its life

    async def run(self) -> None:
        """Connects, reads, and connects again, until it leaves or has to give up."""
        self._task = asyncio.current_task()
        try:
            while not self._leaving:
                try:
                    await self._live()
                except Declined as error:
                    self._gone(str(error))
                    self.refusal = error
                    return
                except (aiohttp.ClientError, OSError, TimeoutError, _Lost) as error:
                    self._gone(self._told(error))
                    self._attempts += 1
                    if self._attempts >= self._attempts_max and not self._has_been:
                        self.refusal = Declined(self._told(error))
                        return
                if not self._leaving:
                    await asyncio.sleep(_BACKOFF.pause_s(max(self._attempts, 1), random.random()))
        finally:
            self.is_ready = False
            self.settled.set()

    async def leave(self) -> None:
        """Closes the connection in order. `run` ends then."""
        self._leaving = True
        if self._socket is not None:
            await self._socket.close()
        elif self._task is not None:
            # It is connecting, or pauses before that.
            self._task.cancel()

    def _gone(self, reason: str) -> None:
        """The connection ended, or did not come about."""
        if self._leaving:
            return
        if self.is_ready:
            self._ledger.went(self.number, reason)
        else:
            self._ledger.problems[reason] += 1
        self.is_ready = False

    def _told(self, error: Exception) -> str:
        if isinstance(error, aiohttp.WSServerHandshakeError):
            return advice.handshake(self._url, error.status, self._shared.origin)
        if isinstance(error, TimeoutError):
            return f"{self._url}: no answer within {ANSWER_S:.0f} s"
        if isinstance(error, _Lost):
            return str(error)
        return advice.unreachable(self._url, reason(error))

    async def _live(self) -> None:
        """One connection. Raises Declined and _Lost, and what aiohttp raises."""
        self._subscribing.clear()
        self._command = 1
        began_s = perf_counter()
        async with asyncio.timeout(ANSWER_S) as patience:
            async with self._shared.session.ws_connect(
                self._url,
                origin=self._shared.origin or None,
                max_msg_size=_MESSAGE_BYTES_MAX,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            ) as socket:
                self._socket = socket
                try:
                    wanted = [commands.connect(1, self._shared.token_of(self.number), __version__)]
                    wanted += [self._subscribe(each) for each in self._channels]
                    await socket.send_str(commands.lines(wanted))
                    while True:
                        message = await socket.receive()
                        now_s = perf_counter()
                        if not isinstance(message.data, str):
                            self._raise_closed(message, socket.close_code)
                            return
                        await self._read(socket, message.data, now_s)
                        if not self.is_ready and not self._subscribing:
                            patience.reschedule(None)
                            self._arrived(int((now_s - began_s) * _MICRO))
                finally:
                    self._socket = None
                    self._ledger.abandons(len(self._publishing))
                    self._publishing.clear()

    def _arrived(self, took_us: int) -> None:
        self.is_ready = True
        self._attempts, self._has_been = 0, True
        self._ledger.came(self.number, took_us)
        self.settled.set()

    def _raise_closed(self, message: aiohttp.WSMessage, close_code: int | None) -> None:
        if self._leaving:
            return
        if message.type is aiohttp.WSMsgType.ERROR:
            raise _Lost(f"{self._url}: {message.data}")
        code = message.data if isinstance(message.data, int) else close_code or 0
        told = advice.closed(code, message.extra or "")
        if DisconnectCode(code, "").terminal:
            raise Declined(told)
        raise _Lost(told)

    # ---- what it reads

    async def _read(
        self, socket: aiohttp.ClientWebSocketResponse, frame: str, now_s: float
    ) -> None:
        try:
            for reply in commands.replies(frame):
                if (push := reply.get("push")) is not None:
                    self._pushed(push, now_s)
                    if "unsubscribe" in push:
                        await self._ended(socket, push)
                elif "id" in reply:
                    self._answered(reply, now_s)
                elif not reply:
                    await socket.send_str("{}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Declined(
                f"{self._url} does not speak the Centrifuge protocol: {error}"
            ) from error

    def _answered(self, reply: Mapping[str, Any], now_s: float) -> None:
        identity, error = reply["id"], reply.get("error")
        if identity in self._publishing:
            channel, number = self._publishing.pop(identity)
            if error is None:
                self._ledger.acknowledges(channel, number, now_s)
            else:
                self._refused(error)
        elif identity in self._subscribing:
            if error is not None:
                raise _failed(Step.SUBSCRIBE, error)
            self._subscribed(self._subscribing.pop(identity), reply["subscribe"], now_s)
        elif error is not None:
            raise _failed(Step.CONNECT, error)

    def _refused(self, error: Mapping[str, Any]) -> None:
        told = advice.refused(Step.PUBLISH, error["code"], error["message"])
        self._ledger.refuses(told)
        if advice.is_final(Step.PUBLISH, error["code"]):
            self._shared.gave_up(Declined(told))

    def _subscribe(self, name: str) -> str:
        """The command that subscribes, from where it was."""
        self._command += 1
        channel = self._channels[name]
        self._subscribing[self._command] = channel
        return commands.subscribe(self._command, name, self._ledger.position(self.number, channel))

    def _subscribed(self, channel: int, result: Mapping[str, Any], now_s: float) -> None:
        position = (result["epoch"], result.get("offset", 0)) if "epoch" in result else None
        recovered = bool(result.get("recovered"))
        self._ledger.subscribed(self.number, channel, position, recovered=recovered)
        for publication in result.get("publications", ()):
            self._delivered(channel, publication, now_s)

    def _pushed(self, push: Mapping[str, Any], now_s: float) -> None:
        publication, channel = push.get("pub"), self._channels.get(push["channel"])
        # What a token or an option subscribes to besides is not measured.
        if publication is not None and channel is not None:
            self._delivered(channel, publication, now_s)

    def _delivered(self, channel: int, publication: Mapping[str, Any], now_s: float) -> None:
        data, offset = publication["data"], publication.get("offset")
        if isinstance(data, dict) and data.get("bench") == self._plan.run:
            self._ledger.delivered(self.number, channel, data["n"], offset, now_s)
        else:
            self._ledger.passed(self.number, channel, offset)

    async def _ended(
        self, socket: aiohttp.ClientWebSocketResponse, push: Mapping[str, Any]
    ) -> None:
        """The server ended a subscription: subscribes again where SDKs do."""
        name, why = push["channel"], push["unsubscribe"]
        if name not in self._channels:
            return
        self._ledger.unsubscribed(self.number, self._channels[name])
        self._ledger.closes[f"unsubscribed: {why.get('reason', '')} ({why['code']})"] += 1
        if why["code"] >= _AGAIN:
            await socket.send_str(self._subscribe(name))

    # ---- what it publishes

    @property
    def may_publish(self) -> bool:
        """Whether it is there, and has not too much to hear of."""
        return self.is_ready and len(self._publishing) < UNANSWERED_MAX

    async def publish(self, channel: int, number: int) -> None:
        """Sends a publication. Its answer comes later, if at all."""
        socket = self._socket
        if socket is None:
            self._ledger.abandons(1)
            return
        self._command += 1
        self._publishing[self._command] = channel, number
        name, data = self._plan.channel_name(channel), payload(self._plan, number)
        try:
            await socket.send_str(commands.publish(self._command, name, data))
        except (aiohttp.ClientError, OSError):
            # Whoever reads notices the end as well, and tells it.
            return


def reason(error: Exception) -> str:
    """Why a connection did not come about, without the numbers of asyncio's own words."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    return str(getattr(cause, "strerror", "") or cause or type(cause).__name__)


def _failed(step: Step, error: Mapping[str, Any]) -> Exception:
    told = advice.refused(step, error["code"], error["message"])
    return _Lost(told) if error.get("temporary") else Declined(told)
