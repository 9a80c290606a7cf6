"""Inquiries: signals that ask nodes how they are doing, and the reports that answer them.

An inquiry goes to all nodes through the topic. Each node answers with one report, straight into the
queue of the node that asked, so that a fleet of N nodes costs N messages and not N × N. A node of a
release without inquiries ignores them: it is one that did not answer.

A node of another release may report more, or less: who reads a report takes what it knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from roomcast.delivery.envelope import Signal
from roomcast.fleet.lease_record import NODE_CHARS_MAX
from roomcast.fleet.order_signals import ID_CHARS_MAX, USER_CHARS_MAX
from roomcast.wire.names import CHANNEL_BYTES_MAX, RESERVED_PREFIX
from roomcast.wire.shapes import OBJECT, TEXT, checked, member, text

__all__ = [
    "INQUIRY_KINDS",
    "REPORT_BYTES_MAX",
    "SUBJECTS",
    "Inquiry",
    "MalformedInquiry",
    "fits_report",
    "inquiry_of",
    "inquiry_signal",
    "report_of",
    "report_signal",
]

INQUIRY_KINDS: Final = frozenset({"inquiry", "report"})
# What can be asked: how a node does; its channels with most traffic; the subscribers of one
# channel; the connections of one user, or the one with an id.
SUBJECTS: Final = frozenset({"figures", "busiest", "channel", "clients"})
# Bytes of a report as JSON. It must fit a signal of 128 KiB.
REPORT_BYTES_MAX: Final = 96 * 1024
_CHANNEL: Final = RESERVED_PREFIX + "inquiry"
_LEASE: Final = text(NODE_CHARS_MAX)


class MalformedInquiry(ValueError):
    """A signal of an inquiry's kind with a malformed body."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is asked. `subject`: one of SUBJECTS.

    `channel`: for "channel". `user`, `client`: for "clients"; a client is asked for by its id
    alone, and a user "" is the anonymous one.
    """

    subject: str
    channel: str = ""
    user: str = ""
    client: str = ""


def inquiry_signal(inquiry: Inquiry, node: str, signal_id: str, lease: str) -> Signal:
    """The inquiry of `node`, whose present lease has the id `lease`. Reports name `signal_id`."""
    body: dict[str, Any] = {"subject": inquiry.subject, "lease": lease}
    for name in ("channel", "user", "client"):
        if value := getattr(inquiry, name):
            body[name] = value
    return Signal("inquiry", signal_id, node, _CHANNEL, body)


def inquiry_of(signal: Signal) -> tuple[str, Inquiry]:
    """The lease of the node that asks, and what it asks. Raises MalformedInquiry.

    A subject that this release does not know is no mistake: its inquiry is not answered.
    """
    body = checked(signal.body, "the body of an inquiry", OBJECT, MalformedInquiry)
    lease = checked(body.get("lease"), "lease", _LEASE, MalformedInquiry)
    subject = checked(body.get("subject"), "subject", text(32), MalformedInquiry)
    return lease, Inquiry(
        subject,
        member(body, "channel", text(CHANNEL_BYTES_MAX), "", MalformedInquiry),
        member(body, "user", text(USER_CHARS_MAX), "", MalformedInquiry),
        member(body, "client", text(ID_CHARS_MAX), "", MalformedInquiry),
    )


def report_signal(
    report: Mapping[str, Any], node: str, signal_id: str, lease: str, inquiry_id: str
) -> Signal:
    """The report of `node`, whose lease is `lease`, on the inquiry `inquiry_id`."""
    return Signal(
        "report",
        signal_id,
        node,
        _CHANNEL,
        {"inquiry": inquiry_id, "lease": lease, "report": report},
    )


def report_of(signal: Signal) -> tuple[str, str, Mapping[str, Any], int]:
    """The id of the inquiry, the lease of the node, its report and that one's bytes as JSON.

    Raises MalformedInquiry.
    """
    body = checked(signal.body, "the body of a report", OBJECT, MalformedInquiry)
    inquiry_id = checked(body.get("inquiry"), "inquiry", TEXT, MalformedInquiry)
    lease = checked(body.get("lease"), "lease", _LEASE, MalformedInquiry)
    report = checked(body.get("report"), "report", OBJECT, MalformedInquiry)
    size = _size(report)
    if size is None or size > REPORT_BYTES_MAX:
        raise MalformedInquiry("a report that is too long")
    return inquiry_id, lease, report, size


def fits_report(report: Mapping[str, Any]) -> bool:
    """Whether `report` is no longer than a report may be."""
    size = _size(report)
    return size is not None and size <= REPORT_BYTES_MAX


def _size(report: Mapping[str, Any]) -> int | None:
    """None = JSON has no such values."""
    try:
        return len(json.dumps(report))
    except (ValueError, RecursionError):
        return None
