"""What a run's folder says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dkel_lightning.app.records import CheckpointScores, Curve, RunRecord, write_failure
from dkel_lightning.errors import NonFiniteError
from tests.app.run_folders import one_test, write_metrics, write_run


@pytest.mark.parametrize(
    ("files", "state"),
    [
        (("config.yaml", "summary.json"), "finished"),
        (("config.yaml",), "unfinished"),
        (("config.yaml", "failed.txt"), "failed"),
        (("config.yaml", "summary.json", "failed.txt"), "failed"),  # made longer after its first end
        ((), "unfinished"),
    ],
)
def test_the_state_of_a_run_follows_from_its_files(tmp_path: Path, files: tuple[str, ...], state: str) -> None:
    for name in files:
        (tmp_path / name).write_text(json.dumps({"test": {"last": one_test(0.9)}}))
    run = RunRecord(tmp_path)
    assert run.state == state
    assert (run.last is not None) == (state == "finished")


def test_a_failure_is_one_line_with_the_kind_of_its_error(tmp_path: Path) -> None:
    write_failure(tmp_path, NonFiniteError("The loss is NaN:\n  lower optimizer.lr."))
    assert (tmp_path / "failed.txt").read_text() == "NonFiniteError: The loss is NaN: lower optimizer.lr.\n"
    run = RunRecord(tmp_path)
    assert (run.state, run.message) == ("failed", "NonFiniteError: The loss is NaN: lower optimizer.lr.")


def test_a_finished_run_has_the_tests_of_its_last_and_selected_epoch(tmp_path: Path) -> None:
    run = RunRecord(write_run(tmp_path / "run", 0.9, last=one_test(0.8, epoch=6)))
    assert run.last is not None
    assert run.selected is not None
    assert (run.last.deployed_accuracy, run.last.epoch, run.selected.deployed_accuracy) == (0.8, 6, 0.9)
    assert run.seconds == 4
    assert run.objective == pytest.approx(0.91)
    summary = json.loads((run.folder / "summary.json").read_text())
    summary["test"]["best"] = None
    (run.folder / "summary.json").write_text(json.dumps(summary))
    assert RunRecord(run.folder).selected == run.last


def test_a_test_goes_through_json_and_back(tmp_path: Path) -> None:
    test = CheckpointScores(
        **one_test(0.9, passed_over={"network": "student_0", "validation_accuracy": 0.8}, validated=False)
    )
    write_run(tmp_path / "run", 0.9, last=dataclasses.asdict(test))
    assert RunRecord(tmp_path / "run").last == test


def test_members_whose_outputs_overflow_are_named() -> None:
    found = one_test(0.9)
    found["nll"]["student_1"] = float("inf")
    found["calibration"]["teacher_1"] = float("nan")
    assert CheckpointScores(**found).overflowing == ["student_1", "teacher_1"]


def test_curves_count_epochs_from_one_and_leave_empty_cells_out(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"val/acc": [0.5, 0.75], "train/loss": [2.0]})
    assert RunRecord(tmp_path).curves == {"val/acc": Curve([1, 2], [0.5, 0.75]), "train/loss": Curve([1], [2.0])}
    assert RunRecord(tmp_path / "nowhere").curves == {}
