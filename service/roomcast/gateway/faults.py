"""Filters the HTTP server's log: faults of this server in full, faults of peers only as a count."""

from __future__ import annotations

import logging
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["server_logger"]

_NAME: Final = "roomcast.gateway.server"
_WEBSOCKET_NAME: Final = "aiohttp.websocket"

_log = structlog.get_logger(__name__)


# Faults of peers: invalid HTTP, a body that is not encoded as its headers say, and a peer that hung
# up. aiohttp raises the general ConnectionError for a peer that went while an answer waited to be
# read.
_OF_PEERS: Final = (HttpProcessingError, web.RequestPayloadError, ConnectionError)


class _Ours(logging.Filter):
    """Drops records about faults of peers.

    aiohttp logs a traceback for every request that it cannot parse, and quotes the line. Anyone who
    can reach the port could fill the log, and a client's faulty header would put its key or token
    there.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _OF_PEERS):
            _log.debug("request_broken", reason=type(error).__name__)
            return False
        return True


class _NoHandshakes(logging.Filter):
    """Drops aiohttp's warning of an unknown subprotocol, which quotes everything that the client
    offered.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING and record.exc_info is None:
            _log.debug("request_broken", reason="subprotocols")
            return False
        return True


_OURS: Final = _Ours()
_NO_HANDSHAKES: Final = _NoHandshakes()


def server_logger() -> logging.Logger:
    """The logger for aiohttp's connections.

    It also filters the warnings of aiohttp's other logger about handshakes.
    """
    logging.getLogger(_WEBSOCKET_NAME).addFilter(_NO_HANDSHAKES)
    logger = logging.getLogger(_NAME)
    logger.addFilter(_OURS)
    return logger
