"""Writes the report of `roomcast bench` for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from roomcast.bench.chart import chart, milliseconds
from roomcast.bench.ledger import Ledger
from roomcast.bench.report import LATE_US, counted
from roomcast.cli.terminal import coloured, table
from roomcast.observe.redaction import printable

__all__ = ["Look", "bench_text"]

# The members of the report that are durations, as rows of the table.
_DURATIONS: Final = {
    "connect_ms": "connected and subscribed",
    "acknowledged_ms": "acknowledged",
    "delivered_ms": "delivered",
    "delivered_same_address_ms": "  at the publisher's address",
    "delivered_other_address_ms": "  at another address",
}


@dataclass(frozen=True, slots=True)
class Look:
    """`width`: columns. `blocks`: whether bars may be drawn with block characters."""

    width: int
    colours: bool
    blocks: bool


def bench_text(told: Mapping[str, Any], ledger: Ledger, look: Look) -> str:
    """The report `told` of a run, with the histograms of its ledger, in lines."""
    parts = ["\n".join([*_figures(told, look), *_remarks(told)])]
    rows = list(_durations(told))
    if rows:
        headings = ("MS", "P50", "P90", "P99", "MAX", "COUNT")
        parts.append(table(headings, rows, (lambda _: "") if look.colours else None))
    histograms = {
        "acknowledged after … ms": ledger.acknowledged_us,
        "delivered after … ms": ledger.same_us.merged(ledger.other_us),
    }
    for title, histogram in histograms.items():
        if lines := chart(histogram, look.width, blocks=look.blocks):
            parts.append("\n".join([_in_colour("bold", title, look), *lines]))
    text = "\n\n".join(parts)
    return text if look.blocks else text.replace("×", "x").replace("…", "...")


def _figures(told: Mapping[str, Any], look: Look) -> Iterator[str]:
    plan, connections = told["plan"], told["connections"]
    publications, deliveries = told["publications"], told["deliveries"]
    places = counted(len(plan["urls"]), "URL")
    yield (
        f"{connections['connected']:,} of {counted(plan['clients'], 'client')} connected to "
        f"{places} in {connections['elapsed_s']:.1f} s"
    )
    if not plan["rate"]:
        return
    yield (
        f"{counted(publications['sent'], 'publication')} of {plan['size']:,} bytes in "
        f"{counted(plan['channels'], 'channel')}, {publications['rate']:,.1f} a second; "
        f"{publications['acknowledged']:,} acknowledged"
    )
    faults = ", ".join(
        _fault(deliveries[name], name.replace("_", " "), look)
        for name in ("lost", "repeated", "out_of_order")
    )
    yield (
        f"{counted(deliveries['received'], 'delivery', 'deliveries')}, "
        f"{deliveries['rate']:,.1f} a second; {faults}"
    )


def _remarks(told: Mapping[str, Any]) -> Iterator[str]:
    """What is out of the ordinary."""
    connections, publications = told["connections"], told["publications"]
    if told["interrupted"]:
        yield f"interrupted while {told['interrupted']}"
    if connections["closes"] or connections["reconnects"]:
        yield f"connections ended, and {connections['reconnects']:,} came back:"
        yield from _by_reason(connections["closes"])
    if connections["failures"]:
        yield "attempts to connect failed:"
        yield from _by_reason(connections["failures"])
    if publications["refused"]:
        yield "publications were refused:"
        yield from _by_reason(publications["refusals"])
    if publications["unanswered"]:
        yield f"{counted(publications['unanswered'], 'publication')} without an answer"
    if publications["not_sent"]:
        count = counted(publications["not_sent"], "publication")
        yield f"{count} not sent: nobody was free to send in time"
    if away := told["deliveries"]["away"]:
        yield (
            f"{counted(away, 'delivery', 'deliveries')} missed by clients that were away, and "
            "not recovered"
        )
    if publications["late_ms"] * 1000 >= LATE_US:
        yield (
            f"a publication was sent {publications['late_ms']:,.0f} ms late: this command had too "
            "much to do, and the durations show that, too"
        )


def _by_reason(counts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for each in counts:
        yield f"  {each['count']:,} × {printable(each['reason'])}"


def _durations(told: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for member, name in _DURATIONS.items():
        found = told[member]
        if found and found["count"]:
            values = (milliseconds(found[each] * 1000) for each in ("p50", "p90", "p99", "max"))
            yield (name, *values, f"{found['count']:,}")


def _fault(count: int, name: str, look: Look) -> str:
    return _in_colour("red" if count else "green", f"{count:,} {name}", look)


def _in_colour(colour: str, text: str, look: Look) -> str:
    return coloured(colour, text) if look.colours else text
