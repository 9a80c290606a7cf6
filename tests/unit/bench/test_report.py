"""service/roomcast/bench/report.py: the object for programs, and what counts as a failure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from roomcast.bench.ledger import Ledger
from roomcast.bench.plan import Plan
from roomcast.bench.report import Times, report

TIMES = Times("2026-11-30T00:00:00+00:00", 5.5, 0.5, 4.0)
QUANTILES = ["count", "min", "mean", "p50", "p90", "p99", "max"]


def plan(**changes: Any) -> Plan:
    return replace(
        Plan(("ws://a:1/x", "ws://b:1/x"), "r", clients=2, publishers=2, channels=1), **changes
    )


def run(of: Plan, *, acknowledged: bool = True, came: bool = True) -> Ledger:
    """Two clients, and one publication."""
    ledger = Ledger(of)
    for client in range(2):
        ledger.subscribed(client, 0, ("e", 0))
        ledger.came(client, 7000)
    number = ledger.publishes(0, 0, 1.0, 0.0)
    if acknowledged:
        ledger.acknowledges(0, number, 1.004)
    if came:
        for client in range(2):
            ledger.delivered(client, 0, number, 1, 1.01)
    return ledger


def told(of: Plan, ledger: Ledger, interrupted: str = "") -> dict[str, Any]:
    return report(of, ledger, TIMES, interrupted=interrupted)


def test_the_object() -> None:
    found = told(plan(), run(plan()))
    assert json.loads(json.dumps(found)) == found
    durations = {name: found.pop(name) for name in list(found) if name.endswith("_ms")}
    assert found == {
        "started_at": "2026-11-30T00:00:00+00:00",
        "elapsed_s": 5.5,
        "interrupted": None,
        "plan": {
            "urls": ["ws://a:1/x", "ws://b:1/x"],
            "apis": [],
            "run": "r",
            "namespace": "",
            "clients": 2,
            "channels": 1,
            "subscriptions": 1,
            "publishers": 2,
            "rate": 20,
            "size": 200,
            "duration_s": 10,
            "ramp": 50,
            "wait_s": 10,
        },
        "connections": {
            "connected": 2,
            "elapsed_s": 0.5,
            "reconnects": 0,
            "gone": 0,
            "failures": [],
            "closes": [],
        },
        "publications": {
            "sent": 1,
            "acknowledged": 1,
            "refused": 0,
            "unanswered": 0,
            "not_sent": 0,
            "rate": 0.2,
            "late_ms": 0.0,
            "refusals": [],
        },
        "deliveries": {
            "expected": 2,
            "received": 2,
            "lost": 0,
            "away": 0,
            "repeated": 0,
            "out_of_order": 0,
            "foreign": 0,
            "rate": 200.0,
        },
        "ok": True,
        "reasons": [],
    }
    assert list(durations) == [
        "connect_ms",
        "acknowledged_ms",
        "delivered_ms",
        "delivered_same_address_ms",
        "delivered_other_address_ms",
    ]
    assert all(list(each) == QUANTILES for each in durations.values())
    assert durations["connect_ms"] == dict.fromkeys(QUANTILES, 7.0) | {"count": 2}
    assert [each["count"] for each in durations.values()] == [2, 1, 2, 1, 1]


def test_where_there_is_one_address_paths_are_not_told() -> None:
    of = plan(urls=("ws://a:1/x",))
    found = told(of, run(of))
    assert found["delivered_ms"]["count"] == 2
    assert found["delivered_same_address_ms"] is found["delivered_other_address_ms"] is None


def test_reasons_are_counted_the_most_frequent_first() -> None:
    ledger = run(plan())
    for reason in ("a", "b", "b"):
        ledger.went(0, reason)
        ledger.came(0, 1)
    closes = told(plan(), ledger)["connections"]["closes"]
    assert closes == [{"reason": "b", "count": 2}, {"reason": "a", "count": 1}]


def lost() -> Ledger:
    return run(plan(), came=False)


def repeated() -> Ledger:
    ledger = run(plan())
    ledger.delivered(0, 0, 0, 1, 1.1)
    return ledger


def disordered() -> Ledger:
    ledger = run(plan())
    number = ledger.publishes(0, 0, 1.0, 0.0)
    ledger.delivered(0, 0, number, 5, 1.1)
    return ledger


def gone() -> Ledger:
    ledger = run(plan())
    ledger.went(1, "the connection broke")
    return ledger


def nobody() -> Ledger:
    ledger = Ledger(plan())
    ledger.problems["ws://b:1/x: connection refused"] += 5
    ledger.subscribed(0, 0, None)
    ledger.came(0, 1)
    return ledger


@pytest.mark.parametrize(
    "ledger, reason",
    [
        (lost(), "2 of 2 deliveries did not come within 10 s of the last publication"),
        (repeated(), "1 delivery came again"),
        (disordered(), "1 delivery out of order"),
        (gone(), "1 client lost the connection and did not come back"),
        (nobody(), "1 of 2 clients could not connect (ws://b:1/x: connection refused)"),
        (run(plan(), acknowledged=False), "no publication was acknowledged"),
    ],
)
def test_failures(ledger: Ledger, reason: str) -> None:
    found = told(plan(), ledger)
    assert found["reasons"] == [reason]
    assert not found["ok"]


def test_what_an_interrupt_explains_is_no_failure() -> None:
    assert told(plan(), nobody(), "connecting")["ok"]
    assert told(plan(), run(plan(), acknowledged=False), "publishing")["ok"]
    assert told(plan(), lost(), "waiting")["ok"]
    assert not told(plan(), lost(), "publishing")["ok"]


def test_who_publishes_nothing_does_not_fail() -> None:
    of = plan(rate=0)
    ledger = Ledger(of)
    for client in range(2):
        ledger.came(client, 1)
    assert told(of, ledger)["ok"]
