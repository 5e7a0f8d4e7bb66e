"""task=evaluate: test a checkpoint on the data of the run that wrote it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from dkel_lightning.settings.backbone import reads_a_folder


def evaluate(run: Run) -> CheckpointScores:
    """Test the checkpoint of `values["checkpoint"]` and write evaluation.json into the run's folder."""
    values = run.values
    path = Path(values["checkpoint"])
    module = load_module(path, values)
    epoch = int(file_format.load(path, mmap=True)["epoch"]) + 1
    datamodule = prepare_data(values)
    _check_classes(module, datamodule, path)
    plain = {**values, "callbacks": {**values["callbacks"], "extra": {}}}
    trainer = build.trainer(plain, loggers=[], callbacks=[])
    tested = scores.test(trainer, module, datamodule, epoch)
    _report(run, tested, module, datamodule)
    return tested


def load_module(path: Path, values: Values) -> DistillationModule:
    """Rebuild the module of a checkpoint with what `values` say of its deployed network and its execution."""
    backbone, teacher = values["backbone"], values["teacher"]
    others: dict[str, Any] = {"execution": values["execution"]}  # another memory layout changes the last digits
    if reads_a_folder(backbone["name"]):
        others["backbone"] = backbone["name"]
    if deploy := {key: value for key, value in values["deploy"].items() if value != "auto"}:
        others["deploy"] = deploy
    # A teacher that the checkpoint leaves out is read again where the command names it.
    named = {key: teacher[key] for key in ("weights", "pretrained") if teacher.get(key)}
    if reads_a_folder(teacher.get("backbone")):
        named["backbone"] = teacher["backbone"]
    if named:
        others["teacher"] = named
    return DistillationModule.load_from_checkpoint(path, **others)


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes of a run; empty where its folder does not say them."""
    file = folder / "classes.json"
    return tuple(json.loads(file.read_text(encoding="utf-8"))["classes"]) if file.is_file() else ()


def _check_classes(module: DistillationModule, data: ClassificationData, path: Path) -> None:
    """Refuse data with another number of classes; warn of classes with other names than in the training."""
    if module.student.num_classes != data.num_classes:
        raise CheckpointError(
            f"{path} has {module.student.num_classes} classes, the data {data.num_classes}: "
            "set data and data.root to the data it was trained on."
        )
    names = zip(class_names(run_of(path)), data.class_names, strict=False)
    if others := [f"{before}, here {now}" for before, now in names if before != now]:
        print_once(f"Warning: class names differ from those of the training: {'; '.join(others[:3])}.")


@rank_zero_only
def _report(run: Run, tested: CheckpointScores, module: DistillationModule, data: ClassificationData) -> None:
    checkpoint = run.values["checkpoint"]
    scores.print_scores({f"epoch {tested.epoch}": tested}, f"Test accuracy of {checkpoint}", "* deployed.")
    content = {"checkpoint": str(checkpoint), "data": run.values["data"], "test": asdict(tested)}
    run.write_json("evaluation.json", content)
    if module.scores.tested_confusion is not None:
        scores.write_confusion(module.scores.tested_confusion.tolist(), data.class_names, run.folder)
    print(f"Written to {run.folder / 'evaluation.json'}")
