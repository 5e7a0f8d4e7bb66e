"""What each task needs besides the settings of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from dkel_lightning.app.config import kinds
from dkel_lightning.app.tasks import registry
from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import (
    RESUMABLE,
    choice,
    number,
    several,
    text,
    whole,
)

# What task=benchmark may measure: a loop written by hand, the Trainer in each execution mode, with images in workers,
# and the library's step without Lightning.
SIDES: tuple[str, ...] = ("plain", "eager", "compile", "cuda_graph", "cuda_graph_compiled", "eager_workers")
SIDES += ("bare_eager", "bare_compile", "bare_cuda_graph", "bare_cuda_graph_compiled")


@dataclass(frozen=True)
class TaskSettings(Settings, node="task", resumable=True):
    """What to do."""

    name: Annotated[str, choice("What to do.", *registry.TASKS), RESUMABLE] = "train"


@dataclass(frozen=True)
class CompareSettings(Settings, node="compare"):
    """task=compare."""

    methods: Annotated[
        tuple[Any, ...], kinds.variants("What is compared: methods, controls, or labels with overrides of their own.")
    ] = ("dkel", "pcl", "baseline", "baseline_smoothing", "baseline_long")
    seeds: Annotated[tuple[int, ...], kinds.seeds("Seeds with which each is trained.")] = (0, 1, 2)
    reference: Annotated[str | None, text("Label that the others are compared to; null: the first.")] = None
    compute: Annotated[
        str, choice("Length of a label: its own epochs, or as long as the reference took.", "own", "reference")
    ] = "own"
    folder: Annotated[str, text("Folder of the comparison; an earlier one is gone on with.")] = (
        "outputs/${name}/compare_${now:%Y-%m-%d_%H-%M-%S}"
    )


@dataclass(frozen=True)
class ExportSettings(Settings, node="export"):
    """task=export."""

    format: Annotated[
        str, choice("Format of the exported network.", "state_dict", "safetensors", "torch_export", "onnx")
    ] = "safetensors"
    to: Annotated[
        str | None, text("Folder of the export; null: <member>_<format> in export_<checkpoint>/ of the run.")
    ] = None
    images: Annotated[int, whole("Test images on which file and training network are compared.", 1)] = 256
    tolerance: Annotated[
        float,
        number("Largest difference of two logits, relative to the largest logit where that exceeds 1.", 0, above=True),
    ] = 0.0001
    repeats: Annotated[int, whole("Repeats of each measurement of time; 0: none is made.", 0)] = 20


@dataclass(frozen=True)
class PredictSettings(Settings, node="predict"):
    """task=predict."""

    images: Annotated[str | None, text("Image file, or folder of images, to classify.")] = None
    top: Annotated[int, whole("Most probable classes that are named of each image.", 1)] = 5
    to: Annotated[str | None, text("Folder of predictions.csv and predictions.json; null: the run's.")] = None
    batch_size: Annotated[int, whole("Images classified at once.", 1)] = 64


@dataclass(frozen=True)
class ReportSettings(Settings, node="report"):
    """task=report."""

    of: Annotated[str | None, text("Folder of the run, sweep or comparison to report on; null: the newest.")] = None


@dataclass(frozen=True)
class BenchmarkSettings(Settings, node="benchmark"):
    """task=benchmark."""

    sides: Annotated[
        tuple[str, ...] | None,
        several("What is measured; null: all that the device and the method allow.", choice("", *SIDES)),
    ] = None
    variants: Annotated[
        Mapping[str, Any] | None,
        kinds.executions("Further sides through the Trainer, {label: {key of execution: value}}.", SIDES),
    ] = None
    rounds: Annotated[int, whole("Turns of every side.", 1)] = 7
    steps: Annotated[int | None, whole("Steps of a turn that count; null: 3 on a CPU, 100 on a GPU.", 1)] = None
    warmup: Annotated[int | None, whole("Steps before them that do not; null: 1 on a CPU, 10 on a GPU.", 0)] = None
    to: Annotated[str | None, text("Folder of benchmark.csv, .md and .png; null: the run's.")] = None
