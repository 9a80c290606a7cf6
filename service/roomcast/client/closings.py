"""Decides how a connection ends whose `connect` fails, where nothing but a close can answer it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from roomcast.wire.codes import (
    Closing,
    Disconnect,
    DisconnectCode,
    Error,
    Failing,
    error_of,
    is_reason,
)

__all__ = ["closing_of"]

_CLOSINGS: Final[Mapping[int, Disconnect]] = {
    Error.INTERNAL.value.code: Disconnect.SERVER_ERROR,
    Error.UNAUTHORIZED.value.code: Disconnect.PERMISSION_DENIED,
    Error.PERMISSION_DENIED.value.code: Disconnect.PERMISSION_DENIED,
    Error.TOKEN_EXPIRED.value.code: Disconnect.EXPIRED,
    Error.TOO_MANY_REQUESTS.value.code: Disconnect.TOO_MANY_REQUESTS,
}
_OURS: Final = frozenset(error.value.code for error in Error)


def closing_of(error: Failing) -> Closing:
    """The close in place of `error`.

    A client comes back after it if an SDK would repeat the `connect` after the error. The message
    of an application's error is the reason, if it can be.
    """
    code = error_of(error)
    if code.code in _CLOSINGS:
        return _CLOSINGS[code.code]
    if code.temporary:
        return Disconnect.SERVER_ERROR
    if code.code in _OURS:
        return Disconnect.BAD_REQUEST
    denied = Disconnect.PERMISSION_DENIED
    return DisconnectCode(denied.value.code, code.message) if is_reason(code.message) else denied
