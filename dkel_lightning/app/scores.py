"""Final scores of a run: test its checkpoints, print the table, write the confusion matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dkel_lightning.app import figures
from dkel_lightning.app.records import CheckpointScores
from dkel_lightning.data import ClassificationData
from dkel_lightning.modules import deployment
from dkel_lightning.runtime.tables import write_csv

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

NAMES = {
    "ensemble": "ensemble classifier",
    "student_ensemble": "students, mean of probabilities",
    "teacher_ensemble": "teachers, mean of probabilities",
}
KINDS = ("student", "ensemble", "teacher")


def test(trainer: Trainer, module: DistillationModule, images: ClassificationData, epoch: int) -> CheckpointScores:
    """Test the module with its current weights, which were trained for `epoch` epochs."""
    metrics = trainer.test(module, images, verbose=False)[0]
    deployed, accuracy = module.deployed_member(), _by_member(metrics, "test/acc/")
    return CheckpointScores(
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


def _by_member(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in metrics.items() if name.startswith(prefix)}


def _validation_accuracy(module: DistillationModule, member: str) -> float | None:
    accuracy = float(module.scores.validation_accuracy[module.scores.members.index(member)])
    return accuracy if math.isfinite(accuracy) else None


def _passed_over(module: DistillationModule, deployed: str) -> dict[str, Any] | None:
    """Return the network that the method deploys by default, if another kind was selected in validation."""
    network = deployment.default_member(module)
    accuracy = _validation_accuracy(module, network)
    alike = network.partition("_")[0] == deployed.partition("_")[0]
    return None if alike or accuracy is None else {"network": network, "validation_accuracy": accuracy}


def describe(member: str) -> str:
    """Return the display name of a member, such as teacher peer 0 for `teacher_0`."""
    kind, _, last = member.partition("_")
    if last.isdecimal():
        return f"{kind} peer {last}"
    means = {"mean": f"{kind} peers, mean", "best": f"{kind} peer, best in validation"}
    return NAMES.get(member) or means.get(last) or member.replace("_", " ")


def _order(member: str) -> tuple[int, int, int]:
    """Return the sort key of a member: students, ensemble, teachers; peers by number before their mean."""
    kind, _, last = member.partition("_")
    rank = (0, int(last)) if last.isdecimal() else ({"mean": 1, "best": 2}.get(last, 3), 0)
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), *rank)


def print_scores(tests: Mapping[str, CheckpointScores], title: str, note: str) -> None:
    """Print the final table: one row per network, one column per checkpoint, * for the deployed network."""
    table = Table()
    table.add_column("network")
    for heading in tests:
        table.add_column(Text(heading), justify="right")
    first = next(iter(tests.values()))
    shown = sorted((m for m in first.accuracy if first.validated or not m.endswith("_best")), key=_order)
    for _, members in itertools.groupby(shown, lambda member: member.partition("_")[0]):
        for member in members:
            cells = [
                f"{test.accuracy[member]:.2%}{' *' if test.deployed == member else '  '}" for test in tests.values()
            ]
            table.add_row(describe(member), *cells)
        table.add_section()
    print(title)  # rich would wrap it to the width of the table
    Console().print(table)
    print(note, flush=True)


def write_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], run_dir: Path) -> Path:
    """Write confusion.csv and its figure for the deployed network; return the figure's path."""
    rows = ([name, *row] for name, row in zip(names, counts, strict=True))
    write_csv(run_dir / "confusion.csv", [["true class", *names], *rows])
    figure = run_dir / "figures" / "confusion.png"
    figures.draw_confusion(counts, names, figure)
    return figure
