"""Inquiries and reports as signals: what one release says another reads, and what is made up is
refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from roomcast.fleet.inquiry_signals import (
    REPORT_BYTES_MAX,
    Inquiry,
    MalformedInquiry,
    fits_report,
    inquiry_of,
    inquiry_signal,
    report_of,
    report_signal,
)


@pytest.mark.parametrize(
    "inquiry",
    [
        Inquiry("figures"),
        Inquiry("channel", channel="news"),
        Inquiry("clients", user="ann"),
        Inquiry("clients", client="an-id"),
        # Of a release that knows more.
        Inquiry("weather"),
    ],
)
def test_an_inquiry_comes_as_it_was_asked(inquiry: Inquiry) -> None:
    signal = inquiry_signal(inquiry, "node", "an id", "lease")
    assert inquiry_of(signal) == ("lease", inquiry)
    # Further members belong to another release.
    assert inquiry_of(replace(signal, body={**signal.body, "more": 1})) == ("lease", inquiry)


def test_a_report_comes_as_it_was_told() -> None:
    signal = report_signal({"a": [1, "b"]}, "node", "another id", "lease", "an id")
    assert report_of(signal) == ("an id", "lease", {"a": [1, "b"]}, 15)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"lease": "l"},
        {"subject": "figures"},
        {"lease": 1, "subject": "figures"},
        {"lease": "l" * 1000, "subject": "figures"},
        {"lease": "l", "subject": "clients", "user": 1},
        {"lease": "l", "subject": "clients", "user": "u" * 10_000},
        {"lease": "l", "subject": "channel", "channel": "c" * 300},
    ],
)
def test_what_is_no_inquiry_is_refused(body: Any) -> None:
    signal = replace(inquiry_signal(Inquiry("figures"), "node", "id", "lease"), body=body)
    with pytest.raises(MalformedInquiry):
        inquiry_of(signal)


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"inquiry": "i", "lease": "l"},
        {"inquiry": "i", "lease": "l", "report": []},
        {"inquiry": 1, "lease": "l", "report": {}},
        {"inquiry": "i", "lease": "l", "report": {"a": "x" * REPORT_BYTES_MAX}},
    ],
)
def test_what_is_no_report_is_refused(body: Any) -> None:
    signal = replace(report_signal({}, "node", "id", "lease", "i"), body=body)
    with pytest.raises(MalformedInquiry):
        report_of(signal)


def test_the_length_of_a_report_is_bounded() -> None:
    assert fits_report({"a": "x" * (REPORT_BYTES_MAX - 100)})
    assert not fits_report({"a": "x" * REPORT_BYTES_MAX})
