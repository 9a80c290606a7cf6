"""A directory in which user data and install.sh run for real,
among commands that only note how they were called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["PRINTED", "Machine", "as_a_shell_reads", "fresh_machine", "put_command", "settings"]

_BOOT_S: Final = 50
# What cloud-init has kept of what was printed.
PRINTED: Final = 'roomcast install: step "packages"\n'


@dataclass(frozen=True)
class Machine:
    """A directory for what is installed, and commands that note how they were called."""

    home: Path

    @property
    def root(self) -> Path:
        return self.home / "root"

    def calls(self) -> list[str]:
        """Of the commands that the test stands in for, in order."""
        return (self.home / "calls").read_text(encoding="utf-8").splitlines()

    def boot(self, script: str) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}",
            "ROOMCAST_INSTALL_ROOT": str(self.root),
        }
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.home,
            env=environ,
            capture_output=True,
            text=True,
            timeout=_BOOT_S,
        )


def put_command(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def fresh_machine(home: Path, aws: str) -> Machine:
    """Everything that an instance of Amazon Linux has and the scripts use.
    `aws`: the body of the command of that name.
    """
    commands = home / "bin"
    commands.mkdir()
    agent = home / "root" / "opt" / "aws" / "amazon-cloudwatch-agent" / "bin"
    agent.mkdir(parents=True)
    note = f'echo "$(basename "$0") $*" >> {home}/calls'
    for name in ("dnf", "systemctl", "useradd"):
        put_command(commands, name, note)
    put_command(agent, "amazon-cloudwatch-agent-ctl", note)
    put_command(commands, "id", "exit 1")
    put_command(commands, "mktemp", f"mkdir {home}/work && echo {home}/work")
    put_command(commands, "aws", f"{note}\n{aws}")
    # What cloud-init keeps, and the instance's metadata.
    put_command(
        commands,
        "tail",
        f"""[ "$*" = '-c 200000 /var/log/cloud-init-output.log' ] && printf '%s' '{PRINTED}'""",
    )
    put_command(
        commands,
        "curl",
        """case "${@: -1}" in
*/api/token) [[ "$*" == *'-X PUT'*ttl* ]] && echo a-token ;;
*/instance-id) [[ "$*" == *'aws-ec2-metadata-token: a-token'* ]] && echo i-0123456789abcdef0 ;;
esac""",
    )
    # There is no group of that name here.
    real_install = shutil.which("install")
    put_command(
        commands,
        "install",
        f"""{note}
arguments=()
while (($#)); do if [ "$1" = -g ]; then shift 2; else arguments+=("$1"); shift; fi; done
exec {real_install} "${{arguments[@]}}\"""",
    )
    put_command(
        commands,
        "python3.12",
        f"""if [ "$1 $2" = '-m venv' ]; then
  mkdir -p "$3/bin"
  printf '#!/bin/bash\\necho "venv $*" >> {home}/calls\\n' > "$3/bin/python"
  chmod +x "$3/bin/python"
else exec {sys.executable} "$@"; fi""",
    )
    return Machine(home)


def settings(path: Path) -> dict[str, str]:
    """What systemd reads in a file without quotes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def as_a_shell_reads(path: Path) -> dict[str, str]:
    """Between double quotes systemd takes the same characters as special as a shell."""
    script = f"set -a; . {path}; env -0"
    done = subprocess.run(
        ["env", "-i", "bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=_BOOT_S,
    )
    return dict(
        entry.split("=", 1) for entry in done.stdout.split("\0") if entry.startswith("ROOMCAST_")
    )
