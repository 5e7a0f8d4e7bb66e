"""The record of a run: what its state follows from, and that each file is read by itself, however it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.runs.tables import Column, markdown_table, write_csv

TEST = {
    "epoch": 4,
    "deployed": "teacher_0",
    "deployed_accuracy": 0.75,
    "accuracy": {"student_mean": 0.5, "teacher_0": 0.75, "teacher_ensemble": 0.8},
    "nll": {"teacher_0": 0.25},
    "calibration": {"teacher_0": 0.125},
}


def write(folder: Path, **files: Any) -> RunRecord:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return RunRecord(folder)


@pytest.mark.parametrize(
    ("job", "tested", "failed", "state"),
    [
        (None, True, False, "finished"),
        (None, False, False, "unfinished"),
        (None, False, True, "failed"),
        ("finished", True, False, "finished"),
        ("finished", False, False, "finished"),  # a task that tests nothing
        ("running", True, False, "unfinished"),  # the figures may be those of the job that was there before
        ("failed", True, False, "failed"),
    ],
)
def test_the_state_is_what_was_noted_and_else_what_lies_there(
    tmp_path: Path, job: str | None, tested: bool, failed: bool, state: str
) -> None:
    files: dict[str, Any] = {"job": {"state": job}} if job else {}
    files |= {"summary": {"test": {"last": TEST, "best": None}}} if tested else {}
    if failed:
        (tmp_path / "failed.txt").write_text("Traceback\nOSError: no space\n\n")
    run = write(tmp_path, **files)
    assert run.state == state
    assert bool(run.figures) == (tested and state == "finished")
    assert (run.failure == "OSError: no space") == failed


def test_the_figures_are_those_of_the_last_and_the_selected_test(tmp_path: Path) -> None:
    last = {**TEST, "epoch": 6, "deployed_accuracy": 0.7, "disagreement": 0.1}
    summary = {"test": {"last": last, "best": TEST}, "seconds": 3.5, "peak_memory": {"bytes": 7, "of": "gpu"}}
    run = write(tmp_path, summary=summary)
    (tmp_path / "metrics.csv").write_text("epoch,step,diversity/kl/x\n0,1,0.5\n1,2,0.25\n")
    assert run.figures["last deployed accuracy"] == 0.7
    assert run.figures["last peer disagreement"] == 0.1
    assert run.figures["selected deployed accuracy"] == 0.75
    assert run.figures["selected NLL"] == 0.25
    assert run.figures["selected peer disagreement"] is None
    assert run.figures["last diversity/kl/x"] == 0.25
    assert run.figures["seconds"] == 3.5
    assert (run.figure("peak memory"), run.figure("unheard of")) == (7, None)


@pytest.mark.parametrize(
    ("best", "whole", "objective"),
    [
        (None, True, 0.75),
        (TEST, True, 0.75),
        ({**TEST, "validation_accuracy": 0.6}, True, 0.6),
        ({"epoch": 1}, False, 0.75),
    ],
)
def test_a_summary_is_whole_with_every_test_in_it(
    tmp_path: Path, best: dict[str, Any] | None, whole: bool, objective: float
) -> None:
    run = write(tmp_path, summary={"test": {"last": TEST, "best": best}})
    assert (run.whole, run.objective) == (whole, objective)


def test_a_folder_that_is_not_there_gives_an_empty_record(tmp_path: Path) -> None:
    run = RunRecord(tmp_path / "nowhere")
    assert (run.state, run.tested, run.whole, run.objective, run.overrides, run.seed) == (
        "unfinished", False, False, None, None, "",
    )  # fmt: skip
    assert not run.figures
    assert [problem.split(":")[0] for problem in run.problems] == [
        "No config.yaml", "No summary.json", "No provenance.json", "No metrics.csv",
    ]  # fmt: skip


def test_tables_keep_numbers_as_they_are_and_leave_cells_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["x", "y"], [0.1 + 0.2, None], [True, 2**60]])
    assert (tmp_path / "a.csv").read_text() == f"x,y\n0.30000000000000004,\nTrue,{2**60}\n"
    assert markdown_table(["a", "b"], [["c", "1"]]) == ["| a | b |", "| --- | ---: |", "| c | 1 |"]
    assert Column("x", 100, 2).cell(None) == "n/a"


@pytest.mark.slow
def test_neither_records_nor_tables_need_torch() -> None:
    names = [f"runs.{name}" for name in ("records", "groups", "tables", "kinds", "settings")]
    imported = ", ".join(f"dkel_lightning.app.{name}" for name in names)
    code = f"import sys, {imported}; print([name for name in ('torch', 'lightning', 'hydra') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
