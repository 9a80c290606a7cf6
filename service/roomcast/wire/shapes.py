"""Shapes of decoded JSON values, and the words for them, for all readers of foreign data.

Commands, claims, signals and parameters each have their own error for a wrong value. The shapes
themselves, such as an integer or a list of texts, are defined here once, and so is how deep JSON
may be nested. Other modules check the size beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, TypeGuard, TypeVar

__all__ = [
    "COUNT",
    "DEPTH_MAX",
    "FLAG",
    "INTEGER",
    "NUMBER",
    "OBJECT",
    "OBJECTS",
    "OBJECT_OF_OBJECTS",
    "OBJECT_OF_TEXTS",
    "TEXT",
    "TEXTS",
    "Shape",
    "checked",
    "is_deeper",
    "member",
    "member_or_null",
    "text",
    "whole",
]

# Arrays and objects within each other, in a publication or signal. Decoders take about 1,000, an
# envelope's own included.
DEPTH_MAX: Final = 512

# Looked for as a tuple: a union takes twice as long.
_CONTAINERS: Final = (list, dict)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Wrong = Callable[[str], Exception]


@dataclass(frozen=True, slots=True)
class Shape(Generic[T_co]):
    """`fits`: whether a value has the shape. `words` follow "must be" or "is not"."""

    words: str
    fits: Callable[[object], TypeGuard[T_co]]


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_flag(value: object) -> TypeGuard[bool]:
    return isinstance(value, bool)


def _is_integer(value: object) -> TypeGuard[int]:
    # In Python, but not in JSON, true and false are integers.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> TypeGuard[int]:
    return _is_integer(value) and value >= 0


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_objects(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _is_object_of_texts(value: object) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _is_object_of_objects(value: object) -> TypeGuard[dict[str, dict[str, Any]]]:
    return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())


TEXT: Final = Shape("a string", _is_text)
FLAG: Final = Shape("true or false", _is_flag)
INTEGER: Final = Shape("a whole number", _is_integer)
NUMBER: Final = Shape("a number", _is_number)
COUNT: Final = Shape("a number from 0", _is_count)
OBJECT: Final = Shape("an object", _is_object)
TEXTS: Final = Shape("a list of strings", _is_texts)
OBJECTS: Final = Shape("a list of objects", _is_objects)
OBJECT_OF_TEXTS: Final = Shape("an object of strings", _is_object_of_texts)
OBJECT_OF_OBJECTS: Final = Shape("an object of objects", _is_object_of_objects)


@cache
def text(chars_max: int) -> Shape[str]:
    """A string of at most `chars_max` characters."""

    def fits(value: object) -> TypeGuard[str]:
        return isinstance(value, str) and len(value) <= chars_max

    return Shape(f"a string of at most {chars_max} characters", fits)


@cache
def whole(minimum: int, maximum: int) -> Shape[int]:
    """An integer within bounds, both included."""

    def fits(value: object) -> TypeGuard[int]:
        return _is_integer(value) and minimum <= value <= maximum

    return Shape(f"a whole number from {minimum} to {maximum}", fits)


def checked(value: object, name: str, shape: Shape[T], wrong: Wrong) -> T:
    """`value`, if it has `shape`. Raises `wrong`, with "`name` is not …"."""
    if not shape.fits(value):
        raise wrong(f"{name} is not {shape.words}")
    return value


def member(
    members: Mapping[str, object], name: str, shape: Shape[T], default: T, wrong: Wrong
) -> T:
    """The value of `name`, `default` if it is absent. Null is a value of the wrong shape."""
    return checked(members[name], name, shape, wrong) if name in members else default


def member_or_null(
    members: Mapping[str, object], name: str, shape: Shape[T], default: T, wrong: Wrong
) -> T:
    """The same, but null counts as absent."""
    value = members.get(name)
    return default if value is None else checked(value, name, shape, wrong)


def is_deeper(value: object, depth: int) -> bool:
    """Whether arrays and objects stand within each other more than `depth` times in `value`."""
    # Only what has something in it: a request may hold thousands of empty arrays.
    level: list[Any] = [value] if value and isinstance(value, _CONTAINERS) else []
    for _ in range(depth):
        if not level:
            return False
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if child and isinstance(child, _CONTAINERS)
        ]
    return bool(level)
