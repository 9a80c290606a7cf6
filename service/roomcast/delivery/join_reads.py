"""Reads of the log that clients cause by joining a channel, shared by those who ask at once.

Theory of operation. A subscriber that joins may need a read. The first one of a channel opens it.
One that wants to recover may claim a position that this node cannot judge: behind what the ring
keeps, ahead of what the node has seen, or in another epoch. Clients can claim anything, as often as
they like. So the reads for one channel are made one after the other, each by the first subscriber
whom no other's read has served. A read that was in vain, failed or was given up is followed by a
pause; everybody who comes meanwhile waits for its end together.

A `Joiner` is one subscriber on its way in. It looks at the channel (`result`), has something read
if that is not enough (`read`), and looks again, a few times at most. Then it cannot recover.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final

from roomcast.concurrency import SharedCall
from roomcast.delivery.hub import Subscriber
from roomcast.delivery.open_channel import (
    GAP_PUBLICATIONS_MAX,
    OpenChannel,
    Shared,
    publication_count,
)
from roomcast.delivery.recovery import LogNeeded, Recovered, Unrecovered, Window, recover
from roomcast.ports import Malformed, PortError
from roomcast.wire.publication import StreamPosition
from roomcast.wire.sent import Sent

__all__ = ["Evicted", "JoinReads", "Joined", "Joiner", "Joining", "results"]

# Reads of the log that one joining subscriber may cause. After that it cannot recover.
_JOIN_READS_MAX: Final = 3
# Minimum pause between log reads that clients can cause by claiming false positions. It is short
# beside what a subscribe may take, and costs the log one read a second at most.
_READ_PAUSE_S: Final = 1.0
# Epochs that clients claimed and the log did not confirm. They are not asked for again.
_DENIED_MAX: Final = 8


class Evicted(PortError):
    """The channel was lost while a subscriber joined; the client tries again."""

    def __init__(self, channel: str) -> None:
        super().__init__(f"channel {channel} was closed while a subscriber joined")


@dataclass(frozen=True, slots=True)
class Joining:
    """A subscriber that is to be let into channel `name`.

    `since`: the position it wants to recover from. `window`: what of the history it may see; None =
    a channel without history, which has neither positions nor order.
    """

    name: str
    subscriber: Subscriber
    since: StreamPosition | None = None
    window: Callable[[], Window] | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """Where a new subscriber starts.

    `recovered`: None = it did not ask; False = it could not be recovered, and must learn that.
    `missed`: what it gets before the pushes.
    """

    position: StreamPosition
    recovered: bool | None
    missed: tuple[Sent, ...]


@dataclass(slots=True)
class _SharedReads:
    """Reads of one channel for one kind of claim.

    `begun` numbers the reads. `answered`: the number of the last one that the log answered.
    `next_at_s`: when the next one may begin, in the event loop's time. Whoever begins one holds
    `turn`, which all kinds of a channel share.
    """

    turn: asyncio.Lock
    begun: int = 0
    answered: int = 0
    next_at_s: float = -inf

    def begin(self) -> int:
        """The number of the read that begins."""
        self.begun += 1
        return self.begun

    def pause(self) -> None:
        """The next read is not to follow at once."""
        self.next_at_s = asyncio.get_running_loop().time() + _READ_PAUSE_S


@dataclass(slots=True)
class _AheadReads(_SharedReads):
    """For clients that are ahead of this node.

    `reached_end`: whether the last one reached the end of the log.
    """

    reached_end: bool = False


@dataclass(slots=True)
class _EpochReads(_SharedReads):
    """For clients that claim another epoch. `denied`: claimed, and not the channel's.

    None of these is held against a record: a node whose clock is behind may deny an epoch that has
    just begun.
    """

    denied: deque[str] = field(default_factory=lambda: deque(maxlen=_DENIED_MAX))


class JoinReads:
    """The reads for those who join one channel."""

    __slots__ = ("_ahead", "_behind", "_opening", "_shared", "_unreachable", "channel", "epochs")

    def __init__(self, channel: OpenChannel, shared: Shared) -> None:
        self.channel = channel
        self._shared = shared
        turn = asyncio.Lock()
        self._ahead, self._behind = _AheadReads(turn), _SharedReads(turn)
        self.epochs = _EpochReads(turn)
        self._opening: SharedCall[None] | None = None
        # Reads for positions before this offset were in vain: the log has a hole there, or a
        # recovery does not bring so many bytes.
        self._unreachable = 0

    # ---- the first read

    async def open(self) -> None:
        """Read the position where the channel starts. Raises PortError."""
        if self._opening is None:
            self._opening = SharedCall(
                self._read_position(), self._opened, name=f"open {self.channel.name}"
            )
            self._shared.tasks.hold(self._opening.task)
        await self._opening.result()

    async def _read_position(self) -> None:
        read_at_s = self._shared.clock.monotonic_s()
        number = self.epochs.begin()
        resolved = await self._shared.log.renew(self.channel.name)
        self.epochs.answered = number
        self.channel.open_at(resolved, read_at_s)

    def _opened(self) -> None:
        self._opening = None

    # ---- another epoch

    def denies(self, epoch: str) -> bool:
        """Whether `epoch` is known not to be the channel's."""
        return epoch in self.epochs.denied or self.channel.order.has_refuted(epoch)

    async def ask_epoch(self, joiner: Joiner, since: StreamPosition) -> None:
        """Have the log say which epoch is the channel's. Raises PortError."""
        await self._share(joiner, self.epochs, joiner.may_be_of_next_epoch, self._read_epoch)
        if not self.channel.is_open:
            raise Evicted(self.channel.name)
        denied = self.epochs.denied
        if since.epoch not in ("", self.channel.order.epoch) and since.epoch not in denied:
            denied.append(since.epoch)

    async def _read_epoch(self) -> None:
        number = self.epochs.begin()
        try:
            resolved = await self._shared.log.resolve(self.channel.name)
        finally:
            self.epochs.pause()
        self.epochs.answered = number
        self.channel.compare(resolved)

    # ---- behind the ring

    async def read_back(self, joiner: Joiner, since: StreamPosition) -> bool:
        """Read what a recovery needs. False = the log does not have it. Raises PortError."""

        def is_needed() -> bool:
            return isinstance(joiner.answer(since), LogNeeded) and since.offset >= self._unreachable

        read = partial(self._read_window, joiner.window)
        await self._share(joiner, self._behind, is_needed, read)
        return since.offset >= self._unreachable

    async def _read_window(self, window: Callable[[], Window]) -> None:
        """Read the whole window into the ring: one read serves everybody who comes back."""
        channel = self.channel
        top, hints = channel.order.top, channel.trim.hints
        wanted = min(window().limit, window().size, top)
        try:
            records, head = await asyncio.gather(
                self._shared.log.read_before(channel.name, channel.order.epoch, top, wanted),
                self._shared.log.head(channel.name),
            )
        except Malformed:
            # What is hidden is not known, nor will it be: nobody is kept out for that.
            self._unreachable = top
            return
        except BaseException:
            # It failed, or nobody waits for it any more.
            self._behind.pause()
            raise
        channel.trim.read(head, hints, self._shared.clock.monotonic_s())
        channel.keep_older(records, top)
        if channel.ring.first <= top + 1:
            # Otherwise so much came meanwhile that the ring has no room for it: try again.
            self._unreachable = channel.ring.first - 1 if channel.ring else top

    # ---- ahead of this node

    async def reach(self, joiner: Joiner, since: StreamPosition) -> bool:
        """Read on to a position that is ahead. False = the log does not reach it. Raises PortError.

        A read is not held against a client that came after it began: what that one claims may have
        been appended since.
        """
        ahead, begun, order = self._ahead, self._ahead.begun, self.channel.order
        await self._share(
            joiner,
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
        joiner: Joiner,
        reads: _SharedReads,
        is_needed: Callable[[], bool],
        read: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        """Do `read` when it is its turn and no pause is left, unless others' reads are enough.

        Raises PortError.
        """
        while True:
            async with reads.turn:
                if not is_needed() or not self.channel.is_open:
                    return
                pause_s = reads.next_at_s - asyncio.get_running_loop().time()
                if pause_s <= 0:
                    async with joiner.places:
                        await read()
                    return
            await asyncio.sleep(pause_s)


class Joiner:
    """One subscriber on its way into a channel.

    `since`: the position that it wants to recover from; None = it starts at the end. `window`: what
    of the history it may see. `places`: for the reads of its connection that are under way at once.
    """

    __slots__ = (
        "_epochs_begun",
        "_given_up",
        "_read_count",
        "_reads",
        "_since",
        "places",
        "window",
    )

    def __init__(
        self,
        reads: JoinReads,
        since: StreamPosition | None,
        window: Callable[[], Window],
        places: asyncio.Semaphore,
    ) -> None:
        self.window = window
        self.places = places
        self._reads = reads
        self._since = since
        self._read_count = 0
        self._given_up = False
        # Reads of the epoch that were begun before it came say nothing of what it claims.
        self._epochs_begun = reads.epochs.begun

    def result(self) -> Joined | None:
        """Where it may start now; None = the log must be read first."""
        channel, since = self._reads.channel, self._since
        if not channel.has_position:
            return None
        position = channel.order.position
        if since is None:
            return Joined(position, None, ())
        if self.may_be_of_next_epoch():
            return None
        answer = self.answer(since)
        if isinstance(answer, Recovered):
            if answer.sent:
                channel.ring_used()
            return Joined(position, True, answer.sent)
        if isinstance(answer, Unrecovered) or self._given_up:
            return Joined(position, False, ())
        return None

    async def read(self) -> None:
        """Read what the next look needs, or give up on a recovery. Raises PortError."""
        channel, since = self._reads.channel, self._since
        if not channel.has_position:
            async with self.places:
                await self._reads.open()
            return
        assert since is not None, "who does not recover needs no read"
        if self._read_count == _JOIN_READS_MAX:
            self._given_up = True
            return
        self._read_count += 1
        if self.may_be_of_next_epoch():
            await self._reads.ask_epoch(self, since)
        elif since.offset > channel.order.top:
            self._given_up = not await self._reads.reach(self, since)
        else:
            self._given_up = not await self._reads.read_back(self, since)

    def answer(self, since: StreamPosition) -> Recovered | Unrecovered | LogNeeded:
        """What a recovery from `since` brings as the channel is now."""
        channel = self._reads.channel
        visible = channel.visible(self.window())
        return recover(since, channel.order.position, channel.ring, visible)

    def may_be_of_next_epoch(self) -> bool:
        """Whether it claims another epoch than this node's, and the log was not asked since.

        The node may have slept through the beginning of the next epoch.
        """
        since, order = self._since, self._reads.channel.order
        if since is None or since.epoch in ("", order.epoch) or self._given_up:
            return False
        is_answered = self._reads.epochs.answered > self._epochs_begun
        return not (is_answered or self._reads.denies(since.epoch))


async def results(joiners: Sequence[Joiner | None]) -> Sequence[Joined | None]:
    """Where subscribers may start, as of the last tick, for all of them alike. Raises PortError.

    None stands for one that starts nowhere: its channel has no history.
    """
    while True:
        joined = [None if joiner is None else joiner.result() for joiner in joiners]
        behind = [
            joiner
            for joiner, one in zip(joiners, joined, strict=True)
            if joiner is not None and one is None
        ]
        if not behind:
            return joined
        if len(behind) == 1:
            await behind[0].read()
            continue
        # One that fails must not leave the others' reads without anybody who waits for them.
        reads = (joiner.read() for joiner in behind)
        for failure in filter(None, await asyncio.gather(*reads, return_exceptions=True)):
            raise failure
