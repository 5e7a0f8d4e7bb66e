"""The final figures of a run: gathered from tests, shown as a table, and the mistakes of the deployed network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from dkel_lightning.app import build, drawing, figures
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.runs import members
from dkel_lightning.app.runs.records import CONFUSION, Test
from dkel_lightning.app.runs.tables import cell, write_csv
from dkel_lightning.data import ClassificationData
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.modules import deployment


def test(trainer: Trainer, module: DistillationModule, images: ClassificationData, epoch: int) -> Test:
    """Test the module with the weights that it holds."""
    with build.trainer_settings_named():
        metrics = trainer.test(module, images, verbose=False)[0]
    deployed, accuracy = module.deployed_member(), _by_member(metrics, "test/acc/")
    return Test(
        epoch=epoch,
        images=int(metrics["test/images"]),
        classes=images.num_classes,
        validated=bool(module.scores.validation_accuracy.isfinite().any()),
        was_chosen=len(deployment.candidates(module, module.deployment)) > 1,
        deployed=deployed,
        deployed_accuracy=accuracy[deployed],
        validation_accuracy=_validation_accuracy(module, deployed),
        passed_over=_passed_over(module, deployed),
        accuracy=accuracy,
        nll=_by_member(metrics, "test/nll/"),
        calibration=_by_member(metrics, "test/ece/"),
        disagreement=metrics.get("test/disagreement"),
        distance=metrics.get("test/distance"),
    )


def test_alone(values: Values, module: DistillationModule, images: ClassificationData, epoch: int) -> Test:
    """Test a module that was loaded, without loggers and callbacks."""
    plain = {**values, "callbacks": {**values["callbacks"], "extra": {}}}
    return test(build.trainer(plain, loggers=[], callbacks=[], plugins=[]), module, images, epoch)


def _by_member(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in metrics.items() if name.startswith(prefix)}


def _validation_accuracy(module: DistillationModule, member: str) -> float | None:
    accuracy = float(module.scores.validation_accuracy[module.scores.members.index(member)])
    return accuracy if math.isfinite(accuracy) else None


def _passed_over(module: DistillationModule, deployed: str) -> dict[str, Any] | None:
    own = deployment.usual_member(module)
    accuracy = _validation_accuracy(module, own)
    alike = own.partition("_")[0] == deployed.partition("_")[0]
    return None if alike or accuracy is None else {"network": own, "validation_accuracy": accuracy}


def show(columns: Mapping[str, Test], title: str, note: str, console: Console | None = None) -> None:
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


def write_confusion(
    module: DistillationModule, names: Sequence[str], folder: Path, also: Sequence[str] = ()
) -> Path | None:
    """Write confusion.csv of the last test and its figure into a folder, and return the PNG; None without any."""
    if module.scores.tested_confusion is None:
        return None
    counts, figure = module.scores.tested_confusion.tolist(), folder / "figures" / "confusion.png"
    rows = ([name, *row] for name, row in zip(names, counts, strict=True))
    write_csv(folder / CONFUSION, [["true class", *names], *rows])
    drawing.save(figures.confusion(counts, names), figure, also)
    return figure
