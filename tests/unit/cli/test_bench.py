"""`roomcast bench` against a node over memory: what it prints, its exit codes, wrong usage."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from roomcast.bench.ledger import Ledger
from roomcast.bench.plan import Plan
from roomcast.bench.report import Times, report
from roomcast.cli import main as cli
from roomcast.cli.bench_text import Look, bench_text
from roomcast.cli.terminal import has_blocks
from tests.unit.cli.conftest import Told
from tests.unit.served import KEY, Served
from tests.unit.worlds import SECRET

pytestmark = pytest.mark.usefixtures("quiet")

SMALL = ("--clients", "4", "--channels", "2", "--duration", "1", "--ramp", "200")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of a small load."""

    def run(served: Served, *arguments: str) -> tuple[int, str, str]:
        code = cli.main(["bench", served.url, *SMALL, *arguments])
        return code, *capsys.readouterr()

    return run


def test_what_it_prints(served: Served, run: Run) -> None:
    code, out, err = run(served)
    assert (code, err) == (0, "")
    figures, durations, acknowledged, delivered = out.split("\n\n")
    assert re.fullmatch(
        r"4 of 4 clients connected to 1 URL in \d\.\d s\n"
        r"20 publications of 200 bytes in 2 channels, [\d.]+ a second; 20 acknowledged\n"
        r"40 deliveries, [\d.]+ a second; 0 lost, 0 repeated, 0 out of order"
        # Where the machine does something else meanwhile.
        r"(\na publication was sent \d+ ms late: .*)?",
        figures,
    )
    heading, *rows = durations.splitlines()
    assert heading.split() == ["MS", "P50", "P90", "P99", "MAX", "COUNT"]
    assert [row.split("  ")[0] for row in rows] == [
        "connected and subscribed",
        "acknowledged",
        "delivered",
    ]
    assert [row.split()[-1] for row in rows] == ["4", "20", "40"]
    assert acknowledged.startswith("acknowledged after … ms\n")
    assert delivered.startswith("delivered after … ms\n")
    assert "\x1b" not in out, "no colours but on a terminal"


def test_as_json(served: Served, run: Run) -> None:
    code, out, err = run(served, "--json", "--rate", "0")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found["ok"]
    assert found["roomcast"]
    assert found["plan"]["urls"] == [f"{served.url.replace('http', 'ws')}/connection/websocket"]
    assert found["connections"]["connected"] == 4
    assert found["publications"]["sent"] == 0


def test_connections_alone(served: Served, run: Run) -> None:
    code, out, err = run(served, "--rate", "0")
    assert (code, err) == (0, "")
    figures, durations = out.split("\n\n")
    assert figures.startswith("4 of 4 clients connected to 1 URL in")
    assert figures.count("\n") == 0
    assert durations.count("\n") == 2


def test_what_fails_is_told_after_the_report(
    served: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is who they should be: what the node delivers is somebody else's."""
    monkeypatch.setattr(Ledger, "delivered", lambda *_arguments: None)
    code, out, err = run(served, "--wait", "1")
    assert code == 1
    assert "40 lost" not in err
    assert "0 deliveries, 0.0 a second; 40 lost" in out
    assert err == (
        "roomcast: 40 of 40 deliveries did not come within 1 s of the last publication\n"
    )


def test_through_the_api_with_a_key_of_the_environment(
    served: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOMCAST_HTTP_API_KEY", KEY)
    code, out, _ = run(served, "--api", served.url, "--json")
    assert code == 0
    assert json.loads(out)["plan"]["publishers"] == 0
    assert json.loads(out)["publications"]["acknowledged"] == 20


def test_tokens_that_allow_what_is_needed(secured: Served, run: Run) -> None:
    code, out, err = run(secured, "--secret", SECRET, "--grant")
    assert (code, err) == (0, "")
    assert "40 deliveries" in out


def test_a_secret_of_the_configuration(
    secured: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY", SECRET)
    code, out, err = run(secured)
    assert (code, out) == (1, "")
    assert err.startswith("roomcast: subscribe: permission denied (103); set allow_subscribe_for")
    assert run(secured, "--grant", "--rate", "0")[0] == 0


def test_a_refusal_is_one_line(secured: Served, run: Run) -> None:
    code, out, err = run(secured)
    assert (code, out) == (1, "")
    assert err.startswith("roomcast: connect: unauthorized (101); take --token, or --secret")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "URL"),
        (["ftp://a"], "must be an address such as ws://127.0.0.1:8000/connection/websocket"),
        (["ws://me:secret@a"], "found 'ws://***@a'"),
        (["ws://a:0"], "must be an address"),
        (["ws://[a"], "must be an address"),
        (["http://a", "--clients", "0"], "must be a whole number from 1 to 20000"),
        (["http://a", "--size", "10"], "must be a whole number from 64 to 262144"),
        (["http://a", "--clients", "1001"], "--clients 1001 is more than 1000 (--lift-limits"),
        (["http://a", "--rate", "500", "--channels", "1"], "50000 deliveries a second"),
        (["http://a", "--duration", "61"], "--duration 61 is more than 60"),
        (
            [
                "http://a",
                "--lift-limits",
                "--clients",
                "20000",
                "--channels",
                "1",
                "--rate",
                "9999",
            ],
            "the deliveries are more than",
        ),
        (["http://a", "--publishers", "101"], "--publishers 101 is more than --clients 100"),
        (["http://a", "--publishers", "1", "--api", "http://a"], "with --api nobody"),
        (["http://a", "--subscriptions", "11"], "--subscriptions 11 is more than --channels 10"),
        (["http://a", "--token", "t", "--secret", "s"], "exclude each other"),
        (["http://a", "--grant"], "--grant needs --secret"),
        (["http://a", "--api", "a:1"], "--api: must be an address"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, told: Told) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert message in told()


def test_too_few_descriptors(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roomcast.serve.descriptors.widened", lambda: 100)
    assert cli.main(["bench", "http://a"]) == 2
    assert told() == ("100 clients need 164 open files, and this process may have 100 (ulimit -n)")


# ---- the text


def everything_at_once() -> tuple[dict[str, Any], Ledger]:
    plan = Plan(("ws://a:1/x", "ws://b:1/x"), "r", clients=1000, channels=1, publishers=1)
    ledger = Ledger(plan)
    for client in range(2):
        ledger.subscribed(client, 0, ("e", 0))
        ledger.came(client, 1_500_000)
    number = ledger.publishes(0, 0, 1.0, 0.25)
    ledger.acknowledges(0, number, 1.01)
    ledger.delivered(0, 0, number, 1, 1.02)
    ledger.delivered(0, 0, number, 1, 1.02)
    ledger.publishes(0, 0, 1.0, 0.0)
    ledger.publishes(0, 0, 1.0, 0.0)
    ledger.refuses("publish: too many requests (111)\x1b[2J")
    ledger.not_sent = 3
    ledger.problems["connection refused"] = 2
    ledger.went(1, "shutdown (3001)")
    ledger.went(1, "shutdown (3001)")
    ledger.came(1, 1)
    told = report(plan, ledger, Times("t", 3.0, 1.0, 1.0), interrupted="publishing")
    return told, ledger


def test_what_is_out_of_the_ordinary_is_told() -> None:
    text = bench_text(*everything_at_once(), Look(60, colours=False, blocks=True))
    assert text.split("\n\n")[0].splitlines() == [
        "2 of 1,000 clients connected to 2 URLs in 1.0 s",
        "3 publications of 200 bytes in 1 channel, 3.0 a second; 1 acknowledged",
        "1 delivery, 50.0 a second; 0 lost, 1 repeated, 0 out of order",
        "interrupted while publishing",
        "connections ended, and 1 came back:",
        "  2 × shutdown (3001)",
        "attempts to connect failed:",
        "  2 × connection refused",
        "publications were refused:",
        "  1 × publish: too many requests (111)\\x1b[2J",
        "1 publication without an answer",
        "3 publications not sent: nobody was free to send in time",
        "1 delivery missed by clients that were away, and not recovered",
        (
            "a publication was sent 250 ms late: this command had too much to do, and the "
            "durations show that, too"
        ),
    ]
    assert text.splitlines()[15].split() == ["MS", "P50", "P90", "P99", "MAX", "COUNT"]
    assert max(len(line) for line in text.split("\n\n")[2].splitlines()) == 60


def test_colours_and_plain_characters() -> None:
    text = bench_text(*everything_at_once(), Look(60, colours=True, blocks=False))
    assert "\x1b[31m1 repeated\x1b[0m" in text
    assert "\x1b[32m0 lost\x1b[0m" in text
    assert "\x1b[1mdelivered after ... ms\x1b[0m" in text
    assert text.isascii()


def test_block_characters() -> None:
    assert has_blocks(io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert not has_blocks(io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert not has_blocks(io.TextIOWrapper(io.BytesIO(), "latin-1"))
