"""From a message of a queue to the command of the server API that it stands for.

The forms are those of Centrifugo's consumer `aws_sqs` (internal/consuming/aws_sqs.go and
internal/api/consuming.go):

    a command       body {"method": …, "payload": {…}}; the payload may be text that is such JSON
    with a method   an attribute names the method, and the body is its parameters
    a publication   the body is the data, and attributes have the channels and the rest
    from SNS        any of these is the text in `Message` of the body, without raw delivery

Beyond Centrifugo, attributes of a notification count as those of its message.

Pure: a message in, a command out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from roomcast.config.consumer_options import AwsSqsConfig, PublicationDataModeConfig
from roomcast.wire.keys import is_valid_key
from roomcast.wire.publication import Json

__all__ = ["Command", "Decoding", "QueueMessage", "Unreadable", "command_of"]

# Decodes JSON. Raises ValueError.
Decoding = Callable[[bytes], Json]

# What Go's strconv.ParseBool takes, and nothing else.
_FLAGS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
# 2^64 - 1 has twenty.
_VERSION: Final = re.compile(r"[0-9]{1,20}")
_BINARY: Final = "Binary"


@dataclass(frozen=True, slots=True)
class QueueMessage:
    """One message of a queue that back ends send to.

    `id`: the same each time it is received. `attributes`: those that are text. `receipt`: of this
    receive. `sent_ms`, `first_received_ms`: by the clock of the queue, ms since 1970. `receives`:
    how often it was received, by any node, this time included. `group`: of a FIFO queue, "" = none.
    """

    id: str
    body: str
    attributes: Mapping[str, str]
    receipt: str
    sent_ms: int
    first_received_ms: int
    receives: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A method of the server API and its parameters, not checked yet.

    `key`: the idempotency key of its publications that bring none: it names the message.
    """

    method: str
    params: Json
    key: str


class Unreadable(Exception):
    """The message has none of the forms, and never will. Its text says why, without its content."""


def command_of(message: QueueMessage, form: AwsSqsConfig, decode: Decoding) -> Command:
    """The command that `message` stands for. Raises Unreadable, and what `decode` raises besides
    ValueError.
    """
    text, attributes, key = message.body, message.attributes, message.id
    if form.sns_envelope:
        notification = _object(text, decode, "the body")
        within = notification.get("Message")
        if not isinstance(within, str):
            raise Unreadable("the body has no Message: it is no notification of SNS")
        text = within
        attributes = {**_attributes(notification), **attributes}
        # SNS may deliver one notification in two messages. It has an id of its own.
        id_ = notification.get("MessageId")
        if isinstance(id_, str) and is_valid_key(id_):
            key = id_
    if form.publication_data_mode.enabled:
        method, params = _publication(text, attributes, form.publication_data_mode)
    elif named := _attribute(attributes, form.method_attribute):
        method, params = named, _decoded(text, decode, "the body")
    else:
        method, params = _command(text, decode)
    return Command(method, params, key)


def _command(text: str, decode: Decoding) -> tuple[str, Json]:
    outer = _object(text, decode, "the body")
    method, params = outer.get("method"), outer.get("payload")
    if not isinstance(method, str):
        raise Unreadable("the body has no method")
    if isinstance(params, str):
        params = _decoded(params, decode, "the payload")
    return method, params


def _publication(
    text: str, attributes: Mapping[str, str], mode: PublicationDataModeConfig
) -> tuple[str, Json]:
    channels = _attribute(attributes, mode.channels_attribute)
    if not channels:
        raise Unreadable(f"there is no attribute {mode.channels_attribute}")
    # The bytes go out as they are.
    params: dict[str, Json] = {"b64data": base64.b64encode(_bytes(text)).decode()}
    if key := _attribute(attributes, mode.idempotency_key_attribute):
        params["idempotency_key"] = key
    if delta := _attribute(attributes, mode.delta_attribute):
        if delta not in _FLAGS:
            raise Unreadable(f"the attribute {mode.delta_attribute} is neither true nor false")
        params["delta"] = _FLAGS[delta]
    if version := _attribute(attributes, mode.version_attribute):
        if not _VERSION.fullmatch(version):
            raise Unreadable(f"the attribute {mode.version_attribute} is no whole number")
        params["version"] = int(version)
    if epoch := _attribute(attributes, mode.version_epoch_attribute):
        params["version_epoch"] = epoch
    if prefix := mode.tags_attribute_prefix:
        params["tags"] = {
            name.removeprefix(prefix): value
            for name, value in attributes.items()
            if name.startswith(prefix)
        }
    names = channels.split(",")
    if len(names) == 1:
        return "publish", {"channel": channels, **params}
    return "broadcast", {"channels": names, **params}


def _attributes(notification: Mapping[str, Any]) -> Mapping[str, str]:
    """The attributes of a notification that are text."""
    found = notification.get("MessageAttributes")
    if not isinstance(found, dict):
        return {}
    return {
        name: value
        for name, each in found.items()
        if isinstance(each, dict)
        and each.get("Type") != _BINARY
        and isinstance(value := each.get("Value"), str)
    }


def _attribute(attributes: Mapping[str, str], name: str) -> str:
    """Its value; "" = there is none, or it has no name."""
    return attributes.get(name, "") if name else ""


def _object(text: str, decode: Decoding, name: str) -> Mapping[str, Any]:
    found = _decoded(text, decode, name)
    if not isinstance(found, dict):
        raise Unreadable(f"{name} is no JSON object")
    return found


def _decoded(text: str, decode: Decoding, name: str) -> Json:
    try:
        return decode(_bytes(text))
    except ValueError:
        raise Unreadable(f"{name} is not JSON") from None


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Unreadable("the body has half a character") from None
