"""Carries out the client's reads of history and presence."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from roomcast.client.effects import ReadHistory, ReadPresence
from roomcast.client.peer import Peer
from roomcast.client.services import ANSWER_LIMIT_S, Services
from roomcast.delivery.forms import Payload, whole
from roomcast.log.history import WrongEpoch, read_history
from roomcast.log.times import Times
from roomcast.ports import PortError
from roomcast.presence.ports import TooManyMembers
from roomcast.wire.codes import Error
from roomcast.wire.encoding import (
    encode_called_history,
    encode_lines_reply,
    encode_presence_reply,
)

__all__ = ["PRESENCE_LIMIT_S", "READS_UNDER_WAY_MAX", "Reading"]

# Reads of history that one connection may have under way, and as many of presence. One client must
# not take all of the node's connections to the table.
READS_UNDER_WAY_MAX: Final = 4
# Seconds for an answer about presence. Further reads of presence wait behind it.
PRESENCE_LIMIT_S: Final = ANSWER_LIMIT_S

_log = structlog.get_logger(__name__)


class Reading:
    """Carries out `history`, `presence` and `presence_stats` for one client."""

    __slots__ = ("_histories", "_peer", "_presences", "_services")

    def __init__(self, services: Services, peer: Peer) -> None:
        self._services = services
        self._peer = peer
        # The reads go to two tables: neither kind waits for the other.
        self._histories = asyncio.Semaphore(READS_UNDER_WAY_MAX)
        self._presences = asyncio.Semaphore(READS_UNDER_WAY_MAX)

    async def history(self, effect: ReadHistory) -> None:
        """Answer with publications of a channel's log."""
        async with self._histories:
            await self._read_history(effect)

    async def presence(self, effect: ReadPresence) -> None:
        """Answer with the members of a channel, or with their number."""
        try:
            async with asyncio.timeout(PRESENCE_LIMIT_S), self._presences:
                await self._read_presence(effect)
        except TimeoutError:
            await self._services.failures.wait()
            reason = f"not done within {PRESENCE_LIMIT_S} s"
            _log.warning("presence_failed", channel=effect.channel, reason=reason)
            self._peer.fail(effect.id, Error.INTERNAL)

    async def _read_history(self, effect: ReadHistory) -> None:
        request, most = effect.request, self._services.limits.history_publications_max
        try:
            async with self._services.histories.of(self._peer.caller):
                history = await read_history(
                    self._services.log,
                    self._services.clock,
                    request.channel,
                    effect.options,
                    since=request.since,
                    limit=most if request.limit < 0 else min(request.limit, most),
                    reverse=request.reverse,
                    times=Times(request.since_ms, request.until_ms),
                )
                # Those that were read at the same time are not answered in the same turn.
                await self._services.replies.wait()
        except WrongEpoch:
            self._peer.fail(effect.id, Error.UNRECOVERABLE_POSITION)
        except PortError as error:
            _log.warning("history_failed", channel=request.channel, reason=str(error))
            self._peer.fail(effect.id, Error.INTERNAL)
        else:
            end = {"epoch": history.position.epoch, "offset": history.position.offset}
            if request.rpc:
                told = {**end, **history.found()}
                self._peer.reply_line(
                    effect.id, encode_called_history(effect.id, history.lines, told)
                )
                return
            payload = Payload.BYTES if self._peer.socket.is_binary else Payload.VALUE
            lines = [whole(sent, payload) for sent in history.sent]
            self._peer.reply_line(effect.id, encode_lines_reply(effect.id, "history", lines, end))

    async def _read_presence(self, effect: ReadPresence) -> None:
        presence = self._services.presence
        try:
            if effect.stats:
                clients, users = await presence.totals(effect.channel, self._peer.caller)
                self._peer.reply(
                    effect.id, "presence_stats", {"num_clients": clients, "num_users": users}
                )
            else:
                members = await presence.listing(effect.channel, self._peer.caller)
                self._peer.reply_line(effect.id, encode_presence_reply(effect.id, members))
        except TooManyMembers:
            # A reply that fills the client's queue would have the client cut off (3008). It can
            # still ask how many members there are.
            self._peer.fail(effect.id, Error.LIMIT_EXCEEDED)
        except PortError as error:
            _log.warning("presence_failed", channel=effect.channel, reason=str(error))
            self._peer.fail(effect.id, Error.INTERNAL)
