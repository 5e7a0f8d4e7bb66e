"""task=complexity: how hard labels and teacher are for the student, epoch by epoch; a table and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dkel_lightning.app import build, drawing
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.tables import print_table, write_csv
from dkel_lightning.app.tasks.registry import ComplexitySettings
from dkel_lightning.app.tasks.train import prepared, usual_callbacks
from dkel_lightning.callbacks import SupervisionComplexity
from dkel_lightning.data import ImageDataModule
from dkel_lightning.runtime.seeding import seed_process
from dkel_lightning.settings.declarations import from_mapping

TARGETS = {
    "random": "random labels",
    "labels": "labels",
    "offline": "teacher of the end",
    "online": "teacher of the moment",
}
Row = tuple[int, dict[str, float]]


@dataclass(frozen=True)
class ComplexityResult:
    """What the task gave: its folder, and each epoch that was looked at with the complexity of each target."""

    folder: Path
    rows: list[Row]

    @property
    def objective(self) -> float:
        """The last complexity of the teacher's predictions."""
        return self.rows[-1][1]["online"]


def complexity(run: Run) -> ComplexityResult:
    """Train as configured, look at the kernel of the student's first peer, and write into the run's folder.

    Raises:
        ConfigError: the kernel cannot be inverted.
    """
    values = run.values
    settings = from_mapping(ComplexitySettings, values["complexity"], "complexity")
    data = cast("ImageDataModule", prepared(values))
    module = build.distillation(values, data)
    watch = SupervisionComplexity(
        *evenly_spread(data, settings.images),
        every_n_epochs=settings.every_n_epochs,
        ridge=settings.ridge,
        seed=values["seed"],
    )
    trainer = build.trainer(values, loggers=[], callbacks=[watch, *usual_callbacks(run)], plugins=[])
    run.describe()
    seed_process(values["seed"], "training", 0)
    with build.trainer_settings_named():
        trainer.fit(module, data)
    rows = list(watch.rows(module.student.num_classes))
    write_csv(
        run.folder / "complexity.csv",
        [["epoch", *TARGETS], *([epoch, *(f"{found[name]:.6g}" for name in TARGETS)] for epoch, found in rows)],
    )
    drawing.save_all({"complexity": draw(rows)}, run.folder / "figures", run.values["figures"]["also"])
    shown = [[str(epoch), *(f"{found[name]:.3g}" for name in TARGETS)] for epoch, found in rows]
    print_table("Adjusted supervision complexity", ["epoch", *TARGETS.values()], shown)
    print(f"Written to {run.folder}: complexity.csv, figures/.")
    return ComplexityResult(run.folder, rows)


def evenly_spread(data: ImageDataModule, most: int) -> tuple[Tensor, Tensor]:
    """Read training images [n, C, H, W] as evaluation sees them, and their labels [n]."""
    stored = data.training_images
    count = min(most, len(stored))
    chosen = torch.arange(count) * len(stored) // count
    return data.augment.normalize(stored.read(chosen)), stored.labels[chosen]


@drawing.styled
def draw(rows: list[Row]) -> Figure:
    """Draw the complexity of each target against the epoch."""
    figure, ((axes,),) = drawing.grid(1, 1, 6, 4)
    epochs = [epoch for epoch, _ in rows]
    for number, (name, label) in enumerate(TARGETS.items()):
        axes.plot(epochs, [found[name] for _, found in rows], color=drawing.colour(number, len(TARGETS)), label=label)
    drawing.name(axes, "How hard targets are for the student's kernel", "epoch", "adjusted supervision complexity")
    drawing.legend_beside(axes)
    return figure
