"""The CDK stacks and the Terraform modules, run: what they would deploy is what the templates say.

Neither reaches AWS. CDK synthesizes all that it sends. Terraform works out variables, what they are
held to and the parameters that they become; for what follows it would need the provider of AWS,
which no registry of packages has, so tests/deploy/test_forms.py reads that.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.forms import camel_case, snake_case
from tests.deploy.cloudformation import DATA, ROOT, TEMPLATE, load, values
from tests.deploy.test_forms import SOURCES, TERRAFORM
from tests.requirements import CDK_DIRECTORY, find_node, find_terraform, obtain

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(180)]

APP: Final = ROOT / "tests" / "deploy" / "cdk_app.js"
COMMAND_S: Final = 120
DIGITS: Final = "0" * 64
# What instances need, by the parameter's name.
NEEDED: Final[dict[str, Any]] = {
    "ArtifactBucket": "artifacts",
    "StreamLambdaKey": f"stream_lambda-{DIGITS}.zip",
    "ReaperLambdaKey": f"reaper_lambda-{DIGITS}.zip",
    "ReleaseKey": f"release-{DIGITS}.tar",
    "SecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:roomcast",
    "DataStack": "chat-data",
    "S3PrefixListId": "pl-1",
    "DynamoDbPrefixListId": "pl-2",
    "CertificateArn": "arn:aws:acm:eu-central-1:123456789012:certificate/1",
    "ImageId": "ami-12345678",
    "AlarmTopicArn": "nobody",
}
# One of each kind, and such that much is made otherwise. Tasks need less of the same.
MORE: Final[dict[str, Any]] = NEEDED | {
    "VpcId": "vpc-1",
    "PrivateSubnetIds": ["subnet-1", "subnet-2"],
    "EndpointSecurityGroupId": "sg-1",
    "Processes": 2,
    "MinInstances": 3,
    "TopicShards": 4,
    "PublishToShards": True,
    "DeletionProtection": False,
    "QueuePrefix": "chat-",
    "DomainName": "chat.example.com",
}
OF_DATA: Final[Mapping[str, Any]] = {
    "TablePrefix": "chat-",
    "TopicShards": 4,
    "DeletionProtection": False,
}


def text(value: Any) -> str:
    """As CloudFormation has the value of a parameter."""
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- CDK


def prop(name: str) -> str:
    return name[0].lower() + name[1:]


def props(given: Mapping[str, Any]) -> dict[str, Any]:
    return {camel_case(name): value for name, value in given.items()}


# What is refused of what else is given, and why.
WRONG: Final[list[tuple[dict[str, Any], str]]] = [
    ({"artifactBucket": "Not a bucket"}, r"artifactBucket must match \[a-z0-9\]"),
    ({"topicShards": 3}, "topicShards must be one of 1, 2, 4, 8, 16"),
    ({"processes": 257}, "processes must be 256 or less"),
    ({"processes": "2"}, "processes is not a number"),
    ({"privateSubnetIds": "subnet-1,subnet-2"}, "privateSubnetIds is not a list"),
    ({"imageId": None}, "imageId is not a string"),
    ({"vpcId": {"made": "vpc-of-another"}}, "vpcId decides what is made, so it must be known"),
]
STACKS: Final[list[dict[str, Any]]] = [
    {"form": "data", "id": "data-plain", "props": {}},
    {"form": "data", "id": "data-more", "props": props(OF_DATA)},
    {"form": "fleet", "id": "fleet-plain", "props": props(NEEDED)},
    {"form": "fleet", "id": "fleet-more", "props": props(MORE)},
    {
        "form": "fleet",
        "id": "fleet-made",
        "props": props(NEEDED)
        | {"dataStack": {"stack": "data-plain"}, "secretArn": {"made": "secret-of-another"}},
    },
    *(
        {"form": "fleet", "id": f"refused-{number}", "props": props(NEEDED) | given}
        for number, (given, _) in enumerate(WRONG)
    ),
]


@functools.cache
def synthesized() -> tuple[Mapping[str, Any], str]:
    """All of STACKS by one run, and what it wrote to stderr."""
    node = obtain("node", functools.partial(find_node, js_directory=CDK_DIRECTORY))
    done = subprocess.run(
        [node, str(APP)],
        input=json.dumps(STACKS),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "NODE_PATH": str(CDK_DIRECTORY / "node_modules"),
            "NO_COLOR": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    stacks: Mapping[str, Any] = json.loads(done.stdout)
    return stacks, done.stderr


def put_in(part: Any, given: Mapping[str, Any]) -> Any:
    """`part` of a template with the values of these parameters in place of what refers to them."""
    if isinstance(part, list):
        return [put_in(each, given) for each in part]
    if not isinstance(part, dict):
        return part
    if part.keys() == {"Ref"} and part["Ref"] in given:
        return text(given[part["Ref"]])
    put = {key: put_in(each, given) for key, each in part.items()}
    if "Fn::Sub" in put:
        sub = put["Fn::Sub"]
        own = {} if isinstance(sub, str) else sub[1]
        pattern = "|".join(re.escape(name) for name in given if name not in own) or "(?!)"
        written = re.sub(
            rf"\$\{{({pattern})\}}",
            lambda match: text(given[match[1]]),
            sub if isinstance(sub, str) else sub[0],
        )
        put["Fn::Sub"] = written if isinstance(sub, str) else [written, own]
    return put


def canonical(part: Any, key: str = "") -> Any:
    """What CloudFormation takes `part` for, where it can be said in several ways."""
    if isinstance(part, dict):
        said = {name: canonical(each, name) for name, each in part.items()}
        match said:
            case {"Fn::GetAtt": str(name)}:
                return {"Fn::GetAtt": name.split(".", 1)}
            case {"Fn::Split": [str(separator), str(whole)]}:
                return whole.split(separator)
            case {"Fn::Select": [str(index), list(choice)]}:
                return choice[int(index)]
        return said
    if isinstance(part, list):
        members = [canonical(each) for each in part]
        # Their order says nothing.
        return sorted(members, key=str) if key in ("DependsOn", "Tags") else members
    if key == "DependsOn":
        return [part]
    return part if part is None else text(part)


@pytest.mark.parametrize(
    "stack, source, given",
    [
        ("data-plain", DATA, {}),
        ("data-more", DATA, OF_DATA),
        ("fleet-plain", TEMPLATE, NEEDED),
        ("fleet-more", TEMPLATE, MORE),
    ],
)
def test_a_cdk_stack_is_the_template_with_what_was_given_in_its_place(
    stack: str, source: Path, given: Mapping[str, Any]
) -> None:
    template = dict(synthesized()[0][stack]["template"])
    # What the CDK adds to every stack, to see that the account is ready for it.
    template["Parameters"] = dict(template["Parameters"])
    del template["Parameters"]["BootstrapVersion"]
    template["Rules"] = dict(template["Rules"])
    del template["Rules"]["CheckBootstrapVersion"]
    wanted = {key: put_in(each, given) for key, each in load(source).items()}
    wanted.setdefault("Rules", {})
    wanted["Parameters"] = {
        name: each for name, each in wanted["Parameters"].items() if name not in given
    }
    assert template.keys() == wanted.keys()
    for part, value in wanted.items():
        found, expected = canonical(template[part]), canonical(value)
        if isinstance(expected, dict):
            assert found.keys() == expected.keys(), part
            # One by one: the difference of two templates is too long to be read.
            for name in expected:
                assert found[name] == expected[name], (part, name)
        else:
            assert found == expected, part


def test_a_cdk_stack_takes_what_other_stacks_make_where_no_condition_goes_by_it() -> None:
    stack = synthesized()[0]["fleet-made"]
    assert stack["after"] == ["data-plain"]
    imports = list(values(stack["template"], "Fn::ImportValue"))
    assert "secret-of-another" in imports
    assert {"Fn::Sub": "data-plain-TopicArn"} in imports
    assert not {"SecretArn", "DataStack"} & set(values(stack["template"], "Ref"))


@pytest.mark.parametrize("number, why", [(number, why) for number, (_, why) in enumerate(WRONG)])
def test_a_cdk_stack_refuses_what_cloudformation_would(number: int, why: str) -> None:
    assert re.search(why, synthesized()[0][f"refused-{number}"]["error"])


def test_the_cdk_has_no_objection() -> None:
    # It judges what it synthesized by rules of its own, which some teams let fail.
    assert "CloudFormation" not in synthesized()[1]


# ---- Terraform


@pytest.fixture(scope="session")
def terraform() -> str:
    return obtain("terraform", find_terraform)


def run(terraform: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [terraform, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        # No settings of whoever runs the tests, and nobody asks whether there is a newer one.
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TF_CLI_CONFIG_FILE": "",
            "CHECKPOINT_DISABLE": "1",
        },
    )


def planned(
    terraform: str, directory: Path, form: str, given: Mapping[str, Any]
) -> subprocess.CompletedProcess[str]:
    """What a module plans that has the variables and nothing of AWS."""
    for name in ("variables.tf", "parameters.tf"):
        shutil.copy(TERRAFORM / form / name, directory)
    (directory / "outputs.tf").write_text('output "parameters" {\n  value = local.parameters\n}\n')
    variables = directory / "terraform.tfvars.json"
    variables.write_text(json.dumps({snake_case(name): value for name, value in given.items()}))
    done = run(terraform, directory, "plan", "-input=false", "-no-color", "-out=plan")
    return done if done.returncode else run(terraform, directory, "show", "-json", "plan")


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def test_modules_are_formatted_as_terraform_does(terraform: str) -> None:
    done = run(terraform, TERRAFORM, "fmt", "-check", "-diff", "-recursive", ".")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "form, given", [("data", {}), ("data", OF_DATA), ("fleet", NEEDED), ("fleet", MORE)]
)
def test_a_module_gives_the_stack_what_it_was_given_and_the_template_s_defaults(
    terraform: str, tmp_path: Path, form: str, given: Mapping[str, Any]
) -> None:
    done = planned(terraform, tmp_path, form, given)
    assert done.returncode == 0, done.stderr
    parameters = json.loads(done.stdout)["planned_values"]["outputs"]["parameters"]["value"]
    defaults = {
        name: str(each["Default"])
        for name, each in load(SOURCES[form])["Parameters"].items()
        if "Default" in each
    }
    assert parameters == defaults | {name: text(value) for name, value in given.items()}


def test_a_module_refuses_what_cloudformation_would(terraform: str, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "ArtifactBucket": "Not a bucket",
        "TopicShards": 3,
        "Processes": 257,
        "MinInstances": 0,
        "PrivateSubnetIds": ["subnet-1"],
    }
    done = planned(terraform, tmp_path, "fleet", NEEDED | wrong)
    assert done.returncode == 1
    for name in wrong:
        assert f"var.{snake_case(name)} is" in done.stderr, name
    assert "topic_shards must be one of 1, 2, 4, 8, 16." in done.stderr
    # All of them at once, and nothing else.
    assert done.stderr.count("Error: ") == len(wrong)
