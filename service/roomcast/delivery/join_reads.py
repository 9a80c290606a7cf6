"""Reads the log for subscribers that join a channel, and shares each read among them.

Theory of operation. A subscriber that joins may need a read. The first read of a channel opens it.
A subscriber that wants to recover may claim a position that this node cannot judge: older than the
ring, ahead of the node, or in another epoch. Clients can claim any position, as often as they like.
So the reads for one channel are made one after the other, each by the first subscriber that no
other's read has served. A pause follows a read that found nothing, failed or was given up. All
subscribers that come meanwhile wait for its end together.

Subscribers of one node cause JOIN_READS_AT_ONCE reads at once. Further ones wait for a place, each
in the line of its caller, and these lines take turns. Who shares a read that is under way needs
none.

A `JoinTicket` is one subscriber on its way in. It looks at the channel (`result`), causes a read if
that is not enough (`read`), and looks again. After a few reads it gives up the recovery.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final

from roomcast.concurrency import SharedCall
from roomcast.delivery.envelope import EPOCH_CHARS_MAX
from roomcast.delivery.hub import Subscriber
from roomcast.delivery.open_channel import (
    GAP_PUBLICATIONS_MAX,
    OpenChannel,
    Shared,
    encoded,
    publication_count,
)
from roomcast.delivery.recovery import (
    RING_BYTES_MAX,
    LogNeeded,
    Recovered,
    Unrecovered,
    Window,
    before_newest,
    recover,
)
from roomcast.frozen import frozen
from roomcast.ports import Malformed, PortError
from roomcast.wire.encoding import Sent
from roomcast.wire.publication import StreamPosition

__all__ = [
    "READ_BACK_MIN",
    "Evicted",
    "JoinReads",
    "JoinRequest",
    "JoinResult",
    "JoinTicket",
    "results",
]

# Reads of the log that one joining subscriber may cause. After them it cannot recover.
_JOIN_READS_MAX: Final = 3
# Publications that a read for a recovery goes back at least. Most who come back missed fewer, so it
# serves them all. A whole window may be a hundred pages, and a read that takes longer than a join
# may would begin anew with each attempt.
READ_BACK_MIN: Final = 300
# Stored bytes that one read of a window decodes: more than a ring holds. A publication may take
# twice its bytes in the log, and the end of the newest item may be beyond the top.
_WINDOW_BYTES_MAX: Final = 3 * RING_BYTES_MAX
# Minimum pause between log reads that clients can cause by claiming false positions. It is short
# beside what a subscribe may take, and costs the log one read a second at most.
_READ_PAUSE_S: Final = 1.0
# Behind it there is everything.
_ANYWHERE: Final = StreamPosition("", 0)
# Epochs that clients claimed and the log did not confirm, which are remembered and not looked up
# again.
_DENIED_MAX: Final = 8


class Evicted(PortError):
    """The channel was lost while a subscriber joined."""

    def __init__(self, channel: str) -> None:
        super().__init__(f"channel {channel} was closed while a subscriber joined")


@frozen
class JoinRequest:
    """A subscriber that is to be let into channel `name`.

    `since`: the position to recover from. `window`: the part of the history that it may see; None =
    the channel has no history, and so neither positions nor order.
    """

    name: str
    subscriber: Subscriber
    since: StreamPosition | None = None
    window: Callable[[], Window] | None = None


@frozen
class JoinResult:
    """The start of a new subscriber.

    `recovered`: None = it did not ask; False = it could not be recovered, and must be told.
    `missed`: the publications that it gets before any push.
    """

    position: StreamPosition
    recovered: bool | None
    missed: tuple[Sent, ...]


@dataclass(slots=True)
class _SharedReads:
    """Reads of one channel for one kind of claim.

    `begun` numbers the reads. `answered`: the number of the last read that the log answered.
    `next_at_s`: when the next one may begin, in the event loop's time. A subscriber that begins one
    holds `turn`, which all kinds of reads of a channel share.
    """

    turn: asyncio.Lock
    begun: int = 0
    answered: int = 0
    next_at_s: float = -inf

    def begin(self) -> int:
        """Begin a read. Returns its number."""
        self.begun += 1
        return self.begun

    def pause(self) -> None:
        """Have the next read wait."""
        self.next_at_s = asyncio.get_running_loop().time() + _READ_PAUSE_S


@dataclass(slots=True)
class _AheadReads(_SharedReads):
    """Reads for clients that are ahead of this node.

    `reached_end`: whether the last read reached the end of the log.
    """

    reached_end: bool = False


@dataclass(slots=True)
class _EpochReads(_SharedReads):
    """Reads for clients that claim another epoch.

    `denied`: claimed epochs that are not the channel's.

    A denied epoch counts against clients only, not against records. A node whose clock is behind
    may deny an epoch that has just begun.
    """

    denied: deque[str] = field(default_factory=lambda: deque(maxlen=_DENIED_MAX))


class JoinReads:
    """The reads for the subscribers that join one channel. `joining` counts these. `places`: those
    that the subscribers of all channels share.
    """

    __slots__ = (
        "_ahead",
        "_behind",
        "_opening",
        "_shared",
        "_unreachable",
        "channel",
        "epochs",
        "joining",
        "places",
    )

    def __init__(self, channel: OpenChannel, shared: Shared) -> None:
        self.channel = channel
        self.joining = 0
        self.places: Final = shared.join_reads
        self._shared = shared
        turn = asyncio.Lock()
        self._ahead, self._behind = _AheadReads(turn), _SharedReads(turn)
        self.epochs = _EpochReads(turn)
        self._opening: SharedCall[None] | None = None
        # Reads for positions before this offset found too little: the log has a hole there, or the
        # publications are too many bytes for a recovery.
        self._unreachable = 0

    # ---- the first read

    @property
    def is_opening(self) -> bool:
        """Whether the first read is under way."""
        return self._opening is not None

    async def open(self, caller: str) -> None:
        """Read the position where the channel starts, in a place of `caller`. Raises PortError.

        The place is held until the read has ended: it goes on when all who wait for it are gone.
        """
        if self._opening is None:
            await self.places.take(caller)
            if self.channel.has_position or self.is_opening:
                # Another opened it meanwhile, or is about to.
                self.places.give_back()
            else:
                self._opening = SharedCall(
                    self._read_position(), self._opened, name=f"open {self.channel.name}"
                )
                self._shared.tasks.hold(self._opening.task)
        if self._opening is not None:
            await self._opening.result()

    async def _read_position(self) -> None:
        read_at_s = self._shared.clock.monotonic_s()
        number = self.epochs.begin()
        resolved = await self._shared.log.renew(self.channel.name)
        self.epochs.answered = number
        self.channel.open_at(resolved, read_at_s)

    def _opened(self) -> None:
        self._opening = None
        self.places.give_back()

    # ---- another epoch

    def denies(self, epoch: str) -> bool:
        """Whether `epoch` is known not to be the channel's."""
        # A longer one is no channel's. To remember what somebody claims would take memory.
        is_none = len(epoch) > EPOCH_CHARS_MAX
        return is_none or epoch in self.epochs.denied or self.channel.order.has_refuted(epoch)

    async def ask_epoch(self, ticket: JoinTicket, since: StreamPosition) -> None:
        """Look up in the log which epoch is the channel's. Raises PortError."""
        await self._share(ticket, self.epochs, ticket.may_be_of_next_epoch, self._read_epoch)
        if not self.channel.is_open:
            raise Evicted(self.channel.name)
        denied = self.epochs.denied
        if since.epoch not in ("", self.channel.order.epoch) and since.epoch not in denied:
            denied.append(since.epoch)

    async def _read_epoch(self) -> None:
        number, had = self.epochs.begin(), self.channel.order.top
        try:
            resolved = await self._shared.log.resolve(self.channel.name)
        finally:
            self.epochs.pause()
        self.epochs.answered = number
        self.channel.compare(resolved, had)

    # ---- behind the ring

    async def read_back(self, ticket: JoinTicket, since: StreamPosition) -> bool:
        """Read the publications for a recovery.

        False = the log does not have them. Raises PortError.
        """

        def is_needed() -> bool:
            return isinstance(ticket.answer(since), LogNeeded) and since.offset >= self._unreachable

        read = partial(self._read_window, ticket.window, since)
        await self._share(ticket, self._behind, is_needed, read)
        return since.offset >= self._unreachable

    async def _read_window(self, window: Callable[[], Window], since: StreamPosition) -> None:
        """Read the end of the window into the ring, back to `since` or farther.

        One read serves all clients that come back. Each further read goes back at least twice as
        far as the ring does, so that clients that missed different numbers do not cost a read each.
        """
        channel = self.channel
        top, hints = channel.order.top, channel.trim.hints
        farther = max(top - since.offset, READ_BACK_MIN, 2 * len(channel.ring))
        wanted = min(farther, window().limit, window().size, top)
        if window().newest_only:
            wanted = min(1, top)
        try:
            records, head = await asyncio.gather(
                self._shared.log.forms_before(
                    encoded, channel.name, channel.order.epoch, top, wanted, _WINDOW_BYTES_MAX
                ),
                self._shared.log.head(channel.name),
            )
        except Malformed:
            # The head is broken, so what is hidden is not known. Clients get in, but cannot
            # recover.
            self._unreachable = top
            return
        except BaseException:
            # The read failed, or nobody waits for it any more.
            self._behind.pause()
            raise
        channel.trim.read(head, hints, self._shared.clock.monotonic_s())
        channel.keep_older(records, top)
        first = channel.ring.first
        # Beyond top + 1: so much was published meanwhile that the ring has no room for the read.
        # Try again.
        if top - wanted + 1 < first <= top + 1:
            self._unreachable = first - 1
        elif not first:
            self._unreachable = top

    # ---- ahead of this node

    async def reach(self, ticket: JoinTicket, since: StreamPosition) -> bool:
        """Read on to a position that is ahead. False = the log ends before it. Raises PortError.

        A read does not count against a client that came after it began: the position that the
        client claims may have been appended since.
        """
        ahead, begun, order = self._ahead, self._ahead.begun, self.channel.order
        await self._share(
            ticket,
            ahead,
            lambda: since.offset > order.top and ahead.answered <= begun,
            partial(self._read_ahead, since),
        )
        return since.offset <= order.top or not ahead.reached_end

    async def _read_ahead(self, since: StreamPosition) -> None:
        ahead, order = self._ahead, self.channel.order
        number = ahead.begin()
        is_in_vain = True
        try:
            records = await self._shared.log.read_after(
                self.channel.name, order.epoch, order.top, GAP_PUBLICATIONS_MAX
            )
            ahead.answered = number
            ahead.reached_end = publication_count(records) < GAP_PUBLICATIONS_MAX
            is_in_vain = ahead.reached_end and (not records or records[-1].last < since.offset)
        finally:
            if is_in_vain:
                ahead.pause()
        if self.channel.is_open:
            self.channel.offer(records)

    # ---- one after the other

    async def _share(
        self,
        ticket: JoinTicket,
        reads: _SharedReads,
        is_needed: Callable[[], bool],
        read: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        """Wait for the turn and the end of a pause, and do `read` unless others' reads are enough.

        Raises PortError.
        """
        while True:
            async with reads.turn:
                if not is_needed() or not self.channel.is_open:
                    return
                pause_s = reads.next_at_s - asyncio.get_running_loop().time()
                if pause_s <= 0:
                    async with ticket.place():
                        await read()
                    return
            await asyncio.sleep(pause_s)


class JoinTicket:
    """One subscriber on its way into a channel.

    `since`: the position to recover from; None = it starts at the end. `window`: the part of the
    history that it may see. `places`: bounds the reads of its connection at once. `caller`: in
    whose line they wait for a place among those of all.
    """

    __slots__ = (
        "_caller",
        "_epochs_begun",
        "_given_up",
        "_places",
        "_read_count",
        "_reads",
        "_since",
        "window",
    )

    def __init__(
        self,
        reads: JoinReads,
        since: StreamPosition | None,
        window: Callable[[], Window],
        places: asyncio.Semaphore,
        caller: str = "",
    ) -> None:
        self.window = window
        self._places = places
        self._caller = caller
        self._reads = reads
        self._since = since
        self._read_count = 0
        self._given_up = False
        # Reads of the epoch that began before it came say nothing about its claim.
        self._epochs_begun = reads.epochs.begun

    def result(self) -> JoinResult | None:
        """The start as the channel is now; None = the log must be read first."""
        channel, since = self._reads.channel, self._since
        if not channel.has_position:
            return None
        position = channel.order.position
        if since is None:
            return JoinResult(position, None, ())
        if self.may_be_of_next_epoch():
            return None
        answer = self.answer(since)
        if isinstance(answer, Recovered):
            if answer.sent:
                channel.ring_used()
            return JoinResult(position, True, answer.sent)
        if isinstance(answer, Unrecovered) or self._given_up:
            return JoinResult(position, False, ())
        return None

    async def read(self) -> None:
        """Do the read that is needed next, or give up the recovery. Raises PortError."""
        channel, since = self._reads.channel, self._since
        if not channel.has_position:
            if self._reads.is_opening:
                await self._reads.open(self._caller)
                return
            async with self._places:
                # Another may have opened it meanwhile.
                if not channel.has_position:
                    await self._reads.open(self._caller)
            return
        assert since is not None, "who does not recover needs no read"
        if self._read_count == _JOIN_READS_MAX:
            self._given_up = True
            return
        self._read_count += 1
        if self.may_be_of_next_epoch():
            await self._reads.ask_epoch(self, since)
        elif self._is_ahead(since):
            is_reached = await self._reads.reach(self, since)
            if not is_reached and self.window().newest_only:
                # There is no such position, and a newest publication all the same.
                self._since = _ANYWHERE
            else:
                self._given_up = not is_reached
        else:
            if self.window().newest_only:
                since = before_newest(since, channel.order.position)
            self._given_up = not await self._reads.read_back(self, since)

    def _is_ahead(self, since: StreamPosition) -> bool:
        order = self._reads.channel.order
        return since.offset > order.top and since.epoch in ("", order.epoch)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one read."""
        async with self._places, self._reads.places.of(self._caller):
            yield

    def answer(self, since: StreamPosition) -> Recovered | Unrecovered | LogNeeded:
        """The outcome of a recovery from `since` as the channel is now."""
        channel = self._reads.channel
        visible = channel.visible(self.window())
        return recover(since, channel.order.position, channel.ring, visible)

    def may_be_of_next_epoch(self) -> bool:
        """Whether it claims another epoch than this node's, and the log was not read since.

        The node may have been suspended when the next epoch began.
        """
        since, order = self._since, self._reads.channel.order
        if since is None or since.epoch in ("", order.epoch) or self._given_up:
            return False
        is_answered = self._reads.epochs.answered > self._epochs_begun
        return not (is_answered or self._reads.denies(since.epoch))


async def results(tickets: Sequence[JoinTicket | None]) -> Sequence[JoinResult | None]:
    """The starts of all subscribers as of one tick, after all reads. Raises PortError.

    None stands for a subscriber whose channel has no history.
    """
    while True:
        starts = [None if ticket is None else ticket.result() for ticket in tickets]
        behind = [
            ticket
            for ticket, one in zip(tickets, starts, strict=True)
            if ticket is not None and one is None
        ]
        if not behind:
            return starts
        if len(behind) == 1:
            await behind[0].read()
            continue
        # If one fails, the others' reads must still be awaited.
        reads = (ticket.read() for ticket in behind)
        for failure in filter(None, await asyncio.gather(*reads, return_exceptions=True)):
            raise failure
