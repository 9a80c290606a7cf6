"""Declares an option beside its field, and reads a value for it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, Final, Literal, Protocol, TypeVar, cast, get_type_hints

from roomcast.config.messages import quoted

__all__ = [
    "ENVIRONMENT_PREFIX",
    "MASK",
    "Codec",
    "Kind",
    "Option",
    "Rules",
    "WrongValue",
    "declare",
    "declared",
    "format_duration",
    "kind_of",
    "must_be",
    "seconds_of",
    "unit_of",
]

ENVIRONMENT_PREFIX: Final = "ROOMCAST_"
MASK: Final = "***"

Kind = Literal[
    "true or false", "whole number", "number", "text", "list", "duration", "delay", "structure"
]
T = TypeVar("T")

_DURATION: Final = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII
)
_UNIT_SECONDS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
# Options whose unit stands in their value, by the end of their field's name: that is not part of
# the option's name.
_VALUED: Final[tuple[tuple[str, Kind], ...]] = (("_ms", "delay"), ("_s", "duration"))
_DELAY: Final = re.compile(r"(\d{1,9})(ms|s)", re.ASCII)
_WHOLE: Final = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?", re.ASCII)
_SWITCHES: Final = {"true": True, "1": True, "false": False, "0": False}


class WrongValue(Exception):
    """A value that an option does not take."""


class Codec(Protocol):
    """Reads and writes the values of an option that is more than a list."""

    def read(self, found: object) -> object:
        """The field's value for what is in the file. Raises WrongValue."""

    def write(self, value: Any) -> object:
        """The inverse, of JSON types. What is secret in it is masked."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The declaration of a field: its description, and the values that it takes.

    `minimum` and `maximum` are in the field's own unit. `pattern` applies to a text, or to each
    text of a list. `shape` says the same in words. `secret`: the value is shown nowhere. `lines`: a
    text may have several lines, and messages do not quote it. `says_unit`: a value says its own
    unit, so that the option's name does not (`unit_of`). `codec`: of a value that is more than a
    list; the environment has it as JSON.
    """

    doc: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    shape: str = ""
    secret: bool = False
    lines: bool = False
    says_unit: bool = False
    codec: Codec | None = None


def declare(
    default: T,
    doc: str,
    *,
    unit: str = "",
    within: tuple[float, float] | None = None,
    pattern: str = "",
    shape: str = "",
    secret: bool = False,
    lines: bool = False,
    says_unit: bool = False,
    codec: Codec | None = None,
) -> T:
    """A dataclass field with its rules. Its type is that of its default, which the field then
    holds.
    """
    minimum, maximum = within or (None, None)
    rules = Rules(doc, unit, minimum, maximum, pattern, shape, secret, lines, says_unit, codec)
    return field(default=default, repr=not secret, metadata={"rules": rules})


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `key`: its dotted path in the file. `attribute`: the dataclass field that it
    sets.
    """

    key: str
    attribute: str
    kind: Kind
    default: Any
    rules: Rules

    @property
    def section(self) -> str:
        """The table of the file that holds it."""
        return self.key.rpartition(".")[0]

    @property
    def variable(self) -> str:
        """The environment variable that sets it. Options of namespaces have none."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "_")

    def expected(self) -> str:
        """The accepted values, in words."""
        rules = self.rules
        bounds = ""
        if rules.minimum is not None and self.kind == "duration":
            bounds = f" up to {format_duration(int(rules.maximum or 0))}"
        elif rules.minimum is not None and self.kind == "delay":
            bounds = f" up to {_format_delay(int(rules.maximum or 0))}"
        elif rules.minimum is not None:
            bounds = f" from {rules.minimum:.12g} to {rules.maximum:.12g}"
        if self.kind == "duration":
            return f'a duration such as "300s", "5m", "12h" or "7d"{bounds}'
        if self.kind == "delay":
            return f'a duration such as "20ms", "200ms" or "1s"{bounds}'
        if self.kind == "list":
            return f"a list of {rules.shape}"
        if self.kind == "structure":
            return rules.shape
        if self.kind == "text":
            return rules.shape or "text without control characters"
        return self.kind if self.kind == "true or false" else f"a {self.kind}{bounds}"

    def from_file(self, found: object) -> object:
        """The field's value for a value in the file. Raises WrongValue."""
        if self.rules.codec is not None:
            return self.rules.codec.read(found)
        if self.kind == "true or false" and isinstance(found, bool):
            return found
        if isinstance(found, bool):
            raise WrongValue
        if self.kind == "whole number" and isinstance(found, int):
            return self._in_range(found)
        if self.kind == "number" and isinstance(found, int | float):
            return float(self._in_range(found))
        if self.kind == "text" and isinstance(found, str):
            return self._shaped(found, empty=True)
        if self.kind == "list" and isinstance(found, list):
            return tuple(self._shaped(entry) for entry in found)
        if self.kind == "duration" and isinstance(found, str):
            return self._in_range(seconds_of(found))
        if self.kind == "delay" and isinstance(found, str):
            return self._in_range(_milliseconds_of(found))
        raise WrongValue

    def from_variable(self, found: str) -> object:
        """The field's value for the text of an environment variable. Raises WrongValue."""
        if self.kind == "true or false":
            if found.lower() not in _SWITCHES:
                raise WrongValue
            return _SWITCHES[found.lower()]
        if self.kind == "whole number":
            return self._in_range(int(_matching(_WHOLE, found)))
        if self.kind == "number":
            return self._in_range(float(_matching(_DECIMAL, found)))
        if self.rules.codec is not None:
            try:
                return self.rules.codec.read(json.loads(found))
            except (ValueError, RecursionError):
                raise WrongValue from None
        if self.kind == "list":
            return (
                tuple(self._shaped(entry.strip()) for entry in found.split(","))
                if found.strip()
                else ()
            )
        return self.from_file(found)

    def to_file(self, value: Any) -> Any:
        """The value for a file, the inverse of `from_file`. Secrets are masked."""
        if self.rules.codec is not None:
            return self.rules.codec.write(value)
        if self.rules.secret:
            return MASK if value else ""
        if self.kind == "duration":
            return format_duration(value)
        if self.kind == "delay":
            return _format_delay(value)
        return list(value) if self.kind == "list" else value

    def _in_range(self, found: T) -> T:
        number = cast("float", found)
        minimum, maximum = self.rules.minimum, self.rules.maximum
        if isinstance(number, float) and not math.isfinite(number):
            raise WrongValue
        if minimum is not None and maximum is not None and not minimum <= number <= maximum:
            raise WrongValue
        return found

    def _shaped(self, found: object, *, empty: bool = False) -> str:
        if not isinstance(found, str):
            raise WrongValue
        # Otherwise the newline at the end of a secrets' file would silently become part of a key.
        line = found.replace("\r\n", "").replace("\n", "") if self.rules.lines else found
        if not line.isprintable():
            raise WrongValue
        if found == "" and empty and self.default == "":
            return found
        if self.rules.pattern and not re.fullmatch(self.rules.pattern, found):
            raise WrongValue
        return found


def format_duration(duration_s: int) -> str:
    """The shortest text with one unit: 300 -> "5m", 90 -> "90s"."""
    for unit, seconds in _UNIT_SECONDS:
        if duration_s and duration_s % seconds == 0:
            return f"{duration_s // seconds}{unit}"
    return "0s"


def seconds_of(text: str) -> int:
    """The seconds of a duration such as "1h30m". Raises WrongValue."""
    match = _DURATION.fullmatch(text)
    if not match or not text:
        raise WrongValue
    parts = zip(match.groups(default="0"), _UNIT_SECONDS, strict=True)
    return sum(int(count) * seconds for count, (_, seconds) in parts)


def _format_delay(delay_ms: int) -> str:
    return f"{delay_ms}ms" if delay_ms % 1000 else f"{delay_ms // 1000}s"


def _milliseconds_of(text: str) -> int:
    """The milliseconds of "200ms" or "1s". Raises WrongValue."""
    match = _DELAY.fullmatch(text)
    if not match:
        raise WrongValue
    return int(match[1]) * (1 if match[2] == "ms" else 1000)


def unit_of(field_name: str) -> tuple[str, Kind | None]:
    """The name and kind of the option for a field whose values say their own unit.

    `history_ttl_s` -> `history_ttl`, a duration. None: they do not.
    """
    for end, kind in _VALUED:
        if field_name.endswith(end):
            return field_name.removesuffix(end), kind
    return field_name, None


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise WrongValue
    return text


def kind_of(annotation: object) -> Kind:
    """The kind of option for a field of this type."""
    kinds: dict[object, Kind] = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
    }
    return kinds.get(annotation, "list")


def declared(section: str, holder: type) -> Iterator[Option]:
    """The options that the fields of the dataclass `holder` declare for a table of the file."""
    hints = get_type_hints(holder)
    own: tuple[Field[Any], ...] = fields(holder)
    for each in own:
        if "rules" in each.metadata:
            rules: Rules = each.metadata["rules"]
            name, kind = unit_of(each.name) if rules.says_unit else (each.name, None)
            yield Option(
                f"{section}.{name}",
                each.name,
                kind or ("structure" if rules.codec else kind_of(hints[each.name])),
                each.default,
                rules,
            )


def must_be(option: Option, found: object) -> str:
    """The message about a value that `option` does not take. Secrets are not quoted."""
    hidden = option.rules.secret or option.rules.lines
    return f"must be {option.expected()}" + ("" if hidden else f"; found {quoted(found)}")
