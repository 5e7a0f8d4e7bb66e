"""What a benchmark is made of: which sides there are, and the images that all of them train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dkel_lightning.app import build
from dkel_lightning.app.benchmark.watch import replace_method
from dkel_lightning.app.config import task_checks
from dkel_lightning.app.config.nodes.tasks import SIDES
from dkel_lightning.app.config.schema import Values
from dkel_lightning.data import ImageDataModule
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import DataError

SHAPES = {"cifar10": (3, 32, 32, 10), "cifar100": (3, 32, 32, 100), "tinyimagenet": (3, 64, 64, 200)}
"""Channels, height, width and classes of the sets that may have to be fetched."""
RANDOM_IMAGES = 50_000
"""Random images that take the place of a set's training images."""


@dataclass(frozen=True)
class Side:
    """One way of training that is measured.

    Attributes:
        label: of its row.
        kind: `plain` (the loop written by hand), `trainer` or `bare` (without Lightning).
        execution: the settings of `execution.*` that are in force for it.
        residency: where its images lie, as in `data.residency`; None: as configured.
    """

    label: str
    kind: str
    execution: Mapping[str, Any]
    residency: str | None = None

    @property
    def mode(self) -> str:
        """The label, with or without Lightning."""
        return self.label.removeprefix("bare_")


def sides(values: Values, device: torch.device) -> tuple[list[Side], dict[str, str]]:
    """List the sides to measure, in the order of the table, and say why others are left out."""
    chosen = values["benchmark"]["sides"]
    found: list[Side] = []
    missing: dict[str, str] = {}
    for label in chosen or SIDES:
        fault = task_checks.side_fault(label, values) or _absent(label, device)
        if fault is None:
            found.append(_side(label, values))
        elif chosen or label == "plain":
            missing[label] = fault
    for label, execution in (values["benchmark"]["variants"] or {}).items():
        found.append(Side(label, "trainer", {**values["execution"], **execution}))
    return found, missing


def _side(label: str, values: Values) -> Side:
    kind = "plain" if label == "plain" else "bare" if label.startswith("bare_") else "trainer"
    if label == "plain":
        return Side(label, kind, values["execution"])
    mode = label.removeprefix("bare_").removesuffix("_workers")
    return Side(label, kind, execution(mode, values), "workers" if label.endswith("_workers") else None)


def execution(mode: str, values: Values) -> dict[str, Any]:
    """Put a mode in the place of the one that is configured; `cuda_graph_compiled` is two settings."""
    name = mode.removesuffix("_compiled")
    return {**values["execution"], "name": name, "compile": name != mode}


def _absent(label: str, device: torch.device) -> str | None:
    """Say why a side cannot be on this device."""
    mode = label.removeprefix("bare_").removesuffix("_workers").removesuffix("_compiled")
    if mode == "cuda_graph" and device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    return None


# ---------------------------------------------------------------------- images


def images_of(values: Values, *, invented: bool) -> ImageDataModule:
    """Read the images, or invent random ones of the same shape and number of classes; downloads nothing."""
    data = {**values["data"], "download": False}
    images = build.datamodule({**values, "data": data})
    if invented:
        replace_method(images, "prepare_data", lambda: None)
        replace_method(images, "_read", lambda: random_images(data["name"]))
    images.prepare_data()
    images.setup()
    return images


def must_invent(values: Values) -> str | None:
    """Say why the images have to be invented; None if they are there.

    Raises:
        DataError: they are not, and what they look like is not known.
    """
    try:
        images_of(values, invented=False)
    except DataError as error:
        if values["data"]["name"] not in SHAPES:
            raise
        return str(error).split(". ")[0].split("; ")[0]
    return None


def random_images(name: str) -> ImageSet:
    """Invent a set of the shape of a known one."""
    channels, height, width, classes = SHAPES[name]
    draws = np.random.default_rng(0)

    def split(count: int) -> Images:
        pixels = draws.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
        return Images(pixels, np.arange(count, dtype=np.int64) % classes)

    return ImageSet(split(RANDOM_IMAGES), split(10 * classes), tuple(f"class {i}" for i in range(classes)))


def steps_of(values: Values, device: torch.device) -> tuple[int, int]:
    """Give the steps of a round that do not count, and those that do."""
    settings = values["benchmark"]
    warmup, steps = (1, 3) if device.type == "cpu" else (10, 100)
    return (
        warmup if settings["warmup"] is None else settings["warmup"],
        steps if settings["steps"] is None else settings["steps"],
    )


def folder_of(values: Values, run: Path) -> Path:
    """Give the folder of the results."""
    return Path(values["benchmark"]["to"]) if values["benchmark"]["to"] else run
