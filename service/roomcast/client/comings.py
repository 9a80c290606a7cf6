"""The lines of the log at a client's connect and at its end: one each, with who and why.

They come from this module alone, whichever transport a client has, so that `log.levels` can leave
out these and nothing else. No token and no payload is in them.
"""

from __future__ import annotations

import structlog

from roomcast.wire.codes import DisconnectCode

__all__ = ["closed", "connected", "gone", "slow"]

_log = structlog.get_logger(__name__)


def connected(client: str, user: str) -> None:
    """Its `connect` was answered."""
    _log.info("client_connected", client=client, user=user)


def closed(client: str, user: str, why: DisconnectCode) -> None:
    """This side closes. `user` "": none, or it never connected."""
    _log.info("client_closed", client=client, user=user, code=why.code, reason=why.reason)


def gone(client: str, user: str, code: int | None) -> None:
    """The other side closed, or is lost. `code`: of its close frame, if there was one."""
    # A member of an enumeration would be told by its name.
    told = {} if code is None else {"code": int(code)}
    _log.info("client_gone", client=client, user=user, **told)


def slow(client: str, user: str, why: DisconnectCode) -> None:
    """This side cuts it off, since it does not read."""
    _log.warning("client_slow", client=client, user=user, code=why.code, reason=why.reason)
