"""A sweep by one command, and the same command again after an interruption."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.commands import dkel


@pytest.mark.slow
def test_an_ablation_is_one_command_and_the_same_command_runs_only_what_is_missing(tmp_path: Path) -> None:
    command = ["ablation=draw", "seed=0", "debug=smoke", "trainer.max_epochs=1", "sweep.folder=sweep"]
    done = dkel(*command, cwd=tmp_path, drawn=True)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"
    with (sweep / "runs.csv").open(newline="") as file:
        rows = [(row["label"], row["seed"], row["state"]) for row in csv.DictReader(file)]
    assert rows == [("independent", "0", "finished"), ("student", "0", "finished")]
    assert "| student | 1 |" in done.stdout.replace("│", "|") or "student" in done.stdout
    for name in ("sweep.md", "figures/sweep.png", "figures/curves.png"):
        assert (sweep / name).stat().st_size > 500

    finished, removed = (sweep / f"teacher.draw={draw}" / "summary.json" for draw in ("independent", "student"))
    expected = json.loads(removed.read_text())
    removed.unlink()
    written = finished.stat().st_mtime_ns
    again = dkel(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stdout
    assert finished.stat().st_mtime_ns == written
    # It had trained to its end, and was only tested anew.
    assert json.loads(removed.read_text())["test"] == expected["test"]
