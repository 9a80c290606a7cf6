"""service/roomcast/hooks/passed_headers.py: which headers go on, and in which order they count."""

from __future__ import annotations

import pytest

from roomcast.config import ProxyConfig, ProxyHttpConfig
from roomcast.hooks.passed_headers import HEADER_CHARS_MAX, PassedHeaders, headers_for, is_value


def test_nothing_is_passed_on_that_nobody_named() -> None:
    passed = PassedHeaders([ProxyConfig()])
    assert passed.of_request([("Cookie", "s=1"), ("Authorization", "x")]) == {}
    assert passed.of_connect({"Cookie": "s=1"}) == {}


def test_what_is_named_is_passed_on_and_nothing_else() -> None:
    passed = PassedHeaders(
        [
            ProxyConfig(http_headers=("Cookie", "X-Forwarded-For")),
            ProxyConfig(emulated_headers=("Authorization",)),
        ]
    )
    assert passed.of_request(
        [
            ("cookie", "a=1"),
            ("COOKIE", "b=2"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("Authorization", "real"),
            ("X-User-Id", "1"),
        ]
    ) == {"cookie": "a=1; b=2", "x-forwarded-for": "1.2.3.4, 5.6.7.8"}
    # A client cannot emulate what only its request may have.
    assert passed.of_connect(
        {"Cookie": "a=1", "authorization": "mine", "x-forwarded-for": "0"}
    ) == {"authorization": "mine"}


@pytest.mark.parametrize(
    "value", ["a\r\nX-User-Id: 1", "a\nb", "a\rb", "a\x00", "\ud800", "a" * (HEADER_CHARS_MAX + 1)]
)
def test_no_value_becomes_another_header(value: str) -> None:
    assert not is_value(value)
    proxy = ProxyConfig(http_headers=("X-A",), emulated_headers=("X-A",))
    passed = PassedHeaders([proxy])
    assert passed.of_connect({"X-A": value}) == {}
    assert passed.of_request([("X-A", value)]) == {}


def test_each_hook_gets_its_own_and_the_request_counts_before_what_is_emulated() -> None:
    proxy = ProxyConfig(
        http_headers=("Authorization",),
        emulated_headers=("Authorization", "X-Lang"),
        http=ProxyHttpConfig(static_headers=(("X-Hook-Secret", "hush"),)),
    )
    headers = {"authorization": "real", "cookie": "for another hook"}
    emulated = {"authorization": "claimed", "x-lang": "de"}
    assert headers_for(proxy, headers, emulated) == {
        "X-Hook-Secret": "hush",
        "authorization": "real",
        "x-lang": "de",
    }
    assert headers_for(proxy, {}, emulated)["authorization"] == "claimed"
