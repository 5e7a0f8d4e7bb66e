"""task=predict: write the most probable classes of images into predictions.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dkel_lightning.app.config import Values
from dkel_lightning.app.run import Run
from dkel_lightning.app.tasks.evaluate import load_module
from dkel_lightning.app.tasks.export import preprocessing_of
from dkel_lightning.data.decode import decode_to
from dkel_lightning.data.readers.image_folder import images_in
from dkel_lightning.errors import ConfigError
from dkel_lightning.export import Exported, formats, open_exported
from dkel_lightning.export.metadata import Record
from dkel_lightning.runtime.tables import write_csv

PREDICTIONS = "predictions.csv"
BATCH = 64


@dataclass(frozen=True)
class PredictResult:
    """The file written, and for each image its classes and probabilities, most probable first."""

    classes: Mapping[Path, list[tuple[str, float]]]
    file: Path


def predict(run: Run) -> PredictResult:
    """Classify `predict.images` with `checkpoint`: a .ckpt file, or an export."""
    settings = run.values["predict"]
    if settings["images"] is None:
        raise ConfigError("task=predict needs predict.images=PATH of an image file or a folder.")
    path, images = Path(run.values["checkpoint"]), Path(settings["images"]).expanduser()
    files = [images] if images.is_file() else [Path(file) for file in images_in(images)]
    exported = open_exported(path) if formats.is_exported(path) else _open_checkpoint(path, run.values)
    classes: dict[Path, list[tuple[str, float]]] = {}
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        classes |= dict(zip(batch, _classify(exported, batch, settings["top"]), strict=True))
    file = (Path(settings["to"]) if settings["to"] else run.folder) / PREDICTIONS
    rows = (
        [image, rank, name, f"{probability:.6f}"]
        for image, best in classes.items()
        for rank, (name, probability) in enumerate(best, start=1)
    )
    write_csv(file, [["file", "rank", "class", "probability"], *rows])
    print(f"{len(files)} images by {exported.record.member} of {path}. Written to {file}")
    return PredictResult(classes, file)


def _classify(exported: Exported, files: list[Path], top: int) -> list[list[tuple[str, float]]]:
    preprocessing = exported.record.preprocessing
    images = [np.array(decode_to(f.read_bytes(), str(f), preprocessing.shape, preprocessing.margin)) for f in files]
    logits = exported.classify(preprocessing.normalised(torch.from_numpy(np.stack(images))))
    best = logits.float().softmax(-1).topk(min(top, logits.shape[1]))
    return [
        [(preprocessing.name(index), probability) for index, probability in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _open_checkpoint(path: Path, values: Values) -> Exported:
    module = load_module(path, values).eval()
    record = Record(
        "checkpoint",
        path.name,
        module.deployed_member(),
        module.student.num_classes,
        preprocessing_of(module, path, values),
    )
    return Exported(path, record, formats.without_gradient(module.deploy()))
