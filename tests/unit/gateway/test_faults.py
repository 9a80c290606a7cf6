"""Which failed requests the log tells of, and what of them."""

from __future__ import annotations

import logging

import pytest
import structlog
from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine

from roomcast.gateway.faults import server_logger


@pytest.mark.parametrize(
    "error",
    [
        BadHttpMessage("b'X-API-Key: hush'"),
        BadStatusLine("GET /?token=hush"),
        web.RequestPayloadError("hush"),
        ConnectionResetError("hush"),
        # As aiohttp has it.
        ConnectionError("Connection lost"),
        ClientConnectionResetError("Cannot write to closing transport"),
    ],
    ids=repr,
)
def test_what_a_peer_did_is_told_without_a_word_of_it(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with structlog.testing.capture_logs() as events:
        server_logger().exception("Error handling request from %s", "192.0.2.1", exc_info=error)
    assert events == [
        {"event": "request_broken", "reason": type(error).__name__, "log_level": "debug"},
    ]
    assert caplog.records == []


def test_what_we_did_is_told_whole(caplog: pytest.LogCaptureFixture) -> None:
    """Also after the logger was asked for again."""
    logger = server_logger()
    assert server_logger() is logger
    assert len(logger.filters) == 1
    with structlog.testing.capture_logs() as events:
        logger.error("Unhandled exception", exc_info=ValueError("ours"))
        logger.warning("something else")
    assert events == []
    first, second = caplog.records
    assert first.exc_info is not None
    assert (first.levelno, second.levelno) == (logging.ERROR, logging.WARNING)


def test_what_a_client_offers_in_a_handshake_is_not_quoted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server_logger()
    logger = logging.getLogger("aiohttp.websocket")
    with structlog.testing.capture_logs() as events:
        logger.warning("%s: Client protocols %r don’t overlap", "192.0.2.1", ["hush"])
        logger.error("ours")
        logger.warning("ours", exc_info=ValueError("ours"))
    assert events == [{"event": "request_broken", "reason": "subprotocols", "log_level": "debug"}]
    assert [record.getMessage() for record in caplog.records] == ["ours", "ours"]
