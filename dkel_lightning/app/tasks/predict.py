"""task=predict: write the classes of image files into predictions.csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkel_lightning.app import build
from dkel_lightning.app.runs.folder import Run, run_folder
from dkel_lightning.app.runs.tables import write_csv
from dkel_lightning.app.tasks.evaluate import class_names, loaded
from dkel_lightning.data.decode import decode_to
from dkel_lightning.data.readers.image_folder import images_in
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.export import Preprocessing, formats, open_exported
from dkel_lightning.networks import logits_of

Classifier = Callable[[Tensor], Tensor]
"""Normalised images [B, C, H, W] -> logits [B, num_classes]."""
HEADING = ("file", "rank", "class", "name", "probability")


def predict(run: Run) -> Path:
    """Classify `predict.images`, a file or a folder, with a checkpoint or an export, and return predictions.csv.

    Each image has a row for each of its `predict.top` most probable classes. Images that cannot be read are named and
    left out.
    """
    settings = run.values["predict"]
    source, size = Path(settings["images"]).expanduser(), settings["batch_size"]
    files = [source] if source.is_file() else [Path(file) for file in images_in(source)]
    member, preprocessing, classify = _open(Path(run.values["checkpoint"]), run.values)
    if preprocessing.channels not in (1, 3):
        raise ConfigError(f"{member} takes images of {preprocessing.channels} channels, which no image file has.")
    rows: list[tuple[object, ...]] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), size):
            batch = files[start : start + size]
            decoded = pool.map(lambda file: _decode(file, preprocessing), batch)
            images = {file: image for file, image in zip(batch, decoded, strict=True) if image is not None}
            if images:
                logits = classify(preprocessing.normalised(torch.stack([*images.values()])))
                rows += _rows([*images], logits, preprocessing, settings["top"])
    if not rows:
        raise DataError(f"None of the {len(files)} images in {source} could be read.")
    table = Path(settings["to"] or run.folder) / "predictions.csv"
    write_csv(table, [HEADING, *rows])
    print(f"{len({row[0] for row in rows})} of {len(files)} images by {member}, written to {table}")
    return table


def _open(path: Path, values: Mapping[str, Any]) -> tuple[str, Preprocessing, Classifier]:
    """Open a checkpoint or an export: name of the network, preparation of its images, and the network."""
    if formats.is_exported(path):
        exported = open_exported(path, trust=values["trust"])
        return exported.record.member, exported.record.preprocessing, exported.classify
    module = loaded(path, values)[0].eval()
    device = build.device(values)
    network = module.deploy().to(device)

    def classify(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return logits_of(network(images.to(device))).cpu()

    return module.deployed_member(), _preprocessing(path, module.recipe or {}, values["data"]), classify


def _preprocessing(path: Path, recipe: Mapping[str, Any], data: Mapping[str, Any]) -> Preprocessing:
    """Return how the run of a checkpoint prepares its images."""
    folder, size = run_folder(path), recipe.get("image_size")
    if folder is None or size is None or data["mean"] is None or data["std"] is None:
        raise ConfigError(
            f"How images are prepared for {path} is not recorded: predict with an export, or give the data module of "
            "its run attributes mean and std."
        )
    margin = getattr(build.known_data(data), "margin", 1.0)
    mean, std = tuple(data["mean"]), tuple(data["std"])
    return Preprocessing(int(recipe["in_channels"]), *size, mean, std, class_names(folder), margin)


def _decode(file: Path, preprocessing: Preprocessing) -> Tensor | None:
    try:
        return torch.tensor(decode_to(file.read_bytes(), str(file), preprocessing.shape, preprocessing.margin))
    except (DataError, OSError) as error:
        print(f"Left out: {error}")
        return None


def _rows(files: list[Path], logits: Tensor, preprocessing: Preprocessing, top: int) -> list[tuple[object, ...]]:
    best = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        (file, rank, index, preprocessing.name(index), f"{probability:.6f}")
        for file, indices, values in zip(files, best.indices.tolist(), best.values.tolist(), strict=True)
        for rank, (index, probability) in enumerate(zip(indices, values, strict=True), start=1)
    ]
