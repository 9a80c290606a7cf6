"""The Terraform modules and the CDK stacks have what the templates have, and nothing else.

What they come to when they are run: tests/integration/test_forms.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import hcl2
import pytest

from deploy import forms
from tests.deploy.cloudformation import DATA, ROOT, TEMPLATE, load, references

TERRAFORM: Final = ROOT / "deploy" / "terraform"
CDK: Final = ROOT / "deploy" / "cdk"
SOURCES: Final = {"data": DATA, "fleet": TEMPLATE}
# Variables that are not parameters: written by hand in main.tf.
OWN_VARIABLES: Final = {"stack_name", "service_role_arn"}
# CloudFormation takes a template of that many bytes with the call.
INLINE_BYTES: Final = 51_200
BOTH: Final = pytest.mark.parametrize("form", SOURCES)
HCL: Final = hcl2.SerializationOptions(
    with_comments=False, explicit_blocks=False, strip_string_quotes=True
)


def module(form: str, *names: str) -> dict[str, dict[str, Any]]:
    """Blocks of these files of a module, or of all of them: kind to label to body.

    Labels of resources and data have a dot in them; locals have the label "".
    """
    blocks: dict[str, dict[str, Any]] = {}
    paths = [TERRAFORM / form / name for name in names] or (TERRAFORM / form).glob("*.tf")
    for path in paths:
        with path.open(encoding="utf-8") as file:
            content = hcl2.load(file, serialization_options=HCL)
        for kind, members in content.items():
            for member in members:
                found = blocks.setdefault(kind, {})
                for label, body in labelled(kind, member).items():
                    assert label not in found, (kind, label)
                    found[label] = body
    return blocks


def labelled(kind: str, member: Mapping[str, Any]) -> dict[str, Any]:
    if kind in ("locals", "terraform"):
        return {f"{kind}.{name}": body for name, body in member.items()}
    members = {label.strip('"'): body for label, body in member.items()}
    if kind not in ("resource", "data"):
        return members
    return {
        f"{first}.{second.strip(chr(34))}": body
        for first, inner in members.items()
        for second, body in inner.items()
    }


def text(value: Any) -> str:
    """A default of a form as CloudFormation has it."""
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def said(literal: str) -> str:
    """What a string says: two of these characters stand for one."""
    return literal.replace("$${", "${").replace("%%{", "%{")


def test_what_is_written_from_the_templates_is_what_they_have_now() -> None:
    assert forms.main(["--check"]) == 0, "python deploy/forms.py writes it anew"


def test_it_says_what_is_old_and_writes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in forms.TEMPLATES.values():
        (tmp_path / "deploy").mkdir(exist_ok=True)
        (tmp_path / "deploy" / name).write_bytes((ROOT / "deploy" / name).read_bytes())
    monkeypatch.setattr(forms, "DEPLOY", tmp_path / "deploy")
    assert forms.main(["--check"]) == 1
    assert "deploy/terraform/data/variables.tf" in capsys.readouterr().out.splitlines()
    assert not (tmp_path / "deploy" / "terraform").exists()
    assert forms.main([]) == 0
    assert forms.main(["--check"]) == 0
    written = {path.relative_to(tmp_path): path.read_bytes() for path in forms.files()}
    assert written == {path: (ROOT / path).read_bytes() for path in written}


def test_names_are_the_forms_own() -> None:
    names = ("S3PrefixListId", "DynamoDbPrefixListId", "VpcId", "TopicShards16", "WebSocketUrl")
    assert [forms.snake_case(name) for name in names] == [
        "s3_prefix_list_id",
        "dynamo_db_prefix_list_id",
        "vpc_id",
        "topic_shards16",
        "web_socket_url",
    ]
    assert forms.camel_case("S3PrefixListId") == "s3PrefixListId"


def test_lists_are_parameters_of_text_with_commas() -> None:
    sources = [load(path)["Parameters"] for path in SOURCES.values()]
    every = {name: each for source in sources for name, each in source.items()}
    assert every.keys() >= forms.LISTS
    for name, each in every.items():
        # Outside of a number of repetitions.
        commas = "," in re.sub(r"\{[0-9]+,[0-9]*\}", "", each.get("AllowedPattern", ""))
        assert commas == (name in forms.LISTS), name


@BOTH
def test_a_module_has_a_variable_for_each_parameter(form: str) -> None:
    parameters = load(SOURCES[form])["Parameters"]
    variables = module(form)["variable"]
    assert variables.keys() - OWN_VARIABLES == {forms.snake_case(name) for name in parameters}
    for name, parameter in parameters.items():
        variable = variables[forms.snake_case(name)]
        assert said(variable["description"]) == parameter["Description"], name
        assert ("default" in variable) == ("Default" in parameter), name
        if "default" in variable:
            assert text(variable["default"]) == str(parameter["Default"]), name
        # A null would not be sent, and the parameter keep what it had.
        assert variable["nullable"] is False
        allowed = {str(each) for each in parameter.get("AllowedValues", ())}
        if allowed == {"true", "false"}:
            wanted = "bool"
        elif name in forms.LISTS:
            wanted = "list(string)"
        else:
            wanted = "number" if parameter["Type"] == "Number" else "string"
        assert variable["type"].removeprefix("${").removesuffix("}") == wanted, name
        bounds = parameter.keys() & {"AllowedPattern", "AllowedValues", "MinValue", "MaxValue"}
        checks = len(bounds) if wanted != "bool" else 0
        assert len(variable.get("validation", ())) == checks, name


@BOTH
def test_a_module_gives_every_parameter_to_the_stack_and_every_output_back(form: str) -> None:
    source = load(SOURCES[form])
    blocks = module(form)
    (stack,) = (
        body for name, body in blocks["resource"].items() if name.startswith("aws_cloudformation")
    )
    assert stack["parameters"] == "${local.parameters}"
    given = blocks["locals"]["locals.parameters"]
    assert given.keys() == source["Parameters"].keys()
    for name, expression in given.items():
        assert re.findall(r"var\.(\w+)", expression) == [forms.snake_case(name)]
    outputs = blocks["output"]
    assert outputs.keys() - {"stack_name"} == {forms.snake_case(name) for name in source["Outputs"]}
    for name, output in source["Outputs"].items():
        body = outputs[forms.snake_case(name)]
        assert said(body["description"]) == output["Description"]
        # What a condition leaves out is null, and not an error.
        wanted = (
            f'lookup(aws_cloudformation_stack.stack.outputs, "{name}", null)'
            if "Condition" in output
            else f'aws_cloudformation_stack.stack.outputs["{name}"]'
        )
        assert body["value"].removeprefix("${").removesuffix("}") == wanted


@BOTH
def test_a_module_deploys_the_template_beside_it_as_cloudformation_takes_it(form: str) -> None:
    content = (TERRAFORM / form / "main.tf").read_text(encoding="utf-8")
    (place,) = re.findall(r'"\$\{path\.module\}/(.*?)"', content)
    assert (TERRAFORM / form / place).resolve() == SOURCES[form]
    stack = module(form)["resource"]["aws_cloudformation_stack.stack"]
    fits = SOURCES[form].stat().st_size <= INLINE_BYTES
    assert ("template_body" in stack, "template_url" in stack) == (fits, not fits)
    # Roles, and none with a name of its own.
    resources = load(SOURCES[form])["Resources"].values()
    roles = [each for each in resources if each["Type"] == "AWS::IAM::Role"]
    assert stack.get("capabilities", []) == (["CAPABILITY_IAM"] if roles else [])
    assert not any("RoleName" in each["Properties"] for each in roles)


@BOTH
def test_a_module_refers_to_what_it_has(form: str) -> None:
    blocks = module(form)
    content = "".join(
        re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        for path in (TERRAFORM / form).glob("*.tf")
    )
    known = {f"var.{name}" for name in blocks["variable"]}
    known |= {f"local.{name.partition('.')[2]}" for name in blocks["locals"]}
    known |= blocks["resource"].keys() | {f"data.{name}" for name in blocks.get("data", ())}
    named = set(re.findall(r"\b(?:var|local)\.\w+|\bdata\.aws_\w+\.\w+", content))
    named |= set(re.findall(r"(?<!data\.)\baws_\w+\.\w+", content))
    assert named - known == set()
    # A variable that nothing uses would be taken and ignored.
    assert {name for name in known if name.startswith("var.")} - named == set()
    assert "aws" in blocks["terraform"]["terraform.required_providers"][0]


@BOTH
def test_cdk_stacks_know_of_each_parameter_what_the_template_says(form: str) -> None:
    template = load(SOURCES[form])
    known = json.loads((CDK / "templates.json").read_text(encoding="utf-8"))[form]
    table = known["parameters"]
    assert table.keys() == template["Parameters"].keys()
    decisive = references([template["Conditions"], template.get("Rules", {})])
    for name, parameter in template["Parameters"].items():
        told = table[name]
        assert told["required"] == ("Default" not in parameter), name
        assert told["decides"] == (name in decisive), name
        assert told.get("pattern") == parameter.get("AllowedPattern"), name
        assert told.get("least") == parameter.get("MinValue"), name
        assert told.get("most") == parameter.get("MaxValue"), name
        allowed = [str(each) for each in parameter.get("AllowedValues", ())]
        assert told.get("allowed", []) == allowed, name
    policies = {
        name: each["UpdatePolicy"]
        for name, each in template["Resources"].items()
        if "UpdatePolicy" in each
    }
    assert known["updatePolicies"] == policies
    # What is put in for a parameter would not get into them.
    assert not references(policies) & template["Parameters"].keys()


@BOTH
def test_cdk_stacks_declare_each_parameter_and_output(form: str) -> None:
    template = load(SOURCES[form])
    declared = (CDK / "parameters.d.ts").read_text(encoding="utf-8")
    _, _, after = declared.partition(f"interface {form.capitalize()}Parameters {{")
    interface = after.partition("\n}")[0]
    properties = dict(re.findall(r"readonly (\w+\??): (.*);", interface))
    assert properties.keys() == {
        forms.camel_case(name) + ("?" if "Default" in each else "")
        for name, each in template["Parameters"].items()
    }
    # One of its values, or its kind.
    assert set(properties.values()) <= {"boolean", "number", "string", "string[]"} | {
        each for each in properties.values() if "|" in each
    }
    for each in template["Parameters"].values():
        assert each["Description"] in interface
    _, _, union = declared.partition(f"type {form.capitalize()}Output =")
    assert re.findall(r'\| "(\w+)"', union.partition(";")[0]) == list(template["Outputs"])


def test_a_package_of_the_cdk_stacks_has_the_templates_and_all_that_they_need() -> None:
    package = json.loads((CDK / "package.json").read_text(encoding="utf-8"))
    packed = set(package["files"])
    copied = re.findall(r"\.\./(\S+)", package["scripts"]["prepack"])
    assert set(copied) == set(forms.TEMPLATES.values())
    assert package["scripts"]["postpack"].split()[1:] == copied
    written = {path.name for path in forms.files() if path.parent == CDK}
    assert packed == {package["main"], package["types"], *copied, *written}
    names = (CDK / "index.js").read_text(encoding="utf-8")
    assert set(re.findall(r'require\("\./(.*?)"\)', names)) <= packed
    assert set(re.findall(r'"(\w+\.yaml)"', names)) == set(copied)


def example(language: str) -> str:
    """The block of deploy/README.md in this language."""
    page = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(block)


@BOTH
def test_the_example_of_the_modules_gives_what_they_need_and_nothing_unknown(form: str) -> None:
    blocks = hcl2.loads(example("hcl"), serialization_options=HCL)["module"]
    (given,) = (labelled("module", each)[form] for each in blocks if form in str(list(each)))
    assert given.pop("source").endswith(f"deploy/terraform/{form}")
    variables = module(form)["variable"]
    assert given.keys() <= variables.keys()
    assert {name for name, each in variables.items() if "default" not in each} <= given.keys()


@BOTH
def test_the_example_of_the_cdk_stacks_gives_what_they_need_and_nothing_unknown(form: str) -> None:
    name = {"data": "RoomcastDataStack", "fleet": "RoomcastStack"}[form]
    ((_, block),) = re.findall(
        rf'new {name}\(app, "([a-z-]+)", \{{(.*?)\}}\)', example("ts"), re.DOTALL
    )
    given = set(re.findall(r"(\w+):", block))
    table = json.loads((CDK / "templates.json").read_text(encoding="utf-8"))[form]["parameters"]
    assert given <= {each["prop"] for each in table.values()}
    assert {each["prop"] for each in table.values() if each["required"]} <= given
    resources = set(re.findall(r'resource\("(\w+)"\)', example("ts")))
    assert resources <= load()["Resources"].keys()
    outputs = set(re.findall(r'output\("(\w+)"\)', example("ts")))
    assert outputs <= load()["Outputs"].keys()
