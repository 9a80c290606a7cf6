"""Declares the parameters of methods, once for reading requests and for describing the API.

`null` counts as absent, as in the client protocol, except where any JSON value is allowed.
Undeclared fields are ignored: they may belong to another release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from roomcast.auth.claims import INFO_DEPTH_MAX
from roomcast.gateway.api.refusals import Refusal, bad_field
from roomcast.wire import shapes
from roomcast.wire.keys import KEY_CHARS_MAX, is_valid_key
from roomcast.wire.names import CHANNEL_BYTES_MAX, is_valid_name
from roomcast.wire.publication import Json, from_base64
from roomcast.wire.shapes import Shape, is_deeper

__all__ = [
    "ABSENT",
    "BASE64",
    "BYTES",
    "CHANNEL",
    "FLAG",
    "INFO",
    "KEY",
    "PAYLOAD",
    "SAFE_MAX",
    "TAGS",
    "Kind",
    "ListOf",
    "Object",
    "Parameter",
    "Schema",
    "Text",
    "Whole",
    "not_base64",
    "read",
    "schema",
]

Schema = dict[str, Any]
T = TypeVar("T")

# The default of a parameter for which `null` is a value.
ABSENT: Final = object()

# The greatest integer that JavaScript and many JSON libraries hold exactly.
SAFE_MAX: Final = 2**53 - 1
_PRINTABLE: Final = r"^[ -~]+$"


class Kind(Protocol):
    """The type of a parameter."""

    def read(self, value: Json, name: str) -> Any:
        """The value for the method. Raises Refusal with the reason and the parameter's `name`."""

    def schema(self) -> Schema:
        """This type as JSON Schema."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `default`: the method's value when the parameter is absent."""

    name: str
    kind: Kind
    doc: str
    required: bool = False
    default: Any = None


def read(fields: Sequence[Parameter], params: Json, within: str = "") -> dict[str, Any]:
    """The values of all `fields` in `params`, by name.

    `within`: the name of `params` itself in refusals. Raises Refusal.
    """
    members = _checked(params, within or "the request", shapes.OBJECT)
    values: dict[str, Any] = {}
    for field in fields:
        name = field.name
        value = members.get(name)
        if value is None and not (field.default is ABSENT and name in members):
            if field.required:
                raise bad_field(_full(name, within), "is required")
            values[name] = field.default
        else:
            values[name] = field.kind.read(value, _full(name, within))
    return values


def _full(name: str, within: str) -> str:
    return f"{within}.{name}" if within else name


def schema(fields: Sequence[Parameter]) -> Schema:
    """An object with `fields`, as JSON Schema."""
    described: Schema = {
        "type": "object",
        "properties": {
            field.name: {**field.kind.schema(), "description": field.doc} for field in fields
        },
    }
    if required := [field.name for field in fields if field.required]:
        described["required"] = required
    return described


def _checked(value: Json, name: str, shape: Shape[T]) -> T:
    if not shape.fits(value):
        raise bad_field(name, f"must be {shape.words}")
    return value


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `chars_max` characters."""

    chars_max: int

    def read(self, value: Json, name: str) -> str:
        return _checked(value, name, shapes.text(self.chars_max))

    def schema(self) -> Schema:
        return {"type": "string", "maxLength": self.chars_max}


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer within bounds."""

    minimum: int
    maximum: int

    def read(self, value: Json, name: str) -> int:
        return _checked(value, name, shapes.whole(self.minimum, self.maximum))

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array of at most `most` values."""

    kind: Kind
    most: int
    least: int = 0

    def read(self, value: Json, name: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            raise bad_field(name, f"must be an array of {self.least} to {self.most} values")
        return tuple(self.kind.read(each, f"{name}[{index}]") for index, each in enumerate(value))

    def schema(self) -> Schema:
        return {
            "type": "array",
            "items": self.kind.schema(),
            "minItems": self.least,
            "maxItems": self.most,
        }


@dataclass(frozen=True, slots=True)
class Object:
    """An object with parameters of its own, read as a dictionary."""

    fields: tuple[Parameter, ...]

    def read(self, value: Json, name: str) -> Mapping[str, Any]:
        return read(self.fields, value, name)

    def schema(self) -> Schema:
        return schema(self.fields)


class _Flag:
    def read(self, value: Json, name: str) -> bool:
        return _checked(value, name, shapes.FLAG)

    def schema(self) -> Schema:
        return {"type": "boolean"}


class _Channel:
    """A valid channel name. Its namespace need not exist."""

    def read(self, value: Json, name: str) -> str:
        if not isinstance(value, str) or not is_valid_name(value):
            raise bad_field(name, f"must be 1 to {CHANNEL_BYTES_MAX} printable ASCII characters")
        return value

    def schema(self) -> Schema:
        return {
            "type": "string",
            "minLength": 1,
            "maxLength": CHANNEL_BYTES_MAX,
            "pattern": _PRINTABLE,
        }


class _Key:
    """An idempotency key. An empty one counts as absent, as in Centrifugo's API."""

    def read(self, value: Json, name: str) -> str | None:
        if value == "":
            return None
        if not isinstance(value, str) or not is_valid_key(value):
            raise bad_field(name, f"must be at most {KEY_CHARS_MAX} printable ASCII characters")
        return value

    def schema(self) -> Schema:
        return {"type": "string", "maxLength": KEY_CHARS_MAX, "pattern": r"^[ -~]*$"}


class _Tags:
    def read(self, value: Json, name: str) -> dict[str, str] | None:
        return _checked(value, name, shapes.OBJECT_OF_TEXTS) or None

    def schema(self) -> Schema:
        return {"type": "object", "additionalProperties": {"type": "string"}}


class _Payload:
    """Any JSON value, `null` included."""

    def read(self, value: Json, name: str) -> Json:  # noqa: ARG002  # as all kinds
        return value

    def schema(self) -> Schema:
        return {}


class _Info:
    """A JSON value that is later embedded in other JSON."""

    def read(self, value: Json, name: str) -> Json:
        if is_deeper(value, INFO_DEPTH_MAX):
            # An encoder would fail on it, and so lose the whole message around it.
            raise bad_field(name, "is nested too deeply")
        return value

    def schema(self) -> Schema:
        return {}


class _Bytes:
    """Base64, as the bytes that it stands for."""

    def read(self, value: Json, name: str) -> bytes:
        try:
            return from_base64(value)
        except ValueError:
            raise bad_field(name, "must be base64") from None

    def schema(self) -> Schema:
        return {"type": "string", "contentEncoding": "base64"}


class _Base64:
    """Base64, as the bytes that it stands for: the text of a JSON value, which is not decoded here.
    An empty string counts as absent.
    """

    def read(self, value: Json, name: str) -> bytes | None:
        if value == "":
            return None
        try:
            return from_base64(value)
        except ValueError:
            raise not_base64(name) from None

    def schema(self) -> Schema:
        return {
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "application/json",
        }


def not_base64(name: str) -> Refusal:
    """The refusal of a BASE64 parameter that is none, or not of JSON."""
    return bad_field(name, "must be base64 of the text of a JSON value")


FLAG: Final = _Flag()
CHANNEL: Final = _Channel()
KEY: Final = _Key()
TAGS: Final = _Tags()
PAYLOAD: Final = _Payload()
INFO: Final = _Info()
BASE64: Final = _Base64()
BYTES: Final = _Bytes()
