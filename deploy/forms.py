"""Writes what the Terraform modules and the CDK stacks repeat of the templates.

    python deploy/forms.py           write it
    python deploy/forms.py --check   only say what is not as it would be written

Both forms deploy the templates as they are, so this is little more than parameters and outputs:
deploy/terraform/*/{parameters,variables,outputs}.tf, deploy/cdk/templates.json and
deploy/cdk/parameters.d.ts. Needs PyYAML, which the tests bring.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = [
    "LISTS",
    "TEMPLATES",
    "Output",
    "Parameter",
    "camel_case",
    "files",
    "main",
    "outputs",
    "parameters",
    "snake_case",
]

DEPLOY: Final = Path(__file__).parent
# Name of a form to the template that it deploys.
TEMPLATES: Final = {"data": "data.yaml", "fleet": "template.yaml"}
# Parameters of text with commas, which both forms take as lists.
LISTS: Final = frozenset(
    {
        "ConsumerQueueArns",
        "LoadBalancerCidrs",
        "PrivateRouteTableIds",
        "PrivateSubnetIds",
        "PublicSubnetIds",
    }
)
_BOOLEANS: Final = ["true", "false"]
_WRITTEN: Final = "Written by deploy/forms.py from deploy/{}; do not edit."


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of a template. `default` None: it must be given."""

    name: str
    # "boolean", "list", "number" or "text", as both forms take it.
    kind: str
    description: str
    default: str | None
    pattern: str | None
    allowed: tuple[str, ...]
    least: int | None
    most: int | None
    # Conditions or rules go by it, so that it must be known before anything is made.
    decides: bool

    @property
    def value(self) -> bool | int | str | list[str] | None:
        """The default as the forms take it; None: there is none."""
        if self.default is None:
            return None
        match self.kind:
            case "boolean":
                return self.default == "true"
            case "number":
                return int(self.default)
            case "list":
                return self.default.split(",") if self.default else []
        return self.default


@dataclass(frozen=True, slots=True)
class Output:
    """One of a template. `always`: it does not depend on a condition."""

    name: str
    description: str
    always: bool


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """Functions of CloudFormation in their long form, an object with one key."""


def _function(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    return {name: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _function)


@cache
def _loaded(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # derived from SafeLoader


def _template(form: str) -> dict[str, Any]:
    template: dict[str, Any] = _loaded((DEPLOY / TEMPLATES[form]).read_text(encoding="utf-8"))
    return template


def parameters(form: str) -> list[Parameter]:
    """Of the template that `form` deploys, in its order."""
    template = _template(form)
    decisive = set(_referred([template.get("Conditions"), template.get("Rules")]))
    return [_parameter(name, raw, name in decisive) for name, raw in template["Parameters"].items()]


def outputs(form: str) -> list[Output]:
    """Of the template that `form` deploys, in its order."""
    return [
        Output(name, raw["Description"], "Condition" not in raw)
        for name, raw in _template(form)["Outputs"].items()
    ]


def _parameter(name: str, raw: Mapping[str, Any], decides: bool) -> Parameter:
    allowed = tuple(str(each) for each in raw.get("AllowedValues", ()))
    if sorted(allowed) == sorted(_BOOLEANS):
        kind = "boolean"
    elif name in LISTS:
        kind = "list"
    else:
        kind = "number" if raw["Type"] == "Number" else "text"
    default = raw.get("Default")
    return Parameter(
        name,
        kind,
        raw["Description"],
        None if default is None else str(default),
        raw.get("AllowedPattern"),
        allowed,
        raw.get("MinValue"),
        raw.get("MaxValue"),
        decides,
    )


def _referred(part: Any) -> Iterator[str]:
    """Names that `part` of a template has under Ref."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "Ref":
                yield value
            yield from _referred(value)
    elif isinstance(part, list):
        for value in part:
            yield from _referred(value)


def snake_case(name: str) -> str:
    """S3PrefixListId as s3_prefix_list_id."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def camel_case(name: str) -> str:
    """S3PrefixListId as s3PrefixListId."""
    return name[0].lower() + name[1:]


# ---- Terraform

_HCL_TYPES: Final = {
    "boolean": "bool",
    "list": "list(string)",
    "number": "number",
    "text": "string",
}


def _hcl(value: Any) -> str:
    """A literal. JSON's are HCL's, but for templates in strings."""
    return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


def _hcl_lines(pairs: Mapping[str, str], indent: str) -> str:
    """`name = value` a line, aligned as `terraform fmt` does."""
    width = max(map(len, pairs))
    return "".join(f"{indent}{name:<{width}} = {value}\n" for name, value in pairs.items())


def _hcl_given(parameter: Parameter) -> str:
    """The expression that is the parameter's text."""
    variable = f"var.{snake_case(parameter.name)}"
    match parameter.kind:
        case "list":
            return f'join(",", {variable})'
        case "text":
            return variable
    return f"tostring({variable})"


def _hcl_checks(parameter: Parameter) -> Iterator[tuple[str, str]]:
    """Condition, and what is said where it does not hold."""
    name = snake_case(parameter.name)
    if parameter.pattern is not None:
        pattern = _hcl(f"^(?:{parameter.pattern})$")
        yield f"can(regex({pattern}, {_hcl_given(parameter)}))", f"must match {parameter.pattern}"
    if parameter.allowed and parameter.kind != "boolean":
        allowed: list[Any] = list(parameter.allowed)
        if parameter.kind == "number":
            allowed = [int(each) for each in allowed]
        said = ", ".join(parameter.allowed)
        yield f"contains({_hcl(allowed)}, var.{name})", f"must be one of {said}"
    if parameter.least is not None:
        yield f"var.{name} >= {parameter.least}", f"must be {parameter.least} or more"
    if parameter.most is not None:
        yield f"var.{name} <= {parameter.most}", f"must be {parameter.most} or less"


def _hcl_variable(parameter: Parameter) -> str:
    name = snake_case(parameter.name)
    pairs = {
        "type": _HCL_TYPES[parameter.kind],
        "description": _hcl(parameter.description),
    }
    if parameter.value is not None:
        pairs["default"] = _hcl(parameter.value)
    pairs["nullable"] = "false"
    checks = "".join(
        "\n  validation {\n"
        + _hcl_lines({"condition": condition, "error_message": _hcl(f"{name} {said}.")}, "    ")
        + "  }\n"
        for condition, said in _hcl_checks(parameter)
    )
    return f'variable "{name}" {{\n{_hcl_lines(pairs, "  ")}{checks}}}\n'


def _hcl_output(output: Output) -> str:
    stack = "aws_cloudformation_stack.stack.outputs"
    name = _hcl(output.name)
    value = f"{stack}[{name}]" if output.always else f"lookup({stack}, {name}, null)"
    pairs = {"description": _hcl(output.description), "value": value}
    return f'output "{snake_case(output.name)}" {{\n{_hcl_lines(pairs, "  ")}}}\n'


def _terraform(form: str) -> dict[str, str]:
    head = f"# {_WRITTEN.format(TEMPLATES[form])}\n\n"
    given = _hcl_lines({each.name: _hcl_given(each) for each in parameters(form)}, "    ")
    return {
        "parameters.tf": f"{head}locals {{\n  parameters = {{\n{given}  }}\n}}\n",
        "variables.tf": head + "\n".join(map(_hcl_variable, parameters(form))),
        "outputs.tf": head + "\n".join(map(_hcl_output, outputs(form))),
    }


# ---- CDK

_TS_TYPES: Final = {
    "boolean": "boolean",
    "list": "string[]",
    "number": "number",
    "text": "string",
}


def _cdk_table(form: str) -> dict[str, Any]:
    """What index.js knows of a template."""
    return {
        "parameters": _cdk_parameters(form),
        # As they stand in the template: CfnInclude garbles a function in one.
        "updatePolicies": {
            name: raw["UpdatePolicy"]
            for name, raw in _template(form)["Resources"].items()
            if "UpdatePolicy" in raw
        },
    }


def _cdk_parameters(form: str) -> dict[str, Any]:
    table = {}
    for each in parameters(form):
        known: dict[str, Any] = {
            "prop": camel_case(each.name),
            "kind": each.kind,
            "required": each.default is None,
            "decides": each.decides,
            "pattern": each.pattern,
            "allowed": list(each.allowed) or None,
            "least": each.least,
            "most": each.most,
        }
        table[each.name] = {key: value for key, value in known.items() if value is not None}
    return table


def _ts_type(parameter: Parameter) -> str:
    if not parameter.allowed or parameter.kind == "boolean":
        return _TS_TYPES[parameter.kind]
    quote = "" if parameter.kind == "number" else '"'
    return " | ".join(f"{quote}{each}{quote}" for each in parameter.allowed)


def _ts_property(parameter: Parameter) -> str:
    about = parameter.description.replace("*/", "* /")
    if parameter.value is not None:
        about += f"\n   * @default {json.dumps(parameter.value)}"
    optional = "" if parameter.default is None else "?"
    name = camel_case(parameter.name)
    return f"  /**\n   * {about}\n   */\n  readonly {name}{optional}: {_ts_type(parameter)};\n"


def _declarations() -> str:
    parts = [f"// {_WRITTEN.format(' and deploy/'.join(TEMPLATES.values()))}\n"]
    for form, template in TEMPLATES.items():
        title = form.capitalize()
        properties = "\n".join(map(_ts_property, parameters(form)))
        names = "".join(f'\n  | "{each.name}"' for each in outputs(form))
        parts.append(
            f"/** Parameters of deploy/{template}. */\n"
            f"export interface {title}Parameters {{\n{properties}}}\n"
        )
        parts.append(f"/** Outputs of deploy/{template}. */\nexport type {title}Output ={names};\n")
    return "\n".join(parts)


# ---- files


def files() -> dict[Path, str]:
    """Everything that is written, by where it stands."""
    written = {
        DEPLOY / "terraform" / form / name: text
        for form in TEMPLATES
        for name, text in _terraform(form).items()
    }
    tables = {form: _cdk_table(form) for form in TEMPLATES}
    cdk = DEPLOY / "cdk"
    written[cdk / "templates.json"] = json.dumps(tables, indent=2, ensure_ascii=False) + "\n"
    written[cdk / "parameters.d.ts"] = _declarations()
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, or all is as it would be written; 1 some is not; 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="deploy/forms.py",
        description="Write what Terraform and CDK repeat of the templates.",
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say what is old")
    options = parser.parse_args(arguments)
    old = {
        path: text
        for path, text in files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in old.items():
        sys.stdout.write(f"{path.relative_to(DEPLOY.parent)}\n")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
