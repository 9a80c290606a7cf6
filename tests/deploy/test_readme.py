"""deploy/README.md: its commands and tables name what the templates and build.py have."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from deploy import build
from roomcast.cli.main import _parser
from roomcast.config import load as load_config
from tests.deploy.cloudformation import DATA, ROOT, load, references
from tests.deploy.test_template import evaluated
from tests.unit.test_docs import dead_links

PAGE: Final = ROOT / "deploy" / "README.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
TEMPLATE: Final = load()
KEPT: Final = load(DATA)
PARAMETERS: Final[dict[str, Any]] = TEMPLATE["Parameters"]
# Those without a language are for a shell.
BLOCKS: Final = [
    body
    for language, body in re.findall(r"^```(.*)\n((?:.*\n)*?)```$", TEXT, flags=re.MULTILINE)
    if not language
]
# One a line: continued lines are joined.
COMMANDS: Final = [
    line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()
]


def overridden(command: str) -> dict[str, str]:
    """The parameters that a deploy command gives."""
    _, _, given = command.partition("--parameter-overrides")
    return dict(re.findall(r"(?:^|\s)([A-Z]\w+)=(\S+)", given))


DEPLOYS: Final = [command for command in COMMANDS if "cloudformation deploy" in command]
# Of the data, and of what works on them.
OF_DATA: Final = [command for command in DEPLOYS if "deploy/data.yaml" in command]
OF_FLEET: Final = [command for command in DEPLOYS if "deploy/template.yaml" in command]


def table(head: str) -> dict[str, str]:
    """Parameter to default, as the table with this head has them."""
    _, _, after = TEXT.partition(f"\n| {head} | default | what |\n| --- | --- | --- |\n")
    found: dict[str, str] = {}
    for row in after.partition("\n\n")[0].splitlines():
        names, default, _ = (cell.strip() for cell in row.strip("|").split("|", 2))
        several = re.findall(r"`(\w+)`", names)
        defaults = re.findall(r"`([^`]*)`", default)
        for index, name in enumerate(several):
            same = (
                defaults[index]
                if len(defaults) == len(several)
                else defaults[0]
                if defaults
                else default
            )
            found[name] = same
    return found


def test_commands_give_parameters_that_there_are_and_values_that_they_take() -> None:
    assert len(OF_FLEET) > 3
    assert sorted([*OF_DATA, *OF_FLEET]) == sorted(DEPLOYS)
    for commands, parameters in ((OF_DATA, KEPT["Parameters"]), (OF_FLEET, PARAMETERS)):
        for name, value in (each for command in commands for each in overridden(command).items()):
            assert name in parameters, name
            if "$" not in value:
                allowed = parameters[name].get("AllowedValues")
                assert allowed is None or value in allowed
                assert re.fullmatch(parameters[name].get("AllowedPattern", ".*"), value)


def test_the_first_command_gives_everything_that_has_no_default() -> None:
    needed = {name for name, each in PARAMETERS.items() if "Default" not in each}
    built = {parameter for _, _, parameter in build.LAMBDAS}
    (tasks,) = (each for each in OF_FLEET if "Compute=fargate" in each and "SecretArn" in each)
    for command in (OF_FLEET[0], tasks):
        assert "$(cat dist/parameters)" in command
        assert needed == (built | overridden(command).keys()) & needed
    # What the template's rules want of each form; the release's key is among the built ones.
    of_tasks = {"Compute", "ImageDigest", "ImageRepository"}
    assert overridden(tasks).keys() - overridden(OF_FLEET[0]).keys() == of_tasks
    assert overridden(OF_FLEET[0]).keys() - overridden(tasks).keys() == {"ImageId"}
    assert all("Default" in each for each in KEPT["Parameters"].values())


def test_data_are_deployed_before_what_works_on_them_and_under_the_name_that_it_is_given() -> None:
    assert DEPLOYS[:2] == [OF_DATA[0], OF_FLEET[0]]
    stacks = {re.findall(r"--stack-name (\S+)", command)[0] for command in OF_DATA}
    assert stacks == {overridden(each)["DataStack"] for each in OF_FLEET if "SecretArn=" in each}
    assert {re.findall(r"--stack-name (\S+)", command)[0] for command in OF_FLEET} == {'"$STACK"'}


def test_the_first_deployment_can_be_rolled_back_and_is_protected_afterwards() -> None:
    # What refuses to be deleted would stay, and its names with it.
    for first, second, *_ in (OF_DATA, OF_FLEET):
        assert overridden(first)["DeletionProtection"] == "false"
        assert overridden(second) == {"DeletionProtection": "true"}
    protectable = {
        each["Type"]
        for each in [*TEMPLATE["Resources"].values(), *KEPT["Resources"].values()]
        if "DeletionProtection" in references(each)
    }
    # By hand, for who did it otherwise: a command for each type, and for each table.
    assert protectable == {"AWS::DynamoDB::Table", "AWS::ElasticLoadBalancingV2::LoadBalancer"}
    by_hand = [command for command in COMMANDS if "update-table" in command]
    assert {
        re.findall(r"--table-name (\S+)", command)[0] for command in by_hand
    } == tables_that_stay()
    assert all("--no-deletion-protection-enabled" in command for command in by_hand)
    (balancer,) = (command for command in COMMANDS if "modify-load-balancer-attributes" in command)
    (resource,) = re.findall(r"--logical-resource-id (\w+)", balancer)
    assert TEMPLATE["Resources"][resource]["Type"] == "AWS::ElasticLoadBalancingV2::LoadBalancer"
    assert re.findall(r"Key=([\w.]+),Value=false", balancer) == ["deletion_protection.enabled"]


def way_to_a_url() -> str:
    return TEXT.partition("\n## From an empty account")[2].partition("\n## ")[0]


def positions(part: str) -> list[int]:
    """Of the commands of that section that have `part` in them."""
    ours = [command for command in COMMANDS if command in way_to_a_url().replace("\\\n", " ")]
    return [number for number, command in enumerate(ours) if part in command]


def test_what_is_deployed_was_uploaded_and_commands_are_installed_before_they_are_used() -> None:
    (environment,), (install,) = positions("python3 -m venv"), positions("pip install")
    (configured,), (built,) = positions("cat > roomcast.toml"), positions("deploy/build.py")
    (uploaded,), (used,) = positions("s3 cp --recursive dist/s3"), positions("roomcast token")
    first, *_ = positions("cloudformation deploy")
    assert environment < install < configured < built < uploaded < first < used
    # A second build would write keys into dist/parameters that are in no bucket.
    assert way_to_a_url().count("python deploy/build.py") == 1


def test_the_options_that_it_begins_with_are_taken(tmp_path: Path) -> None:
    (content,) = re.findall(
        r"^cat > roomcast\.toml <<'END'\n(.*?)^END$", TEXT, re.MULTILINE | re.DOTALL
    )
    path = tmp_path / "roomcast.toml"
    path.write_text(content, encoding="utf-8")
    options = load_config(path, {}).channel.without_namespace
    assert (options.history_size, options.force_recovery) == (100, True)


def test_a_shell_reads_every_block() -> None:
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, timeout=50
        )
        assert (done.returncode, done.stderr) == (0, ""), block


def test_every_parameter_is_in_the_table_with_its_default() -> None:
    heads = {"parameter": PARAMETERS, "parameter of the data": KEPT["Parameters"]}
    for head, parameters in heads.items():
        assert table(head).keys() == parameters.keys()
    every = [
        (name, each, heads[head][name]) for head in heads for name, each in table(head).items()
    ]
    for name, default, parameter in every:
        has = parameter.get("Default")
        if has is None:
            assert default == "", name
        elif has == "":
            assert default in ("none", "", "a new VPC"), name
        else:
            assert default == str(has), name


def test_one_template_is_too_large_to_be_sent_inline_and_small_enough_for_a_bucket() -> None:
    size = (ROOT / "deploy" / "template.yaml").stat().st_size
    assert 51_200 < size < 1024 * 1024
    assert DATA.stat().st_size < 51_200
    for command in OF_FLEET:
        assert "--s3-bucket" in command
        assert "--template-file deploy/template.yaml" in command
        assert "--capabilities CAPABILITY_IAM" in command


def test_outputs_that_are_named_exist() -> None:
    named = set(re.findall(r"\boutput ([A-Z]\w+)", " ".join(COMMANDS)))
    named |= set(re.findall(r"`(\w+(?:Url|Name|GroupId))`", TEXT)) - PARAMETERS.keys()
    assert named
    assert named - TEMPLATE["Outputs"].keys() == set()


def test_builds_and_commands_are_called_as_they_are() -> None:
    builds = re.findall(r"python deploy/build\.py([^\n`]*)", TEXT)
    assert len(builds) >= 3
    for arguments in builds:
        build._parser().parse_args(arguments.split())
    (token,) = re.findall(r"\broomcast (token [^\n]*)", "\n".join(COMMANDS))
    _parser().parse_args(token.split())
    restores = re.findall(r"^roomcast (restore [^\n]*)", "\n".join(COMMANDS), re.MULTILINE)
    assert len(restores) == 2
    for restore in restores:
        _parser().parse_args(restore.split())


def test_the_key_s_policy_lets_in_who_uses_the_key_by_itself() -> None:
    (text,) = re.findall(
        r"^cat > key-policy\.json <<END\n(.*?)^END$", TEXT, re.MULTILINE | re.DOTALL
    )
    policy = json.loads(text.replace("$AWS_REGION", "eu-central-1").replace("$ACCOUNT", "1" * 12))
    services = {
        statement["Principal"]["Service"]: set(statement["Action"])
        for statement in policy["Statement"]
        if "Service" in statement["Principal"]
    }
    assert services.keys() == {"sns.amazonaws.com", "logs.eu-central-1.amazonaws.com"}
    assert services["sns.amazonaws.com"] == {"kms:Decrypt", "kms:GenerateDataKey"}
    # Of the names that log groups have.
    groups = [
        each["Properties"]["LogGroupName"]["Fn::Sub"]
        for each in TEMPLATE["Resources"].values()
        if each["Type"] == "AWS::Logs::LogGroup"
    ]
    assert groups
    assert all(name.startswith("/roomcast/${AWS::StackName}/") for name in groups)
    assert ":log-group:/roomcast/$STACK/*" in text


def test_whoever_restores_is_told_what_it_takes() -> None:
    source = (ROOT / "service" / "roomcast" / "aws" / "restoring.py").read_text(encoding="utf-8")
    called = {
        "".join(word.title() for word in name.split("_"))
        for name in re.findall(r"self\._dynamodb\.(\w+)\(", source)
    }
    assert "RestoreTableFromBackup" in called
    told = TEXT.partition("With rights of yours")[2].partition("what a restore does")[0]
    assert set(re.findall(r"`([A-Z]\w+)`", told)) == called


def tables_that_stay() -> set[str]:
    prefix = KEPT["Parameters"]["TablePrefix"]["Default"]
    return {
        each["Properties"]["TableName"]["Fn::Sub"].replace("${TablePrefix}", prefix)
        for each in KEPT["Resources"].values()
        if each["Type"] == "AWS::DynamoDB::Table"
        and each["DeletionPolicy"] == "RetainExceptOnCreate"
    }


def test_names_of_what_stays_are_the_template_s() -> None:
    deleted = {command.split()[-1] for command in COMMANDS if "delete-table" in command}
    assert deleted
    assert deleted == tables_that_stay()


@pytest.mark.parametrize("compute, nodes", [("ec2", "instances"), ("fargate", "tasks")])
def test_costs_count_what_the_template_has(compute: str, nodes: str) -> None:
    given = {"Compute": compute, "EndpointSecurityGroupId": ""}
    made = evaluated(TEMPLATE, "chat", **given).resources()
    resources = [each for name, each in TEMPLATE["Resources"].items() if name in made]
    interfaces = [
        each
        for each in resources
        if each["Type"] == "AWS::EC2::VPCEndpoint"
        and each["Properties"]["VpcEndpointType"] == "Interface"
    ]
    row = re.search(
        rf"interface endpoints, with {nodes}: (\d+) services × 2 zones × ([\d.]+) \| ([\d.]+)",
        TEXT,
    )
    assert row
    assert int(row[1]) == len(interfaces)
    assert float(row[3]) == pytest.approx(len(interfaces) * 2 * float(row[2]))
    alarms = [each for each in resources if each["Type"] == "AWS::CloudWatch::Alarm"]
    assert f"({len(alarms)} alarms" in TEXT
    for interface in interfaces:
        service = interface["Properties"]["ServiceName"]["Fn::Sub"].partition("Region}.")[2]
        assert f"`{service}`" in TEXT


def test_a_move_to_tasks_is_not_braked_by_an_alarm_that_it_sets_off() -> None:
    # What the alarm looks at has nobody who is healthy while the first task starts.
    target = TEMPLATE["Resources"]["NoHealthyNodeAlarm"]["Properties"]["Dimensions"][1]["Value"]
    assert "TaskTargetGroup" in references(target)
    move, after = [overridden(each) for each in COMMANDS if "TasksNow=" in each]
    assert (move["Compute"], move["RolloutBrake"]) == ("fargate", "false")
    assert after == {"TasksNow": "0", "RolloutBrake": "true"}


def test_links_lead_somewhere() -> None:
    assert dead_links(PAGE) == []
