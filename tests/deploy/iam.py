"""Decides as IAM does whether policies allow a call:
the part of its language that deploy/template.yaml speaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "allowed"]


@dataclass(frozen=True, slots=True)
class Call:
    """What somebody wants to do. `context`: the condition keys that the call has,
    by their names in small letters.
    """

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def allowed(documents: Iterable[Mapping[str, Any]], call: Call) -> bool:
    """Whether a statement of `documents` allows `call` and none denies it.
    Raises NotImplementedError for what is not known here.

    Who calls is not looked at: every policy that is given is about them.
    """
    effects = {
        statement["Effect"]
        for document in documents
        for statement in _list(document["Statement"])
        if _concerns(statement, call)
    }
    return effects == {"Allow"}


def _concerns(statement: Mapping[str, Any], call: Call) -> bool:
    unknown = statement.keys() - {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
    if unknown:
        raise NotImplementedError(f"a statement with {', '.join(sorted(unknown))}")
    return (
        any(_like(call.action.lower(), each.lower()) for each in _list(statement["Action"]))
        and any(_like(call.resource, each) for each in _list(statement["Resource"]))
        and all(
            _holds(operator, call.context.get(key.lower()), _list(wanted))
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _holds(operator: str, value: str | None, wanted: list[str]) -> bool:
    """Without IfExists, a key that the call does not have meets no condition."""
    if operator in ("StringEquals", "Bool"):
        return value in wanted
    # The keys of ours that have several values have one in each call.
    if operator in ("StringLike", "ForAllValues:StringLike"):
        return value is not None and any(_like(value, each) for each in wanted)
    raise NotImplementedError(operator)


def _like(value: str, pattern: str) -> bool:
    """* stands for any text, ? for one character."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, value, flags=re.DOTALL) is not None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
