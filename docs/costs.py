"""Writes the tables of docs/cost.md, from the same formulas as `roomcast cost`: `python -m
docs.costs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from roomcast.cost.bill import Bill, Setup, bill_of
from roomcast.cost.calls import Load, Pace, calls_of
from roomcast.cost.prices import PRICES

__all__ = ["PAGE", "main", "with_tables"]

PAGE: Final = Path(__file__).with_name("cost.md")
END: Final = "<!-- end -->\n"

_SMALL: Final = Load(instances=2, publications_s=1, channels=20, clients=200)
_MIDDLE: Final = Load(instances=3, publications_s=50, channels=1000, clients=10_000)
_LARGE: Final = Load(instances=20, publications_s=500, channels=10_000, clients=100_000)
_LOADS: Final = (
    ("a team's tool", _SMALL),
    ("a product", _MIDDLE),
    ("a large one", _LARGE),
)
# What is told together, in the order of the columns.
_COLUMNS: Final = (
    ("machines", ("EC2", "Fargate")),
    ("load balancer", ("Load balancer",)),
    ("VPC", ("VPC",)),
    ("data out", ("Internet",)),
    ("DynamoDB", ("DynamoDB",)),
    ("Lambda, SNS", ("Lambda", "SNS")),
    ("SQS", ("SQS",)),
    ("watching", ("CloudWatch", "Secrets Manager")),
)


def with_tables(page: str) -> str:
    """The text of the page with the tables of the present formulas and prices."""
    for name, table in _TABLES.items():
        begin = f"<!-- {name}: python -m docs.costs -->\n"
        before, found, rest = page.partition(begin)
        _, end, after = rest.partition(END)
        if not (found and end):
            raise ValueError(f"docs/cost.md has no place for the table {name!r}")
        page = f"{before}{begin}\n{table()}\n{END}{after}"
    return page


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _usd(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.2f}"


def _examples() -> str:
    rows = []
    for name, load in _LOADS:
        bill = bill_of(load, Setup(), PRICES)
        parts = [
            sum(line.usd for line in bill.lines if line.service in services)
            for _, services in _COLUMNS
        ]
        what = (
            f"{name}: {load.instances} instances, {load.publications_s:g} publications a second, "
            f"{load.channels:,} channels, {load.clients:,} clients"
        )
        rows.append([what, *map(_usd, parts), f"**{_usd(bill.total)}**"])
    return _lines(["", *(name for name, _ in _COLUMNS), "all"], rows)


def _variants() -> str:
    trial = replace(_SMALL, instances=1)
    kinds = (
        ("as the template makes it", _SMALL, Setup()),
        ("the VPC has its endpoints already", _SMALL, Setup(network="shared")),
        ("a NAT gateway in each zone", _SMALL, Setup(network="nat")),
        ("public addresses", _SMALL, Setup(network="public")),
        (
            "Fargate, half a vCPU and 1 GB, public addresses",
            _SMALL,
            Setup(compute="fargate", network="public", vcpus=0.5, memory_gb=1),
        ),
        (
            "a trial: one machine with a public address, in one zone, without a load balancer",
            trial,
            Setup(network="public", zones=1, load_balancer=False),
        ),
    )
    rows = []
    for name, load, setup in kinds:
        bill = bill_of(load, setup, PRICES)
        rows.append([name, _usd(bill.fixed), _usd(bill.total)])
    return _lines(["the team's tool", "set-up", "all"], rows)


def _pauses() -> str:
    rows = []
    for name, load in (
        ("20 instances, 500 publications a second in 10,000 channels", _LARGE),
        ("the same with express hints", replace(_LARGE, express=True)),
        ("the same without history", replace(_LARGE, history=False)),
        ("the same with joins and leaves", replace(_LARGE, joins_and_leaves=True)),
    ):
        costs = [_sqs(_paced(load, pause_ms)) for pause_ms in (0, 30, 50)]
        rows.append([name, *(f"{_usd(cost)} USD" for cost in costs)])
    return _lines(["SQS, a month", "no pause", "30 ms", "50 ms"], rows)


def _paced(load: Load, pause_ms: int) -> Bill:
    return bill_of(load, Setup(), PRICES, calls_of(load, Pace(receive_pause_s=pause_ms / 1000)))


def _sqs(bill: Bill) -> float:
    return sum(line.usd for line in bill.lines if line.service == "SQS")


def _prices() -> str:
    rows = [
        [f"`{name}`", f"{price.usd:g}", price.unit, f"[AWS]({price.page})", price.read]
        for name, price in PRICES.items()
    ]
    return _lines(["name", "USD", "for one", "now", "read"], rows)


_TABLES: Final[dict[str, Callable[[], str]]] = {
    "examples": _examples,
    "variants": _variants,
    "pauses": _pauses,
    "prices": _prices,
}


def main() -> None:
    """Writes them."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
