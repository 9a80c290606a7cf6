"""Where a page stands: on the server's own machine, or anywhere else."""

from __future__ import annotations

from urllib.parse import SplitResult

import pytest
from aiohttp.test_utils import make_mocked_request

from roomcast.gateway import pages
from roomcast.gateway.pages import is_on_this_machine, url_parts


@pytest.mark.parametrize(
    "peer, host, here",
    [
        ("127.0.0.1", "127.0.0.1:8000", True),
        ("127.0.0.1", "localhost", True),
        ("::1", "[::1]:8000", True),
        # As a socket for both families has it.
        ("::ffff:127.0.0.1", "127.0.0.1:8000", True),
        ("::ffff:192.0.2.1", "127.0.0.1:8000", False),
        ("192.0.2.1", "127.0.0.1:8000", False),
        # A foreign name that resolves to this machine.
        ("127.0.0.1", "rebound.example", False),
        ("127.0.0.1", "localhost.rebound.example", False),
        ("127.0.0.1", "[", False),
        ("127.0.0.1", "loc\N{LATIN SMALL LETTER A WITH ACUTE}lhost", False),
        ("", "localhost", False),
    ],
)
def test_this_machine(peer: str, host: str, *, here: bool) -> None:
    request = make_mocked_request("GET", "/", {"Host": host}).clone(remote=peer)
    assert is_on_this_machine(request) is here


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For"])
def test_behind_a_proxy_nobody_is_here(header: str) -> None:
    headers = {"Host": "localhost", header: "127.0.0.1"}
    request = make_mocked_request("GET", "/", headers).clone(remote="127.0.0.1")
    assert not is_on_this_machine(request)


@pytest.mark.parametrize("url", ["http://[", "http://\N{KELVIN SIGN}.example"])
def test_what_is_no_address_has_no_parts(url: str) -> None:
    assert url_parts(url).netloc == ""


@pytest.mark.parametrize("start", ["//a", "http://a"])
def test_no_letters_of_a_host_or_an_origin_are_normalized(
    monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """8 KiB of them took 60 ms, for anybody, before the peer's address was looked at."""
    split: list[str] = []

    def urlsplit(url: str) -> SplitResult:
        split.append(url)
        return SplitResult("", "", "", "", "")

    monkeypatch.setattr(pages, "urlsplit", urlsplit)
    url_parts(start + "\u0301" * 2000)
    assert split == [""]
