"""An ablation by one command, and the same command again after an interruption."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.commands import dkel


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_an_ablation_is_one_command_and_the_same_command_runs_only_what_is_missing(tmp_path: Path) -> None:
    command = ["experiment=ablation/draw", "seed=0", "debug=smoke", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    done = dkel(*command, cwd=tmp_path, drawn=True)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep"
    rows = table(sweep)
    assert [(row["teacher.draw"], row["seed"], row["state"]) for row in rows] == [
        ("independent", "0", "finished"),
        ("student", "0", "finished"),
    ]
    for name in ("sweep.md", "figures/sweep.png", "figures/curves.png"):
        assert (sweep / name).stat().st_size > 500

    expected = json.loads((sweep / "1" / "summary.json").read_text())
    (sweep / "1" / "summary.json").unlink()
    written = (sweep / "0" / "summary.json").stat().st_mtime_ns
    again = dkel(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Job 0 has finished before" in again.stdout
    assert (sweep / "0" / "summary.json").stat().st_mtime_ns == written
    # It had trained to its end, and was only tested anew.
    assert json.loads((sweep / "1" / "summary.json").read_text())["test"] == expected["test"]
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1", "figures"]
