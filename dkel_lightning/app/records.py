"""Read the files of a run's folder. Imports neither torch nor Lightning."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dkel_lightning.runtime.atomic_files import write_text

CONFIG, SUMMARY, METRICS, FAILED = "config.yaml", "summary.json", "metrics.csv", "failed.txt"

State = Literal["finished", "failed", "unfinished"]


class Curve(NamedTuple):
    """One column of metrics.csv. Epochs count from 1."""

    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class CheckpointScores:
    """Test scores of one checkpoint, as in summary.json.

    Attributes:
        deployed_accuracy: of the deployed network, in [0, 1].
        accuracy: by member (student_0, ..., student_mean, student_best, ensemble, teacher_0, ...), in [0, 1].
        nll: negative log-likelihood by member, in nats.
        calibration: expected calibration error by member, in 15 bins.
        epoch: epochs trained when the checkpoint was written.
        images: test images of all processes together.
        classes: number of classes.
        validated: whether the best peers were selected in validation.
        was_chosen: whether the deployed network was selected in validation too, rather than by the user or the method.
        deployed: name of the deployed member.
        validation_accuracy: of the deployed member at this checkpoint; None without validation.
        passed_over: the `network` that the method deploys by default and its `validation_accuracy`, if another one won.
        disagreement: share of images on which two student peers differ, mean over pairs; None with a single peer.
        distance: `||theta_t - theta_s|| / ||theta_s||`; None without a teacher of the student's form.
    """

    deployed_accuracy: float
    accuracy: Mapping[str, float]
    nll: Mapping[str, float]
    calibration: Mapping[str, float]
    epoch: int = 0
    images: int = 0
    classes: int = 0
    validated: bool = True
    was_chosen: bool = True
    deployed: str = ""
    validation_accuracy: float | None = None
    passed_over: Mapping[str, Any] | None = None
    disagreement: float | None = None
    distance: float | None = None

    @property
    def objective(self) -> float:
        """Validation accuracy of the deployed network; test accuracy without a validation."""
        return self.deployed_accuracy if self.validation_accuracy is None else self.validation_accuracy

    @property
    def overflowing(self) -> list[str]:
        """Members whose likelihood or calibration error is not finite."""
        return [name for name in self.accuracy if not math.isfinite(self.nll[name] + self.calibration[name])]


@dataclass(frozen=True)
class RunRecord:
    """A run, read from its folder.

    Attributes:
        label: name of the run's settings in a table of several runs.
        seed: as text; empty if the run has none.
    """

    folder: Path
    label: str = ""
    seed: str = ""

    @property
    def state(self) -> State:
        """State of the run. failed.txt overrides the summary.json of an earlier attempt."""
        if (self.folder / FAILED).is_file():
            return "failed"
        return "finished" if (self.folder / SUMMARY).is_file() else "unfinished"

    @cached_property
    def message(self) -> str:
        """Error message of a failed run, else empty."""
        path = self.folder / FAILED
        return " ".join(path.read_text(encoding="utf-8").split()) if path.is_file() else ""

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json, empty unless the run has finished."""
        if self.state != "finished":
            return {}
        summary: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
        return summary

    @property
    def last(self) -> CheckpointScores | None:
        """Scores of the last epoch; None unless the run has finished."""
        return _scores(self.summary["test"]["last"]) if self.summary else None

    @property
    def best(self) -> CheckpointScores | None:
        """Scores of the epoch selected in validation; None without a checkpoint."""
        return _scores(self.summary["test"]["best"]) if self.summary and self.summary["test"].get("best") else None

    @property
    def selected(self) -> CheckpointScores | None:
        """Scores of the selected epoch, else of the last one."""
        return self.best or self.last

    @property
    def objective(self) -> float | None:
        """What a search maximises; None unless the run has finished."""
        return self.selected.objective if self.selected else None

    @property
    def seconds(self) -> float | None:
        """Wall time of the fit, including earlier stages."""
        seconds = self.summary.get("seconds")
        return None if seconds is None else float(seconds + self.summary.get("seconds_before", 0.0))

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The columns of metrics.csv by name; empty without the file."""
        path = self.folder / METRICS
        return read_curves(path) if path.is_file() else {}


def read_curves(path: Path) -> dict[str, Curve]:
    """Read the columns of a metrics.csv, without empty cells."""
    curves: dict[str, Curve] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            epoch = float(row.pop("epoch")) + 1
            for name, cell in row.items():
                if cell and name != "step":
                    curve = curves.setdefault(name, Curve([], []))
                    curve.epochs.append(epoch)
                    curve.values.append(float(cell))
    return curves


def write_failure(folder: Path, error: BaseException) -> None:
    """Write failed.txt, one line: the kind of the error and its message."""
    write_text(folder / FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}\n")


def _scores(content: Mapping[str, Any]) -> CheckpointScores:
    return CheckpointScores(
        **{field.name: content[field.name] for field in fields(CheckpointScores) if field.name in content}
    )
