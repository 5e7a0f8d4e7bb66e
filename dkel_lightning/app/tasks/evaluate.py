"""task=evaluate: test a checkpoint on the data of the run that wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from dkel_lightning.app.runs import scores
from dkel_lightning.app.runs.folder import Run, run_folder
from dkel_lightning.app.runs.records import EVALUATION, Test
from dkel_lightning.app.tasks.train import prepared
from dkel_lightning.assembly.build import rebuilt
from dkel_lightning.checkpoints import file_format
from dkel_lightning.data import ClassificationData
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.errors import CheckpointError
from dkel_lightning.runtime.processes import print_once
from dkel_lightning.runtime.texts import printable
from dkel_lightning.settings.backbone import reads_a_folder

OF_RESULT = ("seed", "data", "deploy", "precision", "trainer", "execution")
"""Keys and groups on which the scores of a checkpoint depend; its own networks and method are not to choose."""
CLASSES = "classes.json"
"""Names of the classes, in the folder of a run."""


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation gave: the test of the checkpoint, and the file in which it is written."""

    scores: Test
    file: Path

    @property
    def objective(self) -> float:
        """The deployed network's test accuracy."""
        return self.scores.deployed_accuracy


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give what decides how an evaluation ends: the checkpoint's name in its run, and settings."""
    path = Path(values["checkpoint"]).resolve()
    return {"checkpoint": f"{path.parent.name}/{path.name}", **{key: values[key] for key in OF_RESULT}}


def evaluate(run: Run) -> EvaluateResult:
    """Test the checkpoint `values["checkpoint"]` and write evaluation.json into the run's folder.

    Raises:
        DkelError: with the thing at fault and its cure.
    """
    values = run.values
    path = Path(values["checkpoint"])
    # The memory layout of the training, or the figures would differ in their last digits.
    module, epoch = loaded(path, values, execution=values["execution"])
    images = prepared(values)
    check_fits(module, images, path)
    result = EvaluateResult(scores.test_alone(values, module, images, epoch), run.folder / EVALUATION)
    _report(run, result, path)
    rank_zero_only(scores.write_confusion)(module, images.class_names, run.folder, values["figures"]["also"])
    return result


def loaded(path: Path, values: Mapping[str, Any], **others: Any) -> tuple[DistillationModule, int]:
    """Rebuild the module of a checkpoint, with what `values` say of the deployed network, and tell its epoch from 1.

    Raises:
        DkelError: as `load_from_checkpoint`.
    """
    deploy = {key: value for key, value in values["deploy"].items() if value != "auto"}
    others |= {"deploy": deploy} if deploy else {}
    teacher = values["teacher"]
    again = {key: teacher[key] for key in ("weights", "pretrained") if teacher.get(key)}
    if values["trust"]:
        backbone = values["backbone"]["name"]
        others |= {"backbone": backbone} if reads_a_folder(backbone) else {}
        again = teacher if reads_a_folder(teacher.get("backbone")) else again
    checkpoint = file_format.load(path)
    if again:
        others |= {"teacher": again}
    module: DistillationModule = rebuilt(DistillationModule, checkpoint, path, **others)
    return module, int(checkpoint.get("epoch", -1)) + 1


def check_fits(module: DistillationModule, images: ClassificationData, path: Path) -> None:
    """Raise a CheckpointError unless the data has the classes and channels that the checkpoint knows.

    Classes are compared by their order, which is said where their names are known to differ.
    """
    classes, channels = images.num_classes, images.image_shape[0]
    if module.student.num_classes != classes:
        raise CheckpointError(
            f"{path} knows {module.student.num_classes} classes, the data has {classes}: "
            "set data and data.root to the data it was trained on."
        )
    folder = run_folder(path)
    pairs = zip(class_names(folder) if folder is not None else (), images.class_names, strict=False)
    if others := [f"{before}, here {now}" for before, now in pairs if before != now]:
        told = printable("; ".join(others[:3]))
        print_once(
            f"Classes have other names than in the training of {path} ({told}) and are compared by their order: where "
            "that is another too, the scores mean nothing."
        )
    expected = (module.recipe or {}).get("in_channels", channels)
    if expected != channels:
        raise CheckpointError(f"{path} takes images of {expected} channels, the data has {channels}: set data.root.")


def class_names(folder: Path) -> tuple[str, ...]:
    """Read how the classes of a run are called; empty where it is not known."""
    try:
        return tuple(map(str, json.loads((folder / CLASSES).read_bytes())["classes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return ()  # none, or damaged: classes go by their numbers


@rank_zero_only
def _report(run: Run, result: EvaluateResult, path: Path) -> None:
    title = f"Test accuracy of {path}"
    scores.show({f"epoch {result.scores.epoch}": result.scores}, title, "* deployed.")
    content = {"checkpoint": str(path), "settings": settings(run.values), "test": asdict(result.scores)}
    run.write_json(EVALUATION, content)
    print(f"Written to {result.file}")
