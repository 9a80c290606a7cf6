"""docs/operations.md: a section for every alarm of the template, and for nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def alarms() -> set[str]:
    """Names without the stack's."""
    template = (ROOT / "deploy/template.yaml").read_text(encoding="utf-8")
    return set(re.findall(r"AlarmName: !Sub \$\{AWS::StackName\}-(\w+)", template))


def sections() -> list[str]:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    part = text.partition("\n## Alarms\n")[2].partition("\n## ")[0]
    return re.findall(r"^### (\w+)$", part, re.MULTILINE)


def test_every_alarm_has_its_section_and_no_other_thing_has() -> None:
    assert alarms(), "the template has alarms"
    assert sorted(sections()) == sorted(alarms())


def test_sections_refer_to_sections_that_are_there() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    known = {name.lower() for name in sections()}
    referred = set(re.findall(r"\]\(#(\w+)\)", text))
    assert referred
    assert referred <= known
