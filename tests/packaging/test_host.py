"""What a code host runs is what a person runs: targets of the Makefile, on versions that are admitted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.packaging.test_supply import PROJECT, ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_of_the_makefile_with_no_more_rights_than_it_needs(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert runs
    assert {command.removeprefix("make ") for command in runs} <= TARGETS


def test_the_container_installs_what_is_pinned_and_starts_the_command() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "RUN pip install --no-cache-dir --constraint constraints.txt ." in lines
    (command,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', "\n".join(lines), re.M)
    assert command in PROJECT["scripts"]
