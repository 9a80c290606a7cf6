"""The method `batch`: several commands in one request, one after another or at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import orjson

from roomcast.concurrency import each
from roomcast.gateway.api.fields import FLAG, PAYLOAD, ListOf, Parameter, read
from roomcast.gateway.api.methods import ApiCall, Method
from roomcast.gateway.api.refusals import Refusal, bad_field, wire
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = [
    "BATCH_AT_ONCE",
    "BATCH_BODY_BYTES_MAX",
    "BATCH_COMMANDS_MAX",
    "BATCH_FIELDS",
    "BATCH_REPLIES_BYTES_MAX",
    "Batch",
    "Run",
]

BATCH_COMMANDS_MAX: Final = 1000
# Bytes of one batch request, however many commands it holds.
BATCH_BODY_BYTES_MAX: Final = 2 * 1024 * 1024
# Bytes of all replies together. Once they are used up, the remaining commands are not carried out.
BATCH_REPLIES_BYTES_MAX: Final = 8 * 1024 * 1024
# Commands of one `parallel` batch that run at once.
BATCH_AT_ONCE: Final = 64

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
        run = Run(call, self._chosen, lambda method: method.name)
        at_once = BATCH_AT_ONCE if asked["parallel"] else 1
        replies = await each(at_once, list(enumerate(asked["commands"])), run.reply)
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
    raises Refusal. `under`: the field of a reply that holds the result.
    """

    def __init__(
        self,
        call: ApiCall,
        chosen: Callable[[Json, str], tuple[Method, Json]],
        under: Callable[[Method], str],
    ) -> None:
        self._call = call
        self._chosen = chosen
        self._under = under
        self._room = BATCH_REPLIES_BYTES_MAX

    async def reply(self, numbered: tuple[int, Json]) -> bytes:
        """The reply to one command. `numbered`: the command's place in the request, and the
        command.

        Raises nothing of its own.
        """
        index, command = numbered
        # A command may finish without waiting for anything.
        await self._call.turns.wait()
        try:
            if self._room <= 0:
                raise Refusal(Error.LIMIT_EXCEEDED, "the replies of the batch are too large")
            method, params = self._chosen(command, f"commands[{index}]")
            result = await method.handler(self._call, read(method.fields, params))
            encoded = orjson.dumps({self._under(method): result})
        except Refusal as refused:
            encoded = orjson.dumps({"error": wire(refused.error, refused.why)})
        self._room -= len(encoded)
        return encoded
