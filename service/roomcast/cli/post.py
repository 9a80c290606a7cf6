"""Sends one POST to exactly the given address, bounded in time and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from typing import Final
from urllib.request import HTTPErrorProcessor, Request, build_opener

from roomcast.cli.in_time import in_time

__all__ = ["ANSWER_BYTES_MAX", "Answer", "post"]

# No command asks for more than that.
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """`elsewhere`: where a redirect leads, "" = nowhere. `body`: ANSWER_BYTES_MAX at most."""

    status: int
    reason: str
    elsewhere: str
    body: bytes


class _AsItComes(HTTPErrorProcessor):
    """Takes every status for an answer.

    The library would follow redirects, and give the headers to whoever is there.
    """

    def http_response(self, request: Request, response: HTTPResponse) -> HTTPResponse:  # noqa: ARG002  # the library's names
        return response

    https_response = http_response


def post(address: str, headers: Mapping[str, str], body: bytes, within_s: float) -> Answer:
    """The answer.

    Raises OSError and HTTPException, and TimeoutError when it is not complete within `within_s`.
    """
    request = Request(address, body, dict(headers))  # noqa: S310  # the caller takes http and https only
    # The library's own time-out begins anew with every byte, and does not count the name's look-up.
    return in_time(within_s, partial(_asked, request, within_s))


def _asked(request: Request, within_s: float) -> Answer:
    with build_opener(_AsItComes).open(request, timeout=within_s) as response:
        return Answer(
            response.status,
            response.reason,
            response.headers.get("Location", ""),
            response.read(ANSWER_BYTES_MAX),
        )
