"""Carries out what messages stand for, by the same methods as the server API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson
import structlog

from roomcast.concurrency import Turns
from roomcast.config import AwsSqsConfig
from roomcast.consumers.messages import QueueMessage, Unreadable, command_of
from roomcast.consumers.rules import Failed, failure_among, failure_of, is_too_old
from roomcast.gateway.api import channels, clients, publishing
from roomcast.gateway.api.fields import read
from roomcast.gateway.api.methods import ApiCall, Containers, Method
from roomcast.gateway.api.refusals import Refusal
from roomcast.node.node import Node
from roomcast.wire.publication import Json

__all__ = ["CONSUMED", "Commands"]

# The methods that Centrifugo's consumers take: those that change something. What only reads has
# nobody to answer, and a batch is a message each.
CONSUMED: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        publishing.PUBLISH,
        publishing.BROADCAST,
        clients.SUBSCRIBE,
        clients.UNSUBSCRIBE,
        clients.DISCONNECT,
        clients.REFRESH,
        channels.HISTORY_REMOVE,
    )
}

_log = structlog.get_logger(__name__)


class Commands:
    """Of all consumers of a node. `payload_bytes_max`: of a publication's data."""

    def __init__(self, node: Node, payload_bytes_max: int) -> None:
        self._node = node
        self._payload_bytes_max = payload_bytes_max
        # One message is read in a turn of the event loop: it may be as large as a request.
        self._messages = Turns(1)
        self._turns = Turns(1)

    async def carry_out(self, message: QueueMessage, form: AwsSqsConfig, received_ms: int) -> None:
        """Returns when what `message` stands for is done: a publication with history is in the log.

        `received_ms`: when it was read, by the wall clock. Raises Failed.
        """
        await self._messages.wait()
        if is_too_old(message, received_ms):
            raise Failed("too_old", again=False, why="its first receive was more than 22 h ago")
        try:
            await self._done(message, form, received_ms)
        except Unreadable as unreadable:
            raise Failed("unreadable", again=False, why=str(unreadable)) from None
        except Refusal as refused:
            raise failure_of(refused.error, refused.why) from None
        except Failed:
            raise
        except Exception as error:  # noqa: BLE001  # it is tried again, whatever happened
            # A fault of this server. Another node may have none.
            _log.exception("consumer_fault", message=message.id)
            raise Failed("fault", again=True, why=type(error).__name__) from None

    async def _done(self, message: QueueMessage, form: AwsSqsConfig, received_ms: int) -> None:
        containers = Containers()

        def decode(text: bytes) -> Json:
            containers.take(text)
            return orjson.loads(text)

        command = command_of(message, form, decode)
        method = CONSUMED.get(command.method)
        if method is None:
            raise Unreadable("consumers have no such method")
        call = ApiCall(
            self._node,
            received_ms,
            late=False,
            payload_bytes_max=self._payload_bytes_max,
            containers=containers,
            turns=self._turns,
            key=command.key,
        )
        answer = await method.handler(call, read(method.fields, command.params))
        responses = answer.get("responses")
        if method is publishing.BROADCAST and isinstance(responses, list):
            failure = failure_among(responses)
            if failure is not None:
                raise failure
