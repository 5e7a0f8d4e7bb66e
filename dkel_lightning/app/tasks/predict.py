"""task=predict: name the classes of images with a checkpoint or an exported file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from dkel_lightning.app import build
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.tables import print_table, write_csv
from dkel_lightning.app.tasks.evaluate import loaded
from dkel_lightning.app.tasks.export import preprocessing_of
from dkel_lightning.data.files.decode import decode_to
from dkel_lightning.data.readers.image_folder import image_bytes, images_in
from dkel_lightning.errors import CheckpointError, ConfigError, DataError
from dkel_lightning.export import Exported, Preprocessing, formats, open_exported
from dkel_lightning.export.metadata import Record
from dkel_lightning.networks import logits_of
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.texts import printable

_SHOWN = 20
_COLUMNS = 5
"""Rows and columns of the table; the files hold all."""


@dataclass(frozen=True)
class Guess:
    """A class and its probability."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class PredictResult:
    """What a prediction gave.

    Attributes:
        guesses: the most probable classes of each image that could be read, by file, most probable first.
        unreadable: why each of the others could not be read.
        folder: where predictions.csv and predictions.json lie.
    """

    guesses: Mapping[Path, tuple[Guess, ...]]
    unreadable: Mapping[Path, str]
    folder: Path


def predict(run: Run) -> PredictResult:
    """Classify `predict.images` with `values["checkpoint"]`, print a table and write predictions.csv and .json.

    Raises:
        DataError: not one image could be read.
        DkelError: with the thing at fault and its cure.
    """
    settings = run.values["predict"]
    files = images_in(Path(settings["images"]).expanduser())
    opened = _opened(Path(run.values["checkpoint"]), run.values)
    guesses: dict[Path, tuple[Guess, ...]] = {}
    unreadable: dict[Path, str] = {}
    batches = [files[start : start + settings["batch_size"]] for start in range(0, len(files), settings["batch_size"])]
    # On the error stream, so that what is printed can be piped.
    decoded = _decoded(batches, opened.record.preprocessing)
    console = Console(stderr=True)
    for batch in track(decoded, "Predicting", len(batches), console=console, disable=not sys.stderr.isatty()):
        images = {path: found for path, found in batch if isinstance(found, Tensor)}
        unreadable |= {path: found for path, found in batch if isinstance(found, str)}
        if images:
            found = _classify(opened, torch.stack([*images.values()]), settings["top"])
            guesses |= dict(zip(images, found, strict=True))
    if not guesses:
        why = next(iter(unreadable.values()))
        raise DataError(f"None of the {len(files)} images in {settings['images']} could be read. The first: {why}")
    result = PredictResult(guesses, unreadable, Path(settings["to"]) if settings["to"] else run.folder)
    _write(result, opened)
    _show(result, opened)
    return result


def _decoded(batches: Sequence[Sequence[Path]], known: Preprocessing) -> Iterator[list[tuple[Path, Tensor | str]]]:
    """Yield the images (uint8 `[C, H, W]`) of each batch, or why they cannot be read, while the next one is decoded.

    Threads are enough: Pillow decodes and scales without Python's lock.
    """
    with ThreadPoolExecutor() as pool:
        submitted = ([pool.submit(_read, path, known) for path in batch] for batch in batches)
        try:
            for batch, _ in pairwise(chain(submitted, [[]])):  # which asks for the next one before it gives this
                yield [each.result() for each in batch]
        finally:  # whoever ends early waits for no more than what is being decoded
            pool.shutdown(cancel_futures=True)


def _read(path: Path, known: Preprocessing) -> tuple[Path, Tensor | str]:
    try:
        return path, torch.from_numpy(np.array(decode_to(image_bytes(path), str(path), known.shape, known.margin)))
    except DataError as error:
        return path, str(error)


def _classify(opened: Exported, images: Tensor, top: int) -> list[tuple[Guess, ...]]:
    known = opened.record.preprocessing
    probabilities = opened.classify(known.normalised(images)).float().softmax(-1).cpu()
    if not bool(probabilities.isfinite().all()):
        raise CheckpointError(
            f"{opened.path} gives NaN for an image: its weights are no numbers, or its outputs overflow; use another "
            "checkpoint or export."
        )
    best = probabilities.topk(min(top, probabilities.shape[1]))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [tuple(Guess(i, known.name(i), p) for i, p in zip(indices, values, strict=True)) for indices, values in rows]


# ---------------------------------------------------------------------- which network


def _opened(path: Path, values: Mapping[str, Any]) -> Exported:
    opened = _exported(path, values) if formats.is_exported(path) else _checkpoint(path, values)
    if opened.record.preprocessing.channels not in (1, 3):
        raise ConfigError(
            f"{path} takes images of {opened.record.preprocessing.channels} channels, which image files do not have: "
            "use the exported file from your own code."
        )
    return opened


def _exported(path: Path, values: Mapping[str, Any]) -> Exported:
    opened = open_exported(path, trust=values["trust"])
    network, _, peer = opened.record.member.partition("_")
    held = {"network": network, "peer": peer or "best"}  # of an ensemble no peer can be chosen
    asked = {key: value for key, value in values["deploy"].items() if value != "auto"}
    others = [f"deploy.{key}={value}" for key, value in asked.items() if str(value) != held[key]]
    if others:
        raise ConfigError(
            f"{', '.join(others)}: {path} holds one network, {opened.record.member}; leave it out, or predict with the "
            "checkpoint that it was exported from."
        )
    return opened


def _checkpoint(path: Path, values: Mapping[str, Any]) -> Exported:
    module = loaded(path, values)[0].eval()
    prepared = preprocessing_of(module, path, values)
    record = Record("checkpoint", path.name, module.deployed_member(), module.student.num_classes, prepared)
    device = build.device(values)
    network = module.deploy().to(device)

    def classify(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return logits_of(network(images.to(device)))

    return Exported(path, record, classify)


# ---------------------------------------------------------------------- what is written and shown


def _write(result: PredictResult, opened: Exported) -> None:
    rows: list[list[object]] = [["file", "rank", "class", "name", "probability"]]
    for path, guesses in result.guesses.items():
        for rank, guess in enumerate(guesses, start=1):
            rows.append([path, rank, guess.index, guess.name, f"{guess.probability:.6f}"])
    write_csv(result.folder / "predictions.csv", rows)
    content = {
        "network": str(opened.path),
        "member": opened.record.member,
        "preprocessing": opened.record.preprocessing.as_dict(),
        "predictions": [
            {"file": str(path), "top": [vars(guess) for guess in guesses]} for path, guesses in result.guesses.items()
        ],
        "unreadable": [{"file": str(path), "reason": why} for path, why in result.unreadable.items()],
    }
    write_text(result.folder / "predictions.json", json.dumps(content, indent=2) + "\n")


def _show(result: PredictResult, opened: Exported) -> None:
    known = opened.record.preprocessing
    most = min(_COLUMNS, len(next(iter(result.guesses.values()))))
    heading = ["image", *(f"{rank}." for rank in range(1, most + 1))]
    shown = [*result.guesses.items()][:_SHOWN]
    rows = [[path.name, *(f"{each.name} {each.probability:.1%}" for each in found[:most])] for path, found in shown]
    print_table(f"{opened.record.member} of {opened.path}", heading, rows)
    if len(result.guesses) > _SHOWN:
        print(f"... and {len(result.guesses) - _SHOWN} more in predictions.csv")
    if result.unreadable:
        print(f"{len(result.unreadable)} of {len(result.guesses) + len(result.unreadable)} could not be read:")
        for why in list(result.unreadable.values())[:10]:
            print(f"  {printable(why)}")
    print(f"How images are prepared: {known.steps}.")
    print(f"{len(result.guesses)} images. Written to {result.folder}: predictions.csv, predictions.json")
