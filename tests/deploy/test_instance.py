"""What makes an instance a node: user data, install.sh and the unit, run for real in a directory,
around commands of a test.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.build import INSTANCE, tar_bytes
from deploy.instance.secret_env import WrongSecret, environment_file
from roomcast.cli.main import _parser
from roomcast.config import load as load_config
from roomcast.serve import supervisor
from tests.deploy.cloudformation import load, sub_names
from tests.deploy.machine import PRINTED, Machine, as_a_shell_reads, fresh_machine, settings

TEMPLATE: Final = load()
LAUNCH: Final = TEMPLATE["Resources"]["LaunchTemplate"]["Properties"]["LaunchTemplateData"]
TEXT, OWN = LAUNCH["UserData"]["Fn::Base64"]["Fn::Sub"]
# EC2's bound on user data before they are encoded.
USER_DATA_BYTES_MAX: Final = 16 * 1024
UNIT: Final = (INSTANCE / "roomcast.service").read_text(encoding="utf-8")
TOPIC: Final = "arn:aws:sns:eu-central-1:123456789012:roomcast"
KEY_ARN: Final = "arn:aws:kms:eu-central-1:123456789012:key/1234-abcd"
SECRET: Final = {
    "ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY": 'a"b\\c$d`e f' + "0" * 32,
    "ROOMCAST_HTTP_API_KEY": "k" * 32,
}
CONFIG: Final = b'[channel.without_namespace]\nhistory_size = 10\nhistory_ttl = "5m"\n'


def user_data(given: Mapping[str, str]) -> str:
    """As CloudFormation would write it."""
    own = {name: str(TEMPLATE["Mappings"][m][a][b]) for name, (m, a, b) in own_maps().items()}
    values = {**own, **given}
    text = re.sub(r"\$\{([A-Za-z0-9:]+)\}", lambda match: values[match[1]], TEXT)
    return text.replace("${!", "${")


def own_maps() -> dict[str, Any]:
    return {name: value["Fn::FindInMap"] for name, value in OWN.items() if "Fn::FindInMap" in value}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "secret").write_text(json.dumps(SECRET), encoding="utf-8")
    # s3 cp --only-show-errors --region REGION s3://BUCKET/KEY FILE
    return fresh_machine(
        tmp_path,
        f"""case "$1" in
s3) cp "{tmp_path}/${{6#s3://}}" "$7" ;;
logs)
  if [ -e "{tmp_path}/logs fail" ]; then exit 254; fi
  if [ "$2" = put-log-events ]; then cp "${{10#file://}}" {tmp_path}/said; fi ;;
autoscaling) ;;
*) cat {tmp_path}/secret ;;
esac""",
    )


def put_artifacts(machine: Machine, *, config: bool = False) -> dict[str, str]:
    """Parameters whose objects are in the bucket."""
    files = {path.name: path.read_bytes() for path in INSTANCE.iterdir() if path.is_file()}
    release = tar_bytes(files | {"wheels/roomcast.whl": b""})
    keys = {"ReleaseKey": ("release", ".tar", release), "ConfigKey": ("roomcast", ".toml", CONFIG)}
    parameters = {
        "AWS::Region": "eu-central-1",
        "AWS::StackName": "chat",
        "ArtifactBucket": "bucket",
        "ConfigKey": "",
        "InstanceLogs": "/roomcast/chat/instances",
        "KmsKeyArn": KEY_ARN,
        "LogGeneration": "0",
        "Processes": "2",
        "QueuePrefix": "our-",
        "SecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:roomcast-AbCdEf",
        "TablePrefix": "chat-",
        "TopicArn": TOPIC,
        "TopicShards": "4",
        "TrustedProxies": "10.0.2.0/24,10.0.3.0/24",
    }
    for parameter, (stem, suffix, content) in keys.items():
        key = f"builds-1/{stem}-{hashlib.sha256(content).hexdigest()}{suffix}"
        path = machine.home / "bucket" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if parameter == "ReleaseKey" or config:
            parameters[parameter] = key
    return parameters


def test_a_fresh_instance_becomes_nodes(machine: Machine) -> None:
    done = machine.boot(user_data(put_artifacts(machine)))
    assert (done.returncode, done.stderr) == (0, "")
    etc = machine.root / "etc"
    calls = machine.calls()
    assert [call for call in calls if "roomcast.service" in call and "systemctl" in call] == [
        "systemctl enable --now roomcast.service"
    ]
    assert (etc / "systemd" / "system" / "roomcast.service").read_text(encoding="utf-8") == UNIT
    # What the nodes find in their environment is a configuration that they take.
    environ = settings(etc / "roomcast" / "settings.env")
    secret = as_a_shell_reads(etc / "roomcast" / "secret.env")
    assert secret == SECRET
    ours = {name: value for name, value in environ.items() if name.startswith("ROOMCAST_")} | secret
    config = load_config(None, ours)
    assert config.aws.topic_arn == TOPIC
    assert (config.aws.table_prefix, config.aws.queue_prefix) == ("chat-", "our-chat_")
    assert config.aws.queue_kms_key_id == KEY_ARN
    assert config.aws.autoscaling_group == "chat-fleet"
    assert (config.aws.launch_hook, config.aws.terminate_hook) == (
        "roomcast-launch",
        "roomcast-terminate",
    )
    assert config.aws.metrics_namespace == "roomcast"
    assert config.node.processes == 2
    assert config.client.trusted_proxies == ("10.0.2.0/24", "10.0.3.0/24")
    assert config.client.token.hmac_secret_key == SECRET["ROOMCAST_CLIENT_TOKEN_HMAC_SECRET_KEY"]
    assert "ROOMCAST_CONFIG" not in environ


def test_the_secret_is_in_one_file_that_only_root_reads(machine: Machine) -> None:
    done = machine.boot(user_data(put_artifacts(machine)))
    assert done.returncode == 0
    file = machine.root / "etc" / "roomcast" / "secret.env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    others = [path for path in machine.root.rglob("*") if path.is_file() and path != file]
    for value in SECRET.values():
        assert value not in done.stdout + done.stderr + "\n".join(machine.calls())
        assert not [path for path in others if value in path.read_text(encoding="utf-8")]


def test_logs_are_sent_before_anything_else_can_fail(machine: Machine) -> None:
    (machine.home / "secret").write_text("{}", encoding="utf-8")
    done = machine.boot(user_data(put_artifacts(machine)))
    assert done.returncode != 0
    assert "the secret is not a JSON object" in done.stderr
    calls = machine.calls()
    assert any(call.startswith("amazon-cloudwatch-agent-ctl -a fetch-config") for call in calls)
    assert not [call for call in calls if "roomcast.service" in call]
    agent = json.loads(
        (machine.root / "opt/aws/amazon-cloudwatch-agent/etc/roomcast.json").read_text(
            encoding="utf-8"
        )
    )
    files = agent["logs"]["logs_collected"]["files"]["collect_list"]
    assert {each["log_group_name"] for each in files} == {"/roomcast/chat/instances"}


def test_python_packages_come_from_the_release_alone(machine: Machine) -> None:
    assert machine.boot(user_data(put_artifacts(machine))).returncode == 0
    (pip,) = (call for call in machine.calls() if call.startswith("venv -m pip install"))
    assert "--no-index --find-links wheels roomcast" in pip
    (dnf,) = (call for call in machine.calls() if call.startswith("dnf"))
    assert "python3.12" in dnf


def test_a_configuration_file_is_fetched_and_used(machine: Machine) -> None:
    assert machine.boot(user_data(put_artifacts(machine, config=True))).returncode == 0
    etc = machine.root / "etc" / "roomcast"
    assert (etc / "roomcast.toml").read_bytes() == CONFIG
    assert settings(etc / "settings.env")["ROOMCAST_CONFIG"] == str(etc / "roomcast.toml")
    assert stat.S_IMODE((etc / "roomcast.toml").stat().st_mode) == 0o640


def test_an_option_of_the_file_is_not_overridden_where_the_network_is_not_known(
    machine: Machine,
) -> None:
    assert machine.boot(user_data(put_artifacts(machine) | {"TrustedProxies": ""})).returncode == 0
    environ = settings(machine.root / "etc" / "roomcast" / "settings.env")
    assert "ROOMCAST_CLIENT_TRUSTED_PROXIES" not in environ


def test_a_boot_that_fails_is_told_at_once_and_says_why(machine: Machine) -> None:
    parameters = put_artifacts(machine)
    (machine.home / "bucket" / parameters["ReleaseKey"]).unlink()
    done = machine.boot(user_data(parameters))
    assert done.returncode not in (0, 127)
    made, said, told = (call for call in machine.calls() if not call.startswith("aws s3"))
    where = "--region eu-central-1 --log-group-name /roomcast/chat/instances"
    stream = f"{where} --log-stream-name i-0123456789abcdef0/failed"
    assert made == f"aws logs create-log-stream {stream}"
    assert said.startswith(f"aws logs put-log-events {stream} --log-events file:///")
    (event,) = json.loads((machine.home / "said").read_text(encoding="utf-8"))
    assert event["message"] == PRINTED
    assert abs(event["timestamp"] / 1000 - time.time()) < 600
    assert told == (
        "aws autoscaling complete-lifecycle-action --region eu-central-1"
        " --instance-id i-0123456789abcdef0 --auto-scaling-group-name chat-fleet"
        " --lifecycle-hook-name roomcast-launch --lifecycle-action-result ABANDON"
    )


def test_a_boot_that_fails_gives_the_hook_up_whatever_else_fails(machine: Machine) -> None:
    parameters = put_artifacts(machine)
    (machine.home / "bucket" / parameters["ReleaseKey"]).unlink()
    (machine.home / "logs fail").touch()
    assert machine.boot(user_data(parameters)).returncode != 0
    assert machine.calls()[-1].startswith("aws autoscaling complete-lifecycle-action")


def test_a_boot_that_works_gives_nothing_up(machine: Machine) -> None:
    assert machine.boot(user_data(put_artifacts(machine))).returncode == 0
    assert not [call for call in machine.calls() if "lifecycle" in call or "aws logs" in call]


@pytest.mark.parametrize("parameter", ["ReleaseKey", "ConfigKey"])
def test_what_is_not_what_its_key_says_is_not_installed(machine: Machine, parameter: str) -> None:
    parameters = put_artifacts(machine, config=True)
    with (machine.home / "bucket" / parameters[parameter]).open("ab") as file:
        file.write(b"\n")
    done = machine.boot(user_data(parameters))
    assert done.returncode != 0
    assert "checksum" in done.stderr
    assert not [call for call in machine.calls() if not call.startswith("aws")]


def test_nothing_is_left_of_the_installation(machine: Machine) -> None:
    assert machine.boot(user_data(put_artifacts(machine))).returncode == 0
    assert not (machine.home / "work").exists()
    (machine.home / "secret").write_text("{}", encoding="utf-8")
    assert machine.boot(user_data(put_artifacts(machine))).returncode != 0
    assert not (machine.home / "work").exists()


def test_user_data_are_small_and_say_nothing_secret() -> None:
    assert len(TEXT) < USER_DATA_BYTES_MAX / 2
    assert sub_names([TEXT, OWN]) == {
        "AWS::Region",
        "AWS::StackName",
        "ArtifactBucket",
        "ConfigKey",
        "InstanceLogs",
        "KmsKeyArn",
        "LogGeneration",
        "Processes",
        "QueuePrefix",
        "ReleaseKey",
        "SecretArn",
        "TopicShards",
    }
    assert not [name for name, each in TEMPLATE["Parameters"].items() if "NoEcho" in each]


# ---- the secret


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "not a JSON object"),
        ('{"PATH": "/tmp"}', "no variable of roomcast"),
        ('{"ROOMCAST_X\\nPATH": "/tmp"}', "no variable of roomcast"),
        ('{"ROOMCAST_HTTP_API_KEY": 1}', "not text"),
        ('{"ROOMCAST_HTTP_API_KEY": "s3cret\\nPATH=/tmp"}', "not text"),
    ],
)
def test_a_wrong_secret_is_refused_and_not_told(text: str, complaint: str) -> None:
    with pytest.raises(WrongSecret, match=complaint) as raised:
        environment_file(text)
    assert "s3cret" not in str(raised.value)


# ---- the unit


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, flags=re.MULTILINE)


def test_the_unit_runs_a_command_that_there_is() -> None:
    (command,) = unit_values("ExecStart")
    program, *arguments = command.split()
    assert program == "/opt/roomcast/bin/roomcast"
    parsed = _parser().parse_args(arguments)
    assert parsed.port == 8000
    # An insecure configuration would then listen on loopback only.
    assert parsed.host is None


def test_the_unit_reads_what_was_written() -> None:
    script = (INSTANCE / "install.sh").read_text(encoding="utf-8")
    for path in unit_values("EnvironmentFile"):
        assert f'"$root{path}"' in script
    (log,) = unit_values("StandardOutput")
    directory = log.removeprefix("append:").rpartition("/")[0]
    assert f'"$root{directory}"' in script
    agent = json.loads((INSTANCE / "cloudwatch-agent.json").read_text(encoding="utf-8"))
    sent = {each["file_path"] for each in agent["logs"]["logs_collected"]["files"]["collect_list"]}
    assert log.removeprefix("append:") in sent


def test_the_unit_drains_and_does_not_come_back_when_its_machine_ends() -> None:
    assert unit_values("KillSignal") == ["SIGTERM"]
    # The signal is all that a drain needs: docs/decisions/0032-sigterm-drains.md.
    assert unit_values("ExecStop") == []
    assert unit_values("Restart") == ["on-failure"]
    # One of several processes: its supervisor starts it again, and the others serve on.
    assert unit_values("OOMPolicy") == ["continue"]
    # Wrong configuration: service/roomcast/cli/main.py.
    assert unit_values("RestartPreventExitStatus") == ["2"]


def test_systemd_starts_a_process_again_that_hangs() -> None:
    # The process or the supervisor, whose environment the others have as well.
    assert unit_values("NotifyAccess") == ["main"]
    (watchdog_s,) = map(float, unit_values("WatchdogSec"))
    # Of several processes, the supervisor has noticed one that hangs by then.
    assert 0 < supervisor.HUNG_S < watchdog_s


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    # The program is not installed here.
    unit = tmp_path / "roomcast.service"
    unit.write_text(
        UNIT.replace("/opt/roomcast/bin/roomcast", shutil.which("true") or ""), encoding="utf-8"
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
