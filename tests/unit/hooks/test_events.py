"""service/roomcast/hooks/events.py: what an application may say no with."""

from __future__ import annotations

import pytest

from roomcast.hooks.events import MESSAGE_CHARS_MAX, Disconnected, Refused
from roomcast.wire.codes import REASON_BYTES_MAX, DisconnectCode, ErrorCode


@pytest.mark.parametrize("code", [400, 1999, 100, 103, 109, 112])
def test_an_error_is_the_applications_or_the_protocols(code: int) -> None:
    refused = Refused(code, "not you", temporary=True)
    assert refused.error == ErrorCode(code, "not you", temporary=True)
    assert not Refused(code, "not you").error.temporary


@pytest.mark.parametrize("code", [0, 99, 113, 399, 2000, -1, True, "400", 400.0, None])
def test_another_code_is_no_error(code: int) -> None:
    with pytest.raises(ValueError, match="an error's code is from 400 to 1999"):
        Refused(code, "not you")


@pytest.mark.parametrize("message", ["", "x" * (MESSAGE_CHARS_MAX + 1), "\ud800", None, b"no"])
def test_another_message_is_no_error(message: str) -> None:
    with pytest.raises(ValueError, match="an error's message"):
        Refused(400, message)


@pytest.mark.parametrize("code", [4000, 4499, 4500, 4999, 3001, 3500, 3503])
def test_a_close_is_the_applications_or_the_protocols(code: int) -> None:
    assert Disconnected(code, "é" * 61).why == DisconnectCode(code, "é" * 61)


@pytest.mark.parametrize("code", [1000, 3000, 3999, 5000, 0, True, "4000", None])
def test_another_code_is_no_close(code: int) -> None:
    with pytest.raises(ValueError, match="a close's code is from 4000 to 4999"):
        Disconnected(code, "away")


@pytest.mark.parametrize(
    "reason", ["é" * (REASON_BYTES_MAX // 2 + 1), "\ud800", None, '{"reconnect":true}', "1"]
)
def test_another_reason_is_no_close(reason: str) -> None:
    with pytest.raises(ValueError, match="a close's reason"):
        Disconnected(4000, reason)
