"""The method `batch`: several commands in one request, one after another or at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import orjson

from roomcast.gateway.api.fields import FLAG, PAYLOAD, ListOf, Parameter, read
from roomcast.gateway.api.methods import ApiCall, Begun, Method, Params, UnderWay
from roomcast.gateway.api.publishing import BROADCAST_AT_ONCE
from roomcast.gateway.api.refusals import Refusal, bad_field, wire
from roomcast.log.item import ITEM_BYTES_MAX
from roomcast.log.lane import LANE_BYTES_MAX
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = [
    "BATCH_AT_ONCE",
    "BATCH_BODY_BYTES_MAX",
    "BATCH_COMMANDS_MAX",
    "BATCH_FIELDS",
    "BATCH_OTHERS_AT_ONCE",
    "BATCH_REPLIES_BYTES_MAX",
    "BATCH_TOGETHER_BYTES",
    "Batch",
    "Run",
]

BATCH_COMMANDS_MAX: Final = 1000
# Bytes of one batch request, however many commands it holds.
BATCH_BODY_BYTES_MAX: Final = 2 * 1024 * 1024
# Bytes of all replies together. Once they are used up, the remaining commands are not carried out.
BATCH_REPLIES_BYTES_MAX: Final = 8 * 1024 * 1024
# Commands of one `parallel` batch that are under way at once: publications as many as of a
# broadcast, and of others, whose replies may be large, fewer.
BATCH_AT_ONCE: Final = BROADCAST_AT_ONCE
BATCH_OTHERS_AT_ONCE: Final = 64
# Bytes of publications that follow each other and are handed over together: they must not fill
# their channel's lane by themselves.
BATCH_TOGETHER_BYTES: Final = ITEM_BYTES_MAX
assert BATCH_TOGETHER_BYTES <= LANE_BYTES_MAX // 4, "others have room as well"
# Room that is kept for the reply to a publication that was begun. It has about 80 bytes.
_REPLY_BYTES: Final = 256

BATCH_FIELDS: Final = (
    Parameter(
        "commands",
        ListOf(PAYLOAD, BATCH_COMMANDS_MAX),
        "Each an object with one member: a method's name, and its parameters.",
        required=True,
    ),
    Parameter(
        "parallel", FLAG, "Carry them out at once, and not one after the other.", default=False
    ),
    Parameter(
        "stop_at_error",
        FLAG,
        "Begin none after one that failed: those get error 111, and did not happen. Not with "
        "`parallel`.",
        default=False,
    ),
)


class Batch:
    """Carries out a batch. `methods`: the methods that a command may name, by name."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods

    async def carry_out(self, call: ApiCall, params: Json) -> Mapping[str, Json]:
        """A reply for each command, in their order. A failed command does not stop the later ones.

        Raises Refusal.
        """
        asked = read(BATCH_FIELDS, params)
        if asked["parallel"] and asked["stop_at_error"]:
            raise bad_field("stop_at_error", "must be false with parallel: all begin at once")
        run = Run(
            call,
            self._chosen,
            lambda method: method.name,
            parallel=asked["parallel"],
            stop_at_error=asked["stop_at_error"],
        )
        replies = await run.replies(asked["commands"])
        return {"replies": [orjson.Fragment(reply) for reply in replies]}

    def _chosen(self, command: Json, name: str) -> tuple[Method, Json]:
        """The first known method that the command names, and its parameters."""
        if not isinstance(command, dict):
            raise bad_field(name, "must be an object")
        for method_name, method in self._methods.items():
            if (params := command.get(method_name)) is not None:
                return method, params
        raise Refusal(Error.METHOD_NOT_FOUND)


class Run:
    """Carries out the commands of one request, as long as there is room for their replies.

    `chosen` takes a command and its name in refusals. It returns the method and the parameters, and
    raises Refusal. `under`: the field of a reply that holds the result. `parallel`: all of them at
    once. Otherwise each begins when the one before is done, or as if it did: publications that
    follow each other in one channel are handed over together, and so share their appends.
    `stop_at_error`: none begins after one that failed. Of publications that were handed over
    together, the later ones may be in the log nonetheless, if an append of the earlier ones failed.
    """

    def __init__(
        self,
        call: ApiCall,
        chosen: Callable[[Json, str], tuple[Method, Json]],
        under: Callable[[Method], str],
        *,
        parallel: bool = False,
        stop_at_error: bool = False,
    ) -> None:
        self._call = call
        self._chosen = chosen
        self._under = under
        self._parallel = parallel
        self._stop_at_error = stop_at_error
        self._has_failed = False
        self._under_way = UnderWay(call.turns, BATCH_AT_ONCE if parallel else BATCH_COMMANDS_MAX)
        # Of those that are no publications.
        self._places = asyncio.Semaphore(BATCH_OTHERS_AT_ONCE)
        self._room = BATCH_REPLIES_BYTES_MAX
        # By the place of the command.
        self._replies: dict[int, bytes] = {}
        self._begun: dict[int, tuple[Method, Begun]] = {}
        self._begun_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def replies(self, commands: Sequence[Json]) -> list[bytes]:
        """The replies, in the order of `commands`. To be called once."""
        try:
            for index, command in enumerate(commands):
                await self._under_way.begin()
                try:
                    await self._begin(index, command)
                except Refusal as refused:
                    self._under_way.end()
                    self._refuse(index, refused)
            await self._answer_begun()
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        return [self._replies[index] for index in range(len(commands))]

    async def _begin(self, index: int, command: Json) -> None:
        """Begins a command, or carries it out. Raises Refusal when it did not begin."""
        self._demand_room()
        self._demand_success()
        method, params = self._chosen(command, f"commands[{index}]")
        asked = read(method.fields, params)
        if self._begun and not self._may_join(method, asked):
            await self._answer_begun()
            self._demand_room()
            self._demand_success()
        if method.begin is not None:
            begun = method.begin(self._call, asked)
            if begun.future is None:
                self._under_way.end()
                self._reply(index, {self._under(method): {}})
            else:
                begun.future.add_done_callback(self._under_way.end)
                self._begun[index] = method, begun
                self._begun_bytes += begun.size
            return
        if self._parallel:
            await self._place()
            answering = self._answer(index, method, method.handler(self._call, asked))
            task = asyncio.create_task(answering)
            task.add_done_callback(self._leave_place)
            self._tasks.add(task)
        else:
            await self._answer(index, method, method.handler(self._call, asked))
            self._under_way.end()
            self._under_way.waited()

    async def _place(self) -> None:
        """Waits for a place of a command that is no publication. Raises Refusal when there is no
        room for its reply by then.
        """
        if not self._places.locked():
            await self._places.acquire()
            return
        await self._places.acquire()
        await self._under_way.turn()
        try:
            self._demand_room()
        except Refusal:
            self._places.release()
            raise

    def _leave_place(self, _task: object) -> None:
        self._places.release()
        self._under_way.end()

    def _may_join(self, method: Method, asked: Params) -> bool:
        """Whether a command may begin beside those that were begun."""
        if self._room <= len(self._begun) * _REPLY_BYTES:
            return False
        if self._parallel:
            return True
        before, begun = next(reversed(self._begun.values()))
        return (
            method is before
            and begun.may_precede(asked)
            and self._begun_bytes < BATCH_TOGETHER_BYTES
        )

    def _demand_room(self) -> None:
        if self._room <= 0:
            raise Refusal(Error.LIMIT_EXCEEDED, "the replies of the batch are too large")

    def _demand_success(self) -> None:
        if self._has_failed and self._stop_at_error:
            raise Refusal(Error.TOO_MANY_REQUESTS, "not begun: a command before it failed")

    async def _answer_begun(self) -> None:
        """Waits for all commands that were begun."""
        begun, self._begun, self._begun_bytes = self._begun, {}, 0
        for index, (method, one) in begun.items():
            await self._answer(index, method, one.result())
        self._under_way.waited()

    async def _answer(
        self, index: int, method: Method, result: Awaitable[Mapping[str, Json]]
    ) -> None:
        try:
            self._reply(index, {self._under(method): await result})
        except Refusal as refused:
            self._refuse(index, refused)

    def _refuse(self, index: int, refused: Refusal) -> None:
        self._has_failed = True
        self._reply(index, {"error": wire(refused.error, refused.why)})

    def _reply(self, index: int, reply: Mapping[str, Json]) -> None:
        # A copy: what orjson returns keeps 4 KiB for itself, however short it is.
        self._replies[index] = encoded = bytes(memoryview(orjson.dumps(reply)))
        self._room -= len(encoded)
