"""deploy/rehearsal.sh: its plan, a whole day, and days that go wrong, on stubs of what it calls."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from deploy import build
from roomcast.cli.main import _parser
from tests.deploy.cloudformation import DATA, ROOT, TEMPLATE, load

# It says nothing about the interpreter.
pytestmark = pytest.mark.fleet

SCRIPT: Final = ROOT / "deploy" / "rehearsal.sh"
STUB: Final = ROOT / "tests" / "deploy" / "rehearsal_stub.sh"
TOOLS: Final = ("aws", "curl", "docker", "openssl", "python3", "roomcast", "sleep", "timeout")
COMMAND_S: Final = 50
PREFIX: Final = "trial"
FORMS: Final = pytest.mark.parametrize("form", ["ec2", "fargate"])
STEPS: Final = {
    "ec2": [
        "Tools, account, region",
        "Account",
        "Names",
        "Build",
        "Secret and certificate",
        "Data",
        "Fleet",
        "Doctor",
        "A publication",
        "Load",
        "Kill a node",
        "Roll",
        "Restore",
        "Remove",
    ]
}
STEPS["fargate"] = [*STEPS["ec2"][:5], "Container image", *STEPS["ec2"][5:]]
# What was in the account before, and stays.
BEFORE: Final = {"stack other", "table other-channels", "bucket other", "secret other"}


@dataclass(frozen=True, slots=True)
class Account:
    """What the stubs have and were called with, and how to run something on them."""

    directory: Path

    def run(
        self, *command: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={
                "PATH": f"{self.directory / 'bin'}:/usr/local/bin:/usr/bin:/bin",
                "STUB": str(self.directory),
                "STUB_PYTHON": sys.executable,
                "AWS_REGION": "eu-central-1",
                # Not the nodes' business.
                "ROOMCAST_AWS_TABLE_PREFIX": "of-somebody",
            }
            | dict(environ or {}),
        )

    def rehearse(
        self, form: str, *options: str, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        given = ("--prefix", PREFIX, "--compute", form, "--report", "report.md", *options)
        return self.run(str(SCRIPT), *given, environ=environ)

    @property
    def report(self) -> str:
        return (self.directory / "report.md").read_text(encoding="utf-8")

    @property
    def things(self) -> set[str]:
        return {path.name for path in (self.directory / "things").iterdir()}

    @property
    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@dataclass(frozen=True, slots=True)
class Day:
    """What was planned for one, and the account when it was over."""

    form: str
    account: Account
    plan: str


def new_account(directory: Path) -> Account:
    for name in ("bin", "things"):
        (directory / name).mkdir()
    for tool in TOOLS:
        (directory / "bin" / tool).symlink_to(STUB)
    for thing in BEFORE:
        (directory / "things" / thing).touch()
    return Account(directory)


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return new_account(tmp_path)


def titles(text: str) -> list[str]:
    return re.findall(r"^## \d+\. (.*)$", text, re.MULTILINE)


@FORMS
def test_the_plan_has_every_step_with_what_must_be_seen_and_calls_nothing(
    account: Account, form: str
) -> None:
    done = account.rehearse(form, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert titles(done.stdout) == STEPS[form]
    steps = done.stdout.split("\n## ")[1:]
    for step in steps:
        assert "\nMust be seen: " in step
        # Something to be typed.
        assert "\n    $ " in step
    assert (account.calls, account.things) == ([], BEFORE)
    assert not (account.directory / "report.md").exists()


@pytest.fixture(scope="module", params=["ec2", "fargate"])
def day(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Day:
    """On which all goes well."""
    account = new_account(tmp_path_factory.mktemp("day"))
    plan = account.rehearse(request.param, "--dry-run").stdout
    done = account.rehearse(request.param, "--yes", STUB_BUILT="ReleaseKey=stub\n")
    assert (done.returncode, done.stderr) == (0, "")
    return Day(request.param, account, plan)


def test_a_day_on_which_all_goes_well_leaves_a_report_and_nothing_else(day: Day) -> None:
    account = day.account
    assert titles(account.report) == STEPS[day.form]
    assert account.report.count("\n**ok**, ") == len(STEPS[day.form])
    assert "## All is well" in account.report
    # It made a good deal, and all of that is gone.
    assert len([call for call in account.calls if "cloudformation deploy" in call]) >= 4
    assert account.things == BEFORE
    assert not (account.directory / "certificate").exists()


def test_what_is_sent_on_has_no_account_no_address_and_no_key(day: Day) -> None:
    account = day.account
    keys = re.findall(r'"(\d{64})"', (account.directory / "secret").read_text(encoding="utf-8"))
    assert len(keys) == 2
    for private in ("123456789012", "203.0.113.7", *keys):
        assert private not in account.report
    # Nor has a command line a key, which others on the machine see.
    assert not any(key in call for key in keys for call in account.calls)


def test_the_plan_is_what_is_done(day: Day) -> None:
    planned, done = (
        re.findall(r"^    \$ (.*)$", each, re.MULTILINE) for each in (day.plan, day.account.report)
    )
    # What is only known by then stands between < and >.
    for before, after in zip(planned, done, strict=True):
        words = re.sub(r"'?<[^>]*>'?", " ", before).split()
        assert [word for word in words if word not in after] == [], (before, after)


def test_parameters_that_there_are_are_given_and_all_that_are_needed(day: Day) -> None:
    first: dict[str, set[str]] = {}
    for call in day.account.calls:
        if "cloudformation deploy" not in call:
            continue
        given = set(re.findall(r" ([A-Z]\w+)=", call.partition("--parameter-overrides")[2]))
        path = DATA if "deploy/data.yaml" in call else TEMPLATE
        assert given <= load(path)["Parameters"].keys()
        first.setdefault(path.name, given)
    for path in (DATA, TEMPLATE):
        parameters = load(path)["Parameters"]
        required = {name for name, each in parameters.items() if "Default" not in each}
        assert required <= first[path.name]
    needed = {"ec2": {"ReleaseKey", "ImageId"}, "fargate": {"ImageDigest", "ImageRepository"}}
    assert needed[day.form] <= first[TEMPLATE.name]


def test_commands_are_called_as_they_are_and_outputs_that_there_are(day: Day) -> None:
    ours = {call.split()[1] for call in day.account.calls if call.startswith("roomcast ")}
    assert ours == {"--version", "bench", "doctor", "history", "nodes", "publish", "restore"}
    shown = re.findall(r"timeout \d+ roomcast (.*)$", day.account.report, re.MULTILINE)
    assert shown
    for line in shown:
        _parser().parse_args(shlex.split(line))
    for line in re.findall(r"python3 deploy/build\.py (.*)$", day.account.report, re.MULTILINE):
        build._parser().parse_args(shlex.split(line))
    outputs = load()["Outputs"].keys() | load(DATA)["Outputs"].keys()
    asked = re.findall(r"OutputKey=='\\''(\w+)'", day.account.report)
    assert len(asked) >= 4
    assert set(asked) <= outputs


@pytest.mark.parametrize(
    "form, fails, title",
    [
        ("ec2", "aws sts", "Tools, account, region"),
        ("fargate", "roomcast doctor --account", "Account"),
        ("fargate", "docker buildx", "Container image"),
        ("ec2", "deploy --no-fail-on-empty-changeset --stack-name trial ", "Fleet"),
        ("ec2", "deploy --stack-name trial ", "Roll"),
        ("ec2", "DataStack=trial-data-2", "Restore"),
        ("ec2", "delete-table --table-name trial-channels", "Remove"),
    ],
)
def test_a_step_that_fails_is_named_and_what_was_made_can_be_removed(
    account: Account, form: str, fails: str, title: str
) -> None:
    done = account.rehearse(form, "--yes", STUB_FAILS=fails)
    assert done.returncode == 1
    number = STEPS[form].index(title) + 1
    (line, place) = done.stderr.splitlines()
    assert line.startswith(f"rehearsal: step {number}, {title}: ")
    assert place.endswith("/report.md")
    # In the report as well, with what the command said, and nothing after it.
    assert titles(account.report) == STEPS[form][:number]
    assert f"**FAILED** in step {number}, {title}: " in account.report
    assert account.report.count("\n**ok**, ") == number - 1
    assert "    | refused: ACCOUNT may not" in account.report
    if title == "Fleet":
        assert "    | StreamLambda\tno rights" in account.report
    # What it says how to remove is all that it made, and can be removed in that order.
    _, _, after = done.stdout.partition("To remove it, the last first:\n")
    removal = "\n".join(line.strip() for line in after.splitlines())
    if account.things != BEFORE:
        assert removal
    for command in filter(None, removal.splitlines()):
        # Half of what a step makes may not be there yet.
        told = account.run("bash", "-c", command)
        assert told.returncode == 0 or "No such file" in told.stderr, (command, told.stderr)
    assert account.things == BEFORE
    assert not (account.directory / "certificate").exists()


@pytest.mark.parametrize(
    "taken", [f"stack {PREFIX}-data", f"table {PREFIX}-channels", f"secret {PREFIX}"]
)
def test_what_is_there_already_is_left_alone(account: Account, taken: str) -> None:
    (account.directory / "things" / taken).touch()
    done = account.rehearse("ec2", "--yes")
    assert done.returncode == 1
    assert f"there is a {taken} already" in done.stderr
    assert account.things == BEFORE | {taken}
    assert not any(
        re.search(" (create|deploy|delete|mb|rb|import)", call) for call in account.calls
    )


def test_nothing_is_made_unless_somebody_agrees(account: Account) -> None:
    done = account.rehearse("ec2")
    assert done.returncode == 1
    assert "nobody to ask; --yes goes on without" in done.stderr
    assert account.things == BEFORE


def test_what_is_kept_is_listed(account: Account) -> None:
    done = account.rehearse("ec2", "--yes", "--keep")
    assert done.returncode == 0
    assert {f"stack {PREFIX}", f"stack {PREFIX}-data", f"stack {PREFIX}-data-2"} <= account.things
    assert f"aws cloudformation delete-stack --stack-name {PREFIX}\n" in account.report


def test_a_roll_that_refuses_requests_is_seen(account: Account) -> None:
    # Answered are those before: when the fleet is there, and after the loss of a node.
    (account.directory / "bin" / "curl").unlink()
    flaky = account.directory / "bin" / "curl"
    flaky.write_text(
        "#!/bin/bash\n"
        'echo >>"$STUB/asked"\n'
        "case $* in *checkip*) echo 203.0.113.7; exit ;; esac\n"
        '[[ $(wc -l <"$STUB/asked") -le 3 ]] && printf 200 || printf 503\n'
    )
    flaky.chmod(0o755)
    done = account.rehearse("ec2", "--yes")
    assert done.returncode == 1
    assert re.match(r"rehearsal: step 12, Roll: (\d+) of \1 publications failed", done.stderr)


@pytest.mark.parametrize("ends", ["UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"])
def test_an_update_that_takes_longer_than_the_cli_looks_is_waited_for(
    account: Account, ends: str
) -> None:
    (account.directory / "real").mkdir()
    aws = account.directory / "bin" / "aws"
    aws.rename(account.directory / "real" / "aws")
    (account.directory / "standings").write_text(
        f"UPDATE_IN_PROGRESS\nUPDATE_IN_PROGRESS\n{ends}\n"
    )
    aws.write_text(
        "#!/bin/bash\n"
        'if [[ "$* " == *" deploy --stack-name trial "* ]]; then\n'
        '  touch "$STUB/rolled"; "$STUB/real/aws" "$@"; exit 255\n'
        "fi\n"
        '[[ -e $STUB/rolled && $* == *StackStatus* ]] || exec "$STUB/real/aws" "$@"\n'
        'head -n 1 "$STUB/standings"\n'
        '[[ $(wc -l <"$STUB/standings") -eq 1 ]] || sed -i 1d "$STUB/standings"\n'
    )
    aws.chmod(0o755)
    done = account.rehearse("ec2", "--yes")
    if ends == "UPDATE_COMPLETE":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert "step 12, Roll: the update ended as UPDATE_ROLLBACK_COMPLETE" in done.stderr


def test_wrong_usage_is_told(account: Account) -> None:
    for options in (["--compute", "ec3"], ["--arch"], ["--prefix", "Not-A-Name"], ["--unknown"]):
        done = account.run(str(SCRIPT), *options)
        assert done.returncode == 2
        assert done.stderr.startswith("rehearsal: ")
    assert account.calls == []


def test_it_is_there_to_be_run() -> None:
    assert os.access(SCRIPT, os.X_OK)
