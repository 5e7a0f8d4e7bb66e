"""What a run writes down about itself can be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dkel_lightning.runtime import provenance


@pytest.mark.parametrize(
    ("program", "typed"), [("/venv/lib/dkel_lightning/__main__.py", "dkel"), ("/venv/bin/dkel", "dkel")]
)
def test_the_command_can_be_typed_again(program: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "seed=3", "name=two words"])
    assert provenance.collect(torch.device("cpu"))["command"] == f"{typed} seed=3 'name=two words'"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_asking_git_writes_nothing_so_that_it_takes_no_lock_of_the_index(tmp_path: Path) -> None:
    file, index = tmp_path / "file", tmp_path / ".git" / "index"
    file.touch()
    for command in (["init"], ["add", "file"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    os.utime(file, (1, 1))  # git would note the new time
    before = index.read_bytes()
    provenance._run(tmp_path, "status", "--porcelain")
    assert index.read_bytes() == before
