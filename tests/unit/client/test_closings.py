"""service/roomcast/client/closings.py: how a `connect` fails that only a close can answer."""

from __future__ import annotations

import pytest

from roomcast.client.closings import closing_of
from roomcast.wire.codes import (
    REASON_BYTES_MAX,
    Disconnect,
    DisconnectCode,
    Error,
    ErrorCode,
    code_of,
)


@pytest.mark.parametrize("error", Error)
def test_who_would_connect_again_after_an_error_does_after_its_close(error: Error) -> None:
    """SDKs connect again after a temporary error to `connect`, and with a new token after 109."""
    closing = code_of(closing_of(error))
    comes_back = error.value.temporary or error is Error.TOKEN_EXPIRED
    # That one is told of publications only.
    if error is not Error.REFUSED:
        assert closing.terminal is not comes_back
    assert closing in {each.value for each in Disconnect}


@pytest.mark.parametrize(
    "error, closing",
    [
        (ErrorCode(400, "not today"), DisconnectCode(3507, "not today")),
        (ErrorCode(1999, "later", temporary=True), Disconnect.SERVER_ERROR),
        (ErrorCode(109, "old"), Disconnect.EXPIRED),
        (ErrorCode(103, "no"), Disconnect.PERMISSION_DENIED),
        # Texts that no close frame may have.
        (ErrorCode(400, "é" * REASON_BYTES_MAX), Disconnect.PERMISSION_DENIED),
        (ErrorCode(400, '{"reconnect":true}'), Disconnect.PERMISSION_DENIED),
    ],
)
def test_an_error_of_the_application_is_a_close_with_its_words(
    error: ErrorCode, closing: Disconnect | DisconnectCode
) -> None:
    assert closing_of(error) == closing
