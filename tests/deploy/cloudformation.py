"""Reads the templates in deploy/: YAML with CloudFormation's short functions, what they come to,
and what tests ask of them.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = [
    "DATA",
    "ROOT",
    "TEMPLATE",
    "Evaluation",
    "Statement",
    "exports",
    "imported",
    "load",
    "matches",
    "references",
    "statements",
    "sub_names",
    "values",
]

ROOT: Final = Path(__file__).parents[2]
TEMPLATE: Final = ROOT / "deploy" / "template.yaml"
# What it runs on, a stack of its own.
DATA: Final = ROOT / "deploy" / "data.yaml"
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


def imported(name: str) -> dict[str, Any]:
    """What the template has for an export of the data stack, by its name without the stack's."""
    return {"Fn::ImportValue": {"Fn::Sub": f"${{DataStack}}-{name}"}}


def exports(evaluation: Evaluation) -> dict[str, Any]:
    """What the stack of `evaluation` exports, by name."""
    return {
        evaluation.value(output["Export"]["Name"]): evaluation.value(output["Value"])
        for output in evaluation.template["Outputs"].values()
        if "Export" in output
        and ("Condition" not in output or evaluation.holds(output["Condition"]))
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
    """Of all policies that `resource`, a role, an endpoint or a bucket's policy, carries;
    not who may assume a role.
    """
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
        for raw in map(_if_any, document["Statement"])
    ]


def _if_any(statement: Mapping[str, Any]) -> Mapping[str, Any]:
    """A statement that is there only under a condition, as if it were there."""
    wanted: Mapping[str, Any] = statement.get("Fn::If", (None, statement))[1]
    return wanted


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def matches(pattern: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """A filter of events or records, as far as ours use it: exact values, anything-but and exists.

    What is asked of a field below one that is not there is asked of a field that is not there.
    """
    for key, wanted in pattern.items():
        if isinstance(wanted, dict):
            below = record.get(key)
            if not matches(wanted, below if isinstance(below, Mapping) else {}):
                return False
        elif not any(_meets(rule, key, record) for rule in wanted):
            return False
    return True


def _meets(rule: Any, key: str, record: Mapping[str, Any]) -> bool:
    if not isinstance(rule, dict):
        return key in record and bool(record[key] == rule)
    ((kind, argument),) = rule.items()
    match kind:
        case "exists":
            # AWS asks it of leaves only.
            return (key in record and not isinstance(record[key], Mapping)) is argument
        case "anything-but":
            return key in record and record[key] not in argument
    raise NotImplementedError(kind)


# ---- what the functions come to

# Stands for AWS::NoValue: whatever has this value is not there.
_NO_VALUE: Final = object()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A template with its parameters, worked out as CloudFormation documents its functions.

    `parameters` are all that the template has, `pseudo` those that every template has,
    but for AWS::NoValue. `zones`: the region's. `name` tells what Ref makes of a resource,
    `attribute` what GetAtt does.
    """

    template: Mapping[str, Any]
    parameters: Mapping[str, str]
    pseudo: Mapping[str, str]
    zones: Sequence[str]
    name: Callable[[str], str]
    attribute: Callable[[str, str], Any]
    # What other stacks export, by name.
    imports: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, condition: Any) -> bool:
        """Of a condition function, or the name of one of the template's conditions."""
        if isinstance(condition, str):
            return self.holds(self.template["Conditions"][condition])
        ((function, argument),) = condition.items()
        match function:
            case "Condition":
                return self.holds(argument)
            case "Fn::Equals":
                one, other = (str(self.value(each)) for each in argument)
                return one == other
            case "Fn::Not":
                return not self.holds(argument[0])
            case "Fn::And":
                return all(self.holds(each) for each in argument)
            case "Fn::Or":
                return any(self.holds(each) for each in argument)
        raise NotImplementedError(function)

    def broken_rules(self) -> set[str]:
        """Names of the template's rules that the parameters break."""
        return {
            name
            for name, rule in self.template.get("Rules", {}).items()
            if self.holds(rule["RuleCondition"])
            and not all(self.holds(each["Assert"]) for each in rule["Assertions"])
        }

    def resources(self) -> set[str]:
        """Logical names of what is made."""
        return {
            name
            for name, each in self.template["Resources"].items()
            if "Condition" not in each or self.holds(each["Condition"])
        }

    def properties(self, resource: str) -> dict[str, Any]:
        """Of a resource, worked out."""
        properties: dict[str, Any] = self.value(self.template["Resources"][resource]["Properties"])
        return properties

    def value(self, part: Any) -> Any:
        """`part` of the template, without functions."""
        if isinstance(part, list):
            members = [self.value(each) for each in part]
            return [each for each in members if each is not _NO_VALUE]
        if not isinstance(part, dict):
            return part
        if len(part) == 1:
            ((key, argument),) = part.items()
            if key == "Ref" or key.startswith("Fn::"):
                return self._called(key, argument)
        values = {key: self.value(each) for key, each in part.items()}
        return {key: each for key, each in values.items() if each is not _NO_VALUE}

    def _called(self, function: str, argument: Any) -> Any:
        match function:
            case "Ref":
                return self._referred(argument)
            case "Fn::GetAtt":
                return self.attribute(*argument)
            case "Fn::Sub":
                text, own = (argument, {}) if isinstance(argument, str) else argument
                return self._substituted(text, {key: self.value(each) for key, each in own.items()})
            case "Fn::If":
                condition, then, otherwise = argument
                return self.value(then if self.holds(condition) else otherwise)
            case "Fn::FindInMap":
                name, top, second = (self.value(each) for each in argument)
                return self.template["Mappings"][name][top][second]
            case "Fn::Select":
                index, choice = (self.value(each) for each in argument)
                return choice[int(index)]
            case "Fn::Split":
                separator, text = (self.value(each) for each in argument)
                return text.split(separator)
            case "Fn::Join":
                separator, parts = argument
                return str(separator).join(self.value(parts))
            case "Fn::Base64":
                return base64.b64encode(self.value(argument).encode()).decode()
            case "Fn::ImportValue":
                return self.imports[self.value(argument)]
            case "Fn::GetAZs":
                return list(self.zones)
            case "Fn::Cidr":
                block, count, bits = (self.value(each) for each in argument)
                subnets = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
                return [str(next(subnets)) for _ in range(int(count))]
        raise NotImplementedError(function)

    def _referred(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return _NO_VALUE
        if name in self.parameters:
            return self.parameters[name]
        return self.pseudo[name] if name in self.pseudo else self.name(name)

    def _substituted(self, text: str, own: Mapping[str, Any]) -> str:
        def of(match: re.Match[str]) -> str:
            name, _, attribute = match[1].partition(".")
            if name in own:
                return str(own[name])
            return str(self.attribute(name, attribute) if attribute else self._referred(name))

        return _SUB.sub(of, text).replace("${!", "${")
