"""The refusal of a method: an error of the protocol, and the reason in words."""

from __future__ import annotations

from roomcast.wire.codes import Error
from roomcast.wire.publication import Json

__all__ = ["Refusal", "bad_field", "wire"]


class Refusal(Exception):
    """The method answers with `error`. `why`: the reason for the caller, without any payload."""

    def __init__(self, error: Error, why: str = "") -> None:
        super().__init__(f"{error.name}: {why}")
        self.error = error
        self.why = why


def bad_field(name: str, what: str) -> Refusal:
    """The refusal of a parameter's value. `what`: "must be …"."""
    return Refusal(Error.BAD_REQUEST, f"{name} {what}")


def wire(error: Error, why: str = "") -> dict[str, Json]:
    """The JSON object of an error."""
    message = error.value.message
    return {"code": error.value.code, "message": f"{message}: {why}" if why else message}
