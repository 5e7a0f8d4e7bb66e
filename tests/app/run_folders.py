"""Folders of runs, written by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEMBERS = ("student_0", "student_1", "student_mean", "student_ensemble", "teacher_0", "teacher_1")


def one_test(deployed_accuracy: float, **changes: Any) -> dict[str, Any]:
    """Make a test of summary.json, in which the deployed network alone has this accuracy."""
    return {
        "epoch": 2,
        "images": 360,
        "classes": 10,
        "deployed": "teacher_0",
        "deployed_accuracy": deployed_accuracy,
        "validation_accuracy": deployed_accuracy + 0.01,
        "accuracy": {**dict.fromkeys(MEMBERS, 0.5), "student_ensemble": 0.6, "teacher_0": deployed_accuracy},
        "nll": {**dict.fromkeys(MEMBERS, 1.0), "teacher_0": 0.5},
        "calibration": {**dict.fromkeys(MEMBERS, 0.1), "teacher_0": 0.03},
        "disagreement": 0.2,
        "distance": 0.25,
        **changes,
    }


def write_run(folder: Path, accuracy: float, seed: int = 0, *, last: Mapping[str, Any] | None = None) -> Path:
    """Write the summary.json and metrics.csv of a finished run."""
    folder.mkdir(parents=True)
    summary = {
        "method": "dkel",
        "seed": seed,
        "selection": "validation",
        "test": {"last": last or one_test(accuracy), "best": one_test(accuracy)},
        "images_per_second": 100.0,
        "seconds": 3.0,
        "seconds_before": 1.0,
        "peak_memory": {"bytes": 2**20, "of": "process"},
        "deployed_parameters": 10,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    write_metrics(folder, {"val/acc/student_mean": [accuracy / 2, accuracy]})
    return folder


def write_metrics(folder: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Write a metrics.csv with a row an epoch; shorter columns end in empty cells."""
    length = max(map(len, curves.values()))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", *curves])
        for epoch in range(length):
            cells = [repr(values[epoch]) if epoch < len(values) else "" for values in curves.values()]
            writer.writerow([epoch, 10 * (epoch + 1), *cells])
