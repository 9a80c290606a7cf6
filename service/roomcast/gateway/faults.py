"""What the HTTP server logs of requests that failed: our faults in full, the peers' counted."""

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


# What is no HTTP, a body that is not encoded as its headers say, and a peer that hung up: aiohttp
# raises the general ConnectionError for one that went while something waited for it to read.
_OF_PEERS: Final = (HttpProcessingError, web.RequestPayloadError, ConnectionError)


class _Ours(logging.Filter):
    """Lets pass what is not a peer's doing.

    aiohttp tells with a traceback of every request that it cannot parse, and quotes the line:
    whoever can reach the port could fill the log, and a client's faulty header would put its key or
    token there.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _OF_PEERS):
            _log.debug("request_broken", reason=type(error).__name__)
            return False
        return True


class _NoHandshakes(logging.Filter):
    """Drops aiohttp's warning of an unknown subprotocol: it quotes all that is offered."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING and record.exc_info is None:
            _log.debug("request_broken", reason="subprotocols")
            return False
        return True


_OURS: Final = _Ours()
_NO_HANDSHAKES: Final = _NoHandshakes()


def server_logger() -> logging.Logger:
    """For aiohttp's connections.

    What it says elsewhere of handshakes is kept out of the log as well.
    """
    logging.getLogger(_WEBSOCKET_NAME).addFilter(_NO_HANDSHAKES)
    logger = logging.getLogger(_NAME)
    logger.addFilter(_OURS)
    return logger
