"""Reads deploy/template.yaml: YAML with CloudFormation's short functions, and what tests ask of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["ROOT", "TEMPLATE", "Statement", "load", "references", "statements", "sub_names", "values"]

ROOT: Final = Path(__file__).parents[2]
TEMPLATE: Final = ROOT / "deploy" / "template.yaml"
# ${Name} and ${Name.Attribute}, but not ${!literal}.
_SUB: Final = re.compile(r"\$\{([A-Za-z0-9:.]+)\}")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """YAML's plain types, and !Ref and the others as the long form has them."""


def _function(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {name: value}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Refuses a key that stands twice: YAML would silently take the last."""
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(set(keys)) == len(keys), f"a key stands twice among {keys}"
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


_Loader.add_multi_constructor("!", _function)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@cache
def _loaded(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # derived from SafeLoader


def load(path: Path = TEMPLATE) -> dict[str, Any]:
    """The template; not to be changed."""
    template: dict[str, Any] = _loaded(path.read_text(encoding="utf-8"))
    return template


def values(part: Any, key: str) -> Iterator[Any]:
    """Every value that stands under `key`, anywhere in `part`."""
    if isinstance(part, Mapping):
        for name, value in part.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(part, list):
        for value in part:
            yield from values(value, key)


def sub_names(argument: Any) -> set[str]:
    """The names that an Fn::Sub takes from the template: its own variables are left out."""
    text, own = (argument, {}) if isinstance(argument, str) else argument
    return {name.partition(".")[0] for name in _SUB.findall(text)} - set(own)


def references(part: Any) -> set[str]:
    """Names of parameters and resources that `part` refers to."""
    return {
        *values(part, "Ref"),
        *(name for name, *_ in values(part, "Fn::GetAtt")),
        *(name for argument in values(part, "Fn::Sub") for name in sub_names(argument)),
    }


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a policy, actions and resources as lists."""

    owner: str
    sid: str
    effect: str
    actions: tuple[str, ...]
    resources: tuple[Any, ...]
    condition: Mapping[str, Any]


def statements(name: str, resource: Mapping[str, Any]) -> list[Statement]:
    """Of all policies that `resource`, a role, an endpoint or a bucket's policy, carries; not who may assume a role."""
    properties = resource["Properties"]
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", ())]
    if "PolicyDocument" in properties:
        documents.append(properties["PolicyDocument"])
    return [
        Statement(
            name,
            raw["Sid"],
            raw["Effect"],
            tuple(_list(raw["Action"])),
            tuple(_list(raw["Resource"])),
            raw.get("Condition", {}),
        )
        for document in documents
        for raw in document["Statement"]
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
