"""The final figures of a run: gathered from tests, written to JSON, shown as a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from dkel_lightning.app import build
from dkel_lightning.app.runs import members
from dkel_lightning.app.runs.tables import cell
from dkel_lightning.data import ClassificationData
from dkel_lightning.modules import deployment
from dkel_lightning.modules.distillation import DistillationModule

Confusion = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scores:
    """One test of one checkpoint.

    Attributes:
        accuracy: by member (student_0, ..., student_mean, student_best, ensemble, teacher_0, ...), in [0, 1].
        nll: negative log-likelihood by member, in nats.
        calibration: expected calibration error by member, in 15 bins.
        deployed: the member that is deployed.
        epoch: epochs trained when the checkpoint was written.
        images: test images it was tested on, all processes together.
        classes: classes that these have.
        validated: whether a validation has chosen the best peers.
        was_chosen: whether it chose the deployed one too, rather than the user or the method.
        passed_over: what the method itself would have deployed, with its validation accuracy, if that is not deployed.
        disagreement: share of samples on which two student peers differ, mean over pairs; None with a single peer.
        distance: `||theta_t - theta_s|| / ||theta_s||`; None without a teacher of the student's form.
        validation_accuracy: of the deployed network, in the validation before this checkpoint; None without one.
        confusion: how often images of each class (rows) were given each class (columns) by the deployed network.
    """

    accuracy: Mapping[str, float]
    nll: Mapping[str, float]
    calibration: Mapping[str, float]
    deployed: str
    epoch: int
    images: int = 0
    classes: int = 0
    validated: bool = True
    was_chosen: bool = True
    passed_over: tuple[str, float] | None = None
    disagreement: float | None = None
    distance: float | None = None
    confusion: Confusion | None = None
    validation_accuracy: float | None = None

    @property
    def deployed_accuracy(self) -> float:
        """Accuracy of the deployed network."""
        return self.accuracy[self.deployed]

    def by_name(self, prefix: str) -> dict[str, float]:
        """Return all scores by names as they are logged: `<prefix>/acc`, `<prefix>/acc/teacher_0`, ..."""
        found = {f"{prefix}/acc": self.deployed_accuracy, f"{prefix}/epoch": float(self.epoch)}
        for kind, scores in (("acc", self.accuracy), ("nll", self.nll), ("ece", self.calibration)):
            found |= {f"{prefix}/{kind}/{member}": value for member, value in scores.items()}
        for name, value in (("disagreement", self.disagreement), ("distance", self.distance)):
            if value is not None:
                found[f"{prefix}/{name}"] = value
        return found

    @property
    def without_number(self) -> list[str]:
        """Name the networks whose likelihood or calibration is not finite: their outputs overflow."""
        values = (self.nll, self.calibration)
        return [name for name in self.accuracy if not all(math.isfinite(each.get(name, 0.0)) for each in values)]

    def as_dict(self) -> dict[str, Any]:
        """Return primitives, without the confusion matrix, which has a file of its own."""
        return {
            "epoch": self.epoch,
            "images": self.images,
            "classes": self.classes,
            "validated": self.validated,
            "deployed": self.deployed,
            "deployed_accuracy": self.deployed_accuracy,
            "validation_accuracy": self.validation_accuracy,
            "passed_over": self.passed_over
            and dict(zip(("network", "validation_accuracy"), self.passed_over, strict=True)),
            "accuracy": dict(self.accuracy),
            "nll": dict(self.nll),
            "calibration": dict(self.calibration),
            "disagreement": self.disagreement,
            "distance": self.distance,
        }


def test(trainer: Trainer, module: DistillationModule, images: ClassificationData, epoch: int) -> Scores:
    """Test the module with the weights that it holds."""
    with build.trainer_settings_named():
        metrics = trainer.test(module, images, verbose=False)[0]
    return Scores(
        accuracy=_by_member(metrics, "test/acc/"),
        nll=_by_member(metrics, "test/nll/"),
        calibration=_by_member(metrics, "test/ece/"),
        deployed=module.deployed_member(),
        epoch=epoch,
        images=int(metrics["test/images"]),
        classes=images.num_classes,
        validated=bool(module.validation_accuracy.isfinite().any()),
        was_chosen=len(deployment.candidates(module, module.deployment)) > 1,
        passed_over=_passed_over(module),
        disagreement=metrics.get("test/disagreement"),
        distance=metrics.get("test/distance"),
        validation_accuracy=_validation_accuracy(module, module.deployed_member()),
        confusion=None if module.tested_confusion is None else module.tested_confusion.tolist(),
    )


def _validation_accuracy(module: DistillationModule, member: str) -> float | None:
    accuracy = float(module.validation_accuracy[module.members.index(member)])
    return accuracy if math.isfinite(accuracy) else None


def _passed_over(module: DistillationModule) -> tuple[str, float] | None:
    own, chosen = deployment.methods_own(module), module.deployed_member()
    accuracy = _validation_accuracy(module, own)
    return None if own.partition("_")[0] == chosen.partition("_")[0] or accuracy is None else (own, accuracy)


def _by_member(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in metrics.items() if name.startswith(prefix)}


def show(columns: Mapping[str, Scores], title: str, note: str, console: Console | None = None) -> None:
    """Print the closing table: a row a network, a column a checkpoint."""
    console = console or Console()
    table = Table(title=cell(title), title_justify="left", caption=cell(note), caption_justify="left")
    table.add_column("network")
    for heading in columns:
        table.add_column(cell(heading), justify="right")
    first = next(iter(columns.values()))
    for _, group in itertools.groupby(sorted(first.accuracy, key=members.order), lambda member: member.split("_")[0]):
        for member in group:
            if member.endswith("_best") and not first.validated:
                continue
            shares = [f"{scores.accuracy[member]:.2%}" for scores in columns.values()]
            marks = [" *" if scores.deployed == member else "  " for scores in columns.values()]
            shown = (share + mark for share, mark in zip(shares, marks, strict=True))
            table.add_row(cell(members.described(member)), *shown)
        table.add_section()
    console.print(table)
