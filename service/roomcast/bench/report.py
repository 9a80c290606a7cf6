"""The report of a run: an object for programs, and the reasons why it failed.

docs/load.md has its members. They stay: a release may add some, and takes none away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from roomcast.bench.histogram import LatencyHistogram
from roomcast.bench.ledger import Ledger
from roomcast.bench.plan import Plan

__all__ = ["LATE_US", "QUANTILES", "Times", "counted", "failures", "report"]

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
# From this on, publications that were sent late say that the command itself has too much to do.
LATE_US: Final = 100_000


@dataclass(frozen=True, slots=True)
class Times:
    """Of a run. `started_at`: ISO 8601, UTC. `elapsed_s`: from the first connect to the last close.
    `connecting_s`: until all had come. `publishing_s`: from then until publishing ended.
    """

    started_at: str
    elapsed_s: float
    connecting_s: float
    publishing_s: float


def report(plan: Plan, ledger: Ledger, times: Times, *, interrupted: str) -> dict[str, Any]:
    """The object that `--json` prints, less the version of roomcast.

    `interrupted`: the phase that was, "" = none.
    """
    missing = ledger.missing()
    delivering_s = max(ledger.last_received_s - ledger.first_sent_s, 0.0)
    whole = {
        "started_at": times.started_at,
        "elapsed_s": round(times.elapsed_s, 3),
        "interrupted": interrupted or None,
        "plan": {
            "urls": list(plan.urls),
            "apis": list(plan.apis),
            "run": plan.run,
            "namespace": plan.namespace,
            "clients": plan.clients,
            "channels": plan.channels,
            "subscriptions": plan.subscriptions,
            "publishers": 0 if plan.apis else plan.publishers,
            "rate": plan.rate,
            "size": plan.size,
            "duration_s": plan.duration,
            "ramp": plan.ramp,
            "wait_s": plan.wait,
        },
        "connections": {
            "connected": len(ledger.connected),
            "elapsed_s": round(times.connecting_s, 3),
            "reconnects": ledger.reconnects,
            "gone": len(ledger.gone),
            "failures": _by_reason(ledger.problems),
            "closes": _by_reason(ledger.closes),
        },
        "publications": {
            "sent": ledger.sent,
            "acknowledged": ledger.acknowledged_us.count,
            "refused": ledger.refused,
            "unanswered": ledger.unanswered,
            "not_sent": ledger.not_sent,
            "rate": _rate(ledger.sent, times.publishing_s),
            "late_ms": _ms(ledger.late_us),
            "refusals": _by_reason(ledger.refusals),
        },
        "deliveries": {
            "expected": ledger.received + missing.lost + missing.away,
            "received": ledger.received,
            "lost": missing.lost,
            "away": missing.away,
            "repeated": ledger.repeated,
            "out_of_order": ledger.out_of_order + ledger.swapped(),
            "foreign": ledger.foreign,
            "rate": _rate(ledger.received, delivering_s),
        },
        "connect_ms": _quantiles(ledger.connect_us),
        "acknowledged_ms": _quantiles(ledger.acknowledged_us),
        "delivered_ms": _quantiles(ledger.same_us.merged(ledger.other_us)),
        "delivered_same_address_ms": _quantiles(ledger.same_us) if plan.has_paths else None,
        "delivered_other_address_ms": _quantiles(ledger.other_us) if plan.has_paths else None,
    }
    reasons = failures(whole)
    return whole | {"ok": not reasons, "reasons": reasons}


def failures(whole: Mapping[str, Any]) -> list[str]:
    """Why the run failed, one reason each. None: it did not."""
    plan, connections = whole["plan"], whole["connections"]
    publications, deliveries = whole["publications"], whole["deliveries"]
    reasons = []
    if connections["connected"] < plan["clients"] and not whole["interrupted"]:
        absent = plan["clients"] - connections["connected"]
        why = f" ({found[0]['reason']})" if (found := connections["failures"]) else ""
        reasons.append(f"{absent:,} of {counted(plan['clients'], 'client')} could not connect{why}")
    if connections["gone"]:
        gone = counted(connections["gone"], "client")
        reasons.append(f"{gone} lost the connection and did not come back")
    wanted = publications["sent"] + publications["not_sent"]
    if wanted and not publications["acknowledged"] and not whole["interrupted"]:
        reasons.append("no publication was acknowledged")
    # Where the waiting was interrupted, nobody knows what would have come.
    if deliveries["lost"] and whole["interrupted"] != "waiting":
        within = f"within {plan['wait_s']} s of the last publication"
        reasons.append(
            f"{deliveries['lost']:,} of {_deliveries(deliveries['expected'])} did not come {within}"
        )
    if deliveries["repeated"]:
        reasons.append(f"{_deliveries(deliveries['repeated'])} came again")
    if deliveries["out_of_order"]:
        reasons.append(f"{_deliveries(deliveries['out_of_order'])} out of order")
    return reasons


def counted(count: int, one: str, many: str = "") -> str:
    """The number with its noun: "1 client", "2,000 clients". `many`: where no "s" is added."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _deliveries(count: int) -> str:
    return counted(count, "delivery", "deliveries")


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds > 0 else 0.0


def _ms(value_us: float) -> float:
    return round(value_us / 1000, 3)


def _by_reason(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The most frequent first."""
    ranked = sorted(counts.items(), key=lambda each: -each[1])
    return [{"reason": reason, "count": count} for reason, count in ranked]


def _quantiles(histogram: LatencyHistogram) -> dict[str, float]:
    told = {name: _ms(histogram.quantile(share)) for name, share in QUANTILES.items()}
    return {
        "count": histogram.count,
        "min": _ms(histogram.least),
        "mean": _ms(histogram.mean),
        **told,
        "max": _ms(histogram.most),
    }
