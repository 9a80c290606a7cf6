"""service/roomcast/observe/logs.py: every line is complete, parsable,
and free of what must not be logged.
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from roomcast.observe import logs as telemetry
from tests.loggers import logging_restored


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with logging_restored():
        yield


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO()


def lines(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().decode().splitlines()]


def test_an_event_is_one_line_of_json(stream: io.BytesIO) -> None:
    telemetry.configure(stream=stream)
    structlog.get_logger().info("client_connected", client="c1", count=2, text="a\nb “ü”")
    (line,) = lines(stream)
    at = datetime.fromisoformat(line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "client_connected",
        "client": "c1",
        "count": 2,
        "text": "a\nb “ü”",
    }
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert stream.getvalue().startswith(b'{"timestamp":"')


@pytest.mark.parametrize("console", [False, True])
def test_a_finished_line_is_written_as_it_is_whatever_the_level(
    stream: io.BytesIO, console: bool
) -> None:
    telemetry.configure("error", stream=stream, console=console)
    structlog.get_logger().info("not_wanted")
    telemetry.write_line(b'{"event":"metrics"}')
    assert stream.getvalue() == b'{"event":"metrics"}\n'


@pytest.mark.parametrize(
    "level, seen",
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(stream: io.BytesIO, level: telemetry.Level, seen: list[str]) -> None:
    telemetry.configure(level, stream=stream)
    log = structlog.get_logger()
    for each in telemetry.LEVELS:
        getattr(log, each)("something_happened")
    assert [line["level"] for line in lines(stream)] == seen


@pytest.mark.parametrize("level, seen", [("debug", ["WARNING", "ERROR"]), ("error", ["ERROR"])])
def test_libraries_speak_through_the_same_pipeline(
    stream: io.BytesIO, level: telemetry.Level, seen: list[str]
) -> None:
    telemetry.configure(level, stream=stream)
    library = logging.getLogger("botocore.endpoint")
    for each in ("DEBUG", "INFO", "WARNING", "ERROR"):
        library.log(logging.getLevelName(each), "it was %s", each)
    told = lines(stream)
    assert [line["message"] for line in told] == [f"it was {each}" for each in seen]
    assert {(line["event"], line["logger"]) for line in told} == {
        ("library_log", "botocore.endpoint")
    }


def test_records_that_are_out_of_the_ordinary(
    stream: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own handlers fail the test for a record that cannot be formatted.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    telemetry.configure(stream=stream)
    library = logging.getLogger("odd")
    library.log(35, "a level of its own")
    library.log(70, "another")
    library.warning("%d", "not a number")
    library.warning("x" * 100_000)
    first, second, third, fourth = lines(stream)
    assert (first["level"], second["level"]) == ("warning", "critical")
    assert "TypeError while formatting" in third["message"]
    assert len(fourth["message"]) == telemetry.LIBRARY_MESSAGE_CHARS_MAX


@pytest.mark.parametrize("console", [False, True])
def test_tracebacks_without_local_variables(stream: io.BytesIO, console: bool) -> None:
    telemetry.configure(stream=stream, console=console)

    def fail(payload: str) -> None:
        raise ValueError(f"{len(payload)} characters")

    for log in (structlog.get_logger(), logging.getLogger("aiohttp.server")):
        try:
            fail("pay" + "load")
        except ValueError:
            log.exception("request_failed")
    text = stream.getvalue().decode()
    assert text.count("ValueError: 7 characters") == 2
    assert text.count("Traceback (most recent call last)") == 2
    assert "payload = " not in text
    assert "'payload'" not in text


UNSEEN = "a\x9bb\u202ec\u2066d\x7fe\x1bf\U000e0041g\u2028h"


def test_what_a_terminal_or_an_editor_would_obey_is_escaped_in_json(stream: io.BytesIO) -> None:
    telemetry.configure(stream=stream)
    structlog.get_logger().info(
        "client_connected", user=UNSEEN, deep={UNSEEN: [UNSEEN]}, text="“ü”"
    )
    logging.getLogger("odd").warning(UNSEEN)
    first, second = lines(stream)
    assert (first["user"], first["deep"], first["text"]) == (UNSEEN, {UNSEEN: [UNSEEN]}, "“ü”")
    assert second["message"] == UNSEEN
    assert stream.getvalue().decode().replace("\n", "").isprintable()
    assert "“ü”" in stream.getvalue().decode()


def test_and_on_a_console_also_in_tracebacks(stream: io.BytesIO) -> None:
    telemetry.configure(stream=stream, console=True)
    structlog.get_logger().info("client_connected", user=UNSEEN, deep={UNSEEN: [UNSEEN]})
    try:
        raise ValueError(UNSEEN)
    except ValueError:
        structlog.get_logger().exception("odd")
    text = stream.getvalue().decode()
    assert text.replace("\n", "").isprintable()
    assert text.count("\\u202e") == 4
    assert "Traceback (most recent call last):\n" in text


@pytest.mark.parametrize("console", [False, True])
def test_the_password_of_an_address_is_masked(stream: io.BytesIO, console: bool) -> None:
    """SDKs quote the address of an endpoint or a proxy that does not answer."""
    telemetry.configure(stream=stream, console=console)
    address = "http://ann:hush@proxy.example:3128"
    structlog.get_logger().warning("call_failed", reason=f"Could not connect to {address!r}")
    logging.getLogger("botocore").warning("proxy %s", address)
    try:
        raise OSError(address)
    except OSError:
        structlog.get_logger().exception("odd")
    text = stream.getvalue().decode()
    assert "hush" not in text
    assert text.count("http://***@proxy.example:3128") == 3


def test_what_a_library_says_again_and_again_is_told_now_and_then(
    stream: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    telemetry.configure(stream=stream)
    log, burst = logging.getLogger("asyncio"), int(telemetry.LIBRARY_RATE.burst)
    for number in range(1000):
        log.error("socket.accept() out of system resource\nsocket: %s", number)
    assert len(lines(stream)) == burst
    logging.getLogger("botocore").error("something else")
    log.warning("socket.accept() out of system resource")
    assert len(lines(stream)) == burst + 2
    now_s = 1.0
    for _ in range(1000):
        log.error("socket.accept() out of system resource\nsocket: %s", "x")
    told = lines(stream)
    assert len(told) == burst + 3
    assert told[-1]["passed_over"] == 1000 - burst
    assert "passed_over" not in told[0]


def test_a_collector_that_is_away_is_told_once_a_minute(
    stream: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    telemetry.configure(stream=stream)
    log = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for second in range(600):
        now_s = float(second)
        log.warning("Transient error %s encountered", second)
    told = lines(stream)
    assert len(told) == int(telemetry.EXPORTER_RATE.burst) + 9
    assert told[-1]["passed_over"] == 59


def test_what_libraries_say_is_remembered_of_so_many(stream: io.BytesIO) -> None:
    telemetry.configure(stream=stream)
    for number in range(3 * telemetry.KINDS_MAX):
        logging.getLogger("odd").warning(f"message {number}")
    assert len(lines(stream)) == 3 * telemetry.KINDS_MAX
    [handler] = [
        each for each in logging.getLogger().handlers if isinstance(each, telemetry._LibraryHandler)
    ]
    assert len(handler._kinds) <= telemetry.KINDS_MAX


def test_what_clients_cause_is_told_at_a_rate_and_errors_at_one_of_their_own(
    stream: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each connection is a flood of lines for who connects in a flood."""
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    telemetry.configure(stream=stream)
    log, burst = structlog.get_logger(), int(telemetry.EVENT_RATE.burst)
    errors = int(telemetry.ERROR_RATE.burst)
    for _ in range(3 * max(burst, errors)):
        log.info("client_gone")
        log.error("poll_failed")
    log.info("client_connected")
    events = [line["event"] for line in lines(stream)]
    assert events.count("client_gone") == burst
    assert events.count("poll_failed") == errors
    assert events.count("client_connected") == 1
    now_s = 1.0
    for _ in range(burst):
        log.info("client_gone")
    told = lines(stream)[len(events) :]
    assert len(told) == telemetry.EVENT_RATE.per_s
    assert told[0]["passed_over"] == 2 * burst
    assert "passed_over" not in told[1]
    log.error("poll_failed")
    assert lines(stream)[-1]["passed_over"] == 3 * max(burst, errors) - errors


@pytest.mark.parametrize("console", [False, True])
def test_nothing_that_is_told_is_longer_than_its_bound(stream: io.BytesIO, console: bool) -> None:
    """An exception's text may be all that a client sent, and each that follows says it again."""
    telemetry.configure(stream=stream, console=console)
    log = structlog.get_logger()
    log.warning("said", reason="a" + "x" * 1_000_000 + "z")
    try:
        raise ValueError("b" + "y" * 1_000_000 + "z")
    except ValueError:
        log.exception("failed")
    told = stream.getvalue().decode()
    assert len(told) < telemetry.TEXT_CHARS_MAX + telemetry.TRACEBACK_CHARS_MAX + 1000
    assert "ax" in told
    assert "xz" in told
    assert "Traceback" in told
    assert "yz" in told


def test_no_value_can_cost_the_line(stream: io.BytesIO) -> None:
    telemetry.configure(stream=stream)
    log = structlog.get_logger()
    log.info("big", number=2**70, deep={"a": object})
    log.info("broken_text", text="\ud800")
    log.info("strange", thing=object(), keys={(1, 2): 3}, raw=b"\xff")
    assert [line["event"] for line in lines(stream)] == ["big", "broken_text", "strange"]
    telemetry.configure(stream=stream, console=True)
    structlog.get_logger().info("broken_text", text="\ud800", bare="\udcff")
    assert stream.getvalue().endswith(b"\n")


def test_context_is_on_every_line(stream: io.BytesIO) -> None:
    telemetry.configure(stream=stream)
    structlog.contextvars.bind_contextvars(node="n-1")
    structlog.get_logger().info("node_ready")
    logging.getLogger("asyncio").warning("slow")
    assert [line["node"] for line in lines(stream)] == ["n-1", "n-1"]


class _Broken(io.BytesIO):
    def write(self, _data: object, /) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_gone_stops_nothing(stream: io.BytesIO) -> None:
    telemetry.configure(stream=_Broken())
    structlog.get_logger().info("queue_deleted")
    logging.getLogger("aiohttp").error("whatever")
    closed = io.BytesIO()
    closed.close()
    telemetry.configure(stream=closed)
    structlog.get_logger().info("queue_deleted")
    telemetry.configure(stream=stream)
    structlog.get_logger().info("queue_deleted")
    assert [line["event"] for line in lines(stream)] == ["queue_deleted"]


def test_configuring_again_replaces(stream: io.BytesIO) -> None:
    before = io.BytesIO()
    telemetry.configure(stream=before)
    telemetry.configure(stream=stream)
    logging.getLogger("aiohttp").error("once")
    assert before.getvalue() == b""
    assert len(lines(stream)) == 1


def test_the_console(stream: io.BytesIO) -> None:
    telemetry.configure(stream=stream, console=True)
    structlog.get_logger().info("node_ready", url="http://127.0.0.1:8000")
    assert re.fullmatch(
        r"\S+Z \[info +\] node_ready +url=http://127\.0\.0\.1:8000\n", stream.getvalue().decode()
    )
    coloured = io.BytesIO()
    telemetry.configure(stream=coloured, console=True, colors=True)
    structlog.get_logger().info("node_ready")
    assert b"\x1b[" in coloured.getvalue()


# ---- levels of rooms and modules


def test_a_room_or_a_module_has_a_level_of_its_own(stream: io.BytesIO) -> None:
    telemetry.configure(
        "info",
        levels={"client": "warning", "client.comings": "debug", "delivery": "error"},
        stream=stream,
    )
    said = [
        ("roomcast.client.comings", "debug"),
        ("roomcast.client.tokens", "info"),
        ("roomcast.client.tokens", "warning"),
        ("roomcast.clients", "info"),
        ("roomcast.delivery.canary", "warning"),
        ("roomcast.delivery.canary", "exception"),
        ("roomcast.delivery.canary", "critical"),
        ("roomcast.log.appender", "debug"),
        ("roomcast.log.appender", "info"),
        ("", "debug"),
        ("", "info"),
    ]
    for number, (module, level) in enumerate(said):
        logger = structlog.get_logger(module) if module else structlog.get_logger()
        getattr(logger, level)("said", number=number)
    assert [line["number"] for line in lines(stream)] == [0, 2, 3, 5, 6, 8, 10]


def test_what_its_level_leaves_out_takes_no_part_in_the_rate(stream: io.BytesIO) -> None:
    telemetry.configure("warning", levels={"delivery": "debug"}, stream=stream)
    other, log = structlog.get_logger("roomcast.log"), structlog.get_logger("roomcast.delivery")
    for _ in range(2 * int(telemetry.EVENT_RATE.burst)):
        other.info("said")
    log.info("said")
    (line,) = lines(stream)
    assert "passed_over" not in line


def test_libraries_are_heard_from_warning_on_whatever_a_room_has(stream: io.BytesIO) -> None:
    telemetry.configure("error", levels={"client": "debug"}, stream=stream)
    logging.getLogger("library").warning("no")
    logging.getLogger("library").error("yes")
    assert [line["message"] for line in lines(stream)] == ["yes"]
