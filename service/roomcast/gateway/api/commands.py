"""The older form of Centrifugo's server API: POST /api with one command a line.

Older back ends, and the Go client gocent up to 3.2, know only this form. A command runs the method
of the same name, with the same parameters and result. The bounds are those of a batch, and the
commands run in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from roomcast.gateway.api.batch import BATCH_COMMANDS_MAX, Run
from roomcast.gateway.api.methods import ApiCall, Method
from roomcast.gateway.api.refusals import Refusal, bad_field
from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = ["Commands", "split"]


def split(body: bytes) -> Sequence[Json]:
    """The JSON values in `body`: a single value on any number of lines, or one value a line.

    Raises ValueError for invalid JSON, Refusal for too many lines.
    """
    try:
        return [orjson.loads(body)]
    except ValueError:
        lines = [line for line in body.split(b"\n", BATCH_COMMANDS_MAX) if line.strip()]
    if not lines:
        raise ValueError("no command")
    if len(lines) > BATCH_COMMANDS_MAX:
        raise Refusal(Error.LIMIT_EXCEEDED, f"more than {BATCH_COMMANDS_MAX} commands")
    return [orjson.loads(line) for line in lines]


class Commands:
    """Carries out commands. `methods`: the methods that a command may name."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods

    async def carry_out(self, call: ApiCall, commands: Sequence[Json]) -> bytes:
        """A reply for each command, one a line, in their order."""
        replies = await Run(call, self._chosen, lambda _: "result").replies(commands)
        return b"".join(reply + b"\n" for reply in replies)

    def _chosen(self, command: Json, name: str) -> tuple[Method, Json]:
        if not isinstance(command, dict):
            raise bad_field(name, "must be an object")
        method = (
            self._methods.get(named) if isinstance(named := command.get("method"), str) else None
        )
        if method is None:
            raise Refusal(Error.METHOD_NOT_FOUND)
        params = command.get("params")
        return method, {} if params is None else params
