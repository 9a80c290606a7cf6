"""Sets up logging: one structlog pipeline to stderr, as JSON lines or for a console.

The pipeline carries our events and the records of libraries.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, Literal, TextIO, get_args

import orjson
import structlog
from structlog.typing import EventDict, ExcInfo, WrappedLogger

from roomcast.observe.lines import Lines
from roomcast.observe.redaction import json_printable, printable, without_passwords
from roomcast.rates import Rate, Seldom

__all__ = ["LEVELS", "Level", "configure"]

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
# A library's message is free text. This bounds its part of a line.
LIBRARY_MESSAGE_CHARS_MAX: Final = 4096
# The longest text in an event of ours. A client's, a back end's or an exception's may be as long as
# a message.
TEXT_CHARS_MAX: Final = 4096
# The longest traceback. Its two ends are kept: where it began, and what the error is.
TRACEBACK_CHARS_MAX: Final = 32 * 1024
# The rate of one library message. Some libraries log the same for each request, or for each turn of
# the event loop.
LIBRARY_RATE: Final = Rate(per_s=1.0, burst=10.0)
# The same for the exporter of traces: it says several times for each batch that the collector is
# away, for as long as that is.
EXPORTER_RATE: Final = Rate(per_s=1 / 60, burst=2.0)
_EXPORTER: Final = "opentelemetry."
# The rate of one event of ours, unless it is an error. Clients cause most events, a line or two per
# connection, and a fleet that reconnects at once causes thousands.
EVENT_RATE: Final = Rate(per_s=100.0, burst=1000.0)
# The rate of one error. Most have a traceback, and a client that found out how to cause one can
# cause it again and again.
ERROR_RATE: Final = Rate(per_s=10.0, burst=1000.0)
# Kinds of messages whose rates are remembered. Beyond it, all are forgotten.
KINDS_MAX: Final = 256
_LIBRARY_EVENT: Final = "library_log"
_LEFT_OUT_EVENT: Final = "lines_left_out"
_ERRORS: Final = frozenset({"error", "exception", "critical"})
_PACKAGE: Final = "roomcast."
_NO_LEVELS: Final[Mapping[str, Level]] = {}
_NUMBERS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(
    level: Level = "info",
    *,
    levels: Mapping[str, Level] = _NO_LEVELS,
    stream: BinaryIO | None = None,
    console: bool = False,
    colors: bool = False,
) -> None:
    """Sets up logging for this process, and replaces any earlier set-up.

    `stream`: receives the bytes (default: stderr). `console`: lines for people instead of JSON,
    with `colors`. Our events are written from `level` on; those of the rooms and modules that
    `levels` names, such as "client" or "client.comings", from theirs on. Libraries' records are
    written only from warning on, even at level debug, because lower ones contain payloads and
    signed requests.
    """
    number = _NUMBERS[level]
    numbers = {name: _NUMBERS[each] for name, each in levels.items()}
    lines = Lines(
        sys.stderr.buffer if stream is None else stream,
        _left_out_for_people if console else _left_out,
    )

    def logger(*names: str) -> _Logger:
        return _Logger(lines, _least(numbers, names[0] if names else "", number))

    processors: list[structlog.typing.Processor] = [
        # Before the rates: what is left out by its level takes no part in them.
        _from_its_level,
        _Sparing(),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        # Plain tracebacks: structlog's other formats print local variables, which contain payloads.
        processors += [
            _shortened,
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=colors, exception_formatter=_traceback, pad_event_to=0
            ),
            _encode,
        ]
    else:
        processors += [structlog.processors.format_exc_info, _shortened, _render]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(min([number, *numbers.values()])),
        logger_factory=logger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _LibraryHandler)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryHandler())
    root.setLevel(max(number, logging.WARNING))


def write_line(line: bytes) -> None:
    """Writes a finished line of JSON where the logs of this process go, whatever their level.

    It never fails, and never waits. `configure` must have been called.
    """
    structlog.get_config()["logger_factory"]().msg(line)


class _Logger:
    """structlog's innermost logger: writes a finished line, and never fails.

    The reader of our stderr may be gone while there is still a queue to delete. That must not stop
    us.
    """

    __slots__ = ("_lines", "least")

    def __init__(self, lines: Lines, least: int) -> None:
        """`least`: the level from which on its module's events are written."""
        self._lines = lines
        self.least = least

    def msg(self, line: bytes) -> None:
        self._lines.write(line)

    debug = info = warning = error = critical = exception = msg


def _least(numbers: Mapping[str, int], module: str, otherwise: int) -> int:
    """The level of a module: that of the longest name around it."""
    name = module.removeprefix(_PACKAGE)
    while name:
        if name in numbers:
            return numbers[name]
        name = name.rpartition(".")[0]
    return otherwise


def _from_its_level(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A processor that drops an event below the level of its module."""
    if _NUMBERS.get(method, logging.ERROR) < logger.least:
        raise structlog.DropEvent
    return event


def _left_out(number: int) -> bytes:
    """The line about lines that the reader did not take, in JSON."""
    event = {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": "warning",
        "event": _LEFT_OUT_EVENT,
        "lines": number,
    }
    return orjson.dumps(event | structlog.contextvars.get_contextvars(), default=repr)


def _left_out_for_people(number: int) -> bytes:
    return f"{_LEFT_OUT_EVENT} lines={number}".encode()


class _Kinds:
    """Limits the rate of messages, by kind."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._known: dict[Hashable, Seldom] = {}

    def __len__(self) -> int:
        return len(self._known)

    def again(self, kind: Hashable) -> int | None:
        """As `Seldom.again`."""
        if kind not in self._known:
            if len(self._known) >= KINDS_MAX:
                self._known.clear()
            self._known[kind] = Seldom(self._rate)
        return self._known[kind].again(time.monotonic())


class _Sparing:
    """A processor that drops an event above its rate."""

    def __init__(self) -> None:
        self._kinds = _Kinds(EVENT_RATE)
        self._errors = _Kinds(ERROR_RATE)

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        # Libraries' records have their own rate.
        if event["event"] == _LIBRARY_EVENT:
            return event
        kinds = self._errors if method in _ERRORS else self._kinds
        passed_over = kinds.again(event["event"])
        if passed_over is None:
            raise structlog.DropEvent
        if passed_over:
            event["passed_over"] = passed_over
        return event


def _shortened(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Shortens long texts. A note at the cut says how much is missing."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _cut(
                value, TEXT_CHARS_MAX if name != "exception" else TRACEBACK_CHARS_MAX
            )
    return event


def _cut(text: str, chars_max: int) -> str:
    if len(text) <= chars_max:
        return text
    half = chars_max // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters … {text[-half:]}"


class _LibraryHandler(logging.Handler):
    """Turns the standard library's records into `library_log` events, at a limited rate for each
    kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds = _Kinds(LIBRARY_RATE)
        self._of_exporter = _Kinds(EXPORTER_RATE)

    def emit(self, record: logging.LogRecord) -> None:
        """Logs the record. Never raises, as a handler must not."""
        # Records are of the same kind if their formats begin with the same line.
        kind = (record.name, record.levelno, str(record.msg).partition("\n")[0])
        kinds = self._of_exporter if record.name.startswith(_EXPORTER) else self._kinds
        passed_over = kinds.again(kind)
        if passed_over is None:
            return
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001  # arguments that do not fit their format are the library's bug
            message = f"{record.msg!r} ({type(error).__name__} while formatting)"
        structlog.get_logger().log(
            _standard(record.levelno),
            _LIBRARY_EVENT,
            logger=record.name,
            message=message[:LIBRARY_MESSAGE_CHARS_MAX],
            exc_info=record.exc_info,
            **({"passed_over": passed_over} if passed_over else {}),
        )


def _standard(number: int) -> int:
    """The nearest standard level. Libraries may define their own, and structlog knows only the
    standard ones.
    """
    return max(
        each
        for each in (logging.WARNING, logging.ERROR, logging.CRITICAL)
        if each <= max(number, 30)
    )


def _render(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    # Time, level and event come first for people who read the lines.
    ordered = {
        name: event.pop(name) for name in ("timestamp", "level", "event") if name in event
    } | dict(event)
    if ordered.get("exc_info", False) is None:
        del ordered["exc_info"]
    try:
        line = orjson.dumps(ordered, default=repr).decode()
    except TypeError:
        # Text that is not valid Unicode, or numbers beyond 64 bits: rare, and no reason to lose the
        # line.
        line = json.dumps(_plain(ordered))
    # People read the lines in terminals and editors too. These obey characters that JSON does not
    # escape.
    return json_printable(without_passwords(line)).encode()


def _plain(event: EventDict) -> dict[str, Any]:
    return {
        str(name): value if isinstance(value, str | int | float | bool | None) else repr(value)
        for name, value in event.items()
    }


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The event without characters that a terminal obeys: a client's name could contain line breaks
    or control sequences.
    """
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable(value)
    return event


def _traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    """Writes a plain traceback on lines of its own. An exception's text may come from a client."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(printable(_cut(text.getvalue(), TRACEBACK_CHARS_MAX), keep="\n"))


def _encode(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    return without_passwords(line).encode(errors="backslashreplace")
