"""Classes whose fields are set once, as their object is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

__all__ = ["frozen"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """As `dataclass(frozen=True, slots=True)`, but only the type checker refuses to set a field.

    At run time a frozen dataclass sets each of its own fields by a call, which takes five times as
    long. This is for classes of which a command or a publication makes an object
    (docs/decisions/0075-the-last-per-cents.md).
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
