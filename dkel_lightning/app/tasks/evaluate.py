"""task=evaluate: test a checkpoint on the data of the run that wrote it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from dkel_lightning.app import build, scores
from dkel_lightning.app.config import Values
from dkel_lightning.app.records import CheckpointScores
from dkel_lightning.app.run import Run, run_of
from dkel_lightning.app.tasks.train import prepare_data
from dkel_lightning.checkpoints import file_format
from dkel_lightning.data import ClassificationData
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError
from dkel_lightning.runtime.processes import print_once

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation gave."""

    scores: CheckpointScores

    @property
    def objective(self) -> float:
        """The deployed network's test accuracy."""
        return self.scores.deployed_accuracy


def evaluate(run: Run) -> EvaluateResult:
    """Test the checkpoint of `values["checkpoint"]` and write evaluation.json into the run's folder."""
    values = run.values
    path = Path(values["checkpoint"])
    module = load_module(path, values)
    epoch = int(file_format.load(path)["epoch"]) + 1
    images = prepare_data(values)
    _check_classes(module, images, path)
    plain = {**values, "callbacks": {**values["callbacks"], "extra": {}}}
    trainer = build.trainer(plain, loggers=[], callbacks=[])
    result = EvaluateResult(scores.test(trainer, module, images, epoch))
    _report(run, result, module, images)
    return result


def load_module(path: Path, values: Values) -> DistillationModule:
    """Rebuild the module of a checkpoint with what `values` say of its deployed network and its execution."""
    deploy = {key: value for key, value in values["deploy"].items() if value != "auto"}
    # The memory layout of the training, or the figures would differ in their last digits.
    others = {"execution": values["execution"], **({"deploy": deploy} if deploy else {})}
    # A teacher that the checkpoint leaves out is read again where the command names it.
    teacher = {key: values["teacher"][key] for key in ("weights", "pretrained") if values["teacher"].get(key)}
    others |= {"teacher": teacher} if teacher else {}
    return DistillationModule.load_from_checkpoint(path, **others)


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes of a run; empty where its folder does not say them."""
    file = folder / "classes.json"
    return tuple(json.loads(file.read_text(encoding="utf-8"))["classes"]) if file.is_file() else ()


def _check_classes(module: DistillationModule, images: ClassificationData, path: Path) -> None:
    """Refuse data of another number of classes; name classes that are called otherwise than in the training."""
    if module.student.num_classes != images.num_classes:
        raise CheckpointError(
            f"{path} knows {module.student.num_classes} classes, the data has {images.num_classes}: "
            "set data and data.root to the data it was trained on."
        )
    names = zip(class_names(run_of(path)), images.class_names, strict=False)
    if others := [f"{before}, here {now}" for before, now in names if before != now]:
        print_once(f"Warning: classes have other names than in the training: {'; '.join(others[:3])}.")


@rank_zero_only
def _report(run: Run, result: EvaluateResult, module: DistillationModule, images: ClassificationData) -> None:
    checkpoint = run.values["checkpoint"]
    scores.print_scores(
        {f"epoch {result.scores.epoch}": result.scores}, f"Test accuracy of {checkpoint}", "* deployed."
    )
    run.write_json(EVALUATION, {"checkpoint": str(checkpoint), "test": asdict(result.scores)})
    if module.scores.tested_confusion is not None:
        scores.write_confusion(module.scores.tested_confusion.tolist(), images.class_names, run.folder)
    print(f"Written to {run.folder / EVALUATION}")
