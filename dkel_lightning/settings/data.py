"""The images: which, where, and how they are split and read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import (
    COMPUTED,
    MACHINE,
    SEEDS,
    choice,
    number,
    registered,
    several,
    switch,
    text,
    whole,
)

FACTS = ("num_classes", "image_shape", "class_names", "mean", "std", "batch_keys")
"""What a data module may say by its attributes; where it does not, the user may by settings of these names."""


@dataclass(frozen=True)
class LabelNoise(Settings, node="data.label_noise"):
    """Wrong labels among those trained on."""

    kind: Annotated[
        str,
        choice("Wrong labels among those trained on: any other class, or the next one.", "none", "symmetric", "pair"),
    ] = "none"
    rate: Annotated[float, number("Share of wrong labels; exact.", 0, 1)] = 0.0
    seed: Annotated[int, whole("Seed of that choice.", 0, SEEDS)] = 0

    def contradictions(self) -> Iterator[str]:
        """Say it of a rate without a kind."""
        if self.kind == "none" and self.rate > 0:
            yield f"{self.node}.rate={self.rate:g} without a kind: choose {self.node}.kind=symmetric or pair."


@dataclass(frozen=True)
class DataSettings(Settings, node="data"):
    """What every data set takes."""

    name: Annotated[str, registered("Data set.")]
    root: Annotated[str, text("Folder or file of the data set."), MACHINE] = "data"
    download: Annotated[bool, switch("Fetch what is missing, where the set can be fetched."), MACHINE] = True
    batch_size: Annotated[int, whole("Training samples a batch and process.", 2, 1_000_000)] = 128
    eval_batch_size: Annotated[int, whole("Evaluation samples a batch and process.", 1, 1_000_000)] = 512
    padding: Annotated[
        int | None, whole("Pixels around a training image before its crop; null: as the set defines.", 0, 256)
    ] = None
    flip: Annotated[bool | None, switch("Mirror half of the training views; null: as the set defines.")] = None
    augment: Annotated[
        str, choice("What follows crop and flip, by torchvision.", "standard", "randaugment", "trivial", "augmix")
    ] = "standard"
    mean: Annotated[
        tuple[float, ...] | None,
        several("Channel means of images in [0, 1]; null: as the set defines, or computed.", number("", 0, 1)),
        COMPUTED,
    ] = None
    std: Annotated[
        tuple[float, ...] | None, several("Channel deviations, likewise.", number("", 1e-6, 1000)), COMPUTED
    ] = None
    validation: Annotated[
        float, number("Share of the training images held out for validation.", 0, 0.9, above=True)
    ] = 0.1
    split_seed: Annotated[int, whole("Seed of that choice.", 0, SEEDS)] = 0
    selection: Annotated[str, choice("What chooses epoch and peer.", "validation", "paper")] = "validation"
    residency: Annotated[
        str,
        choice(
            "Where training images live; auto: on the device up to 2 GiB. The two augment with different draws.",
            "auto",
            "device",
            "workers",
        ),
    ] = "auto"
    workers: Annotated[int, whole("Processes that read images, for workers.", 0, 1024), MACHINE] = 2
    drop_last: Annotated[bool, switch("Leave out a last, smaller training batch.")] = False
    limit: Annotated[int | None, whole("Use only this many training images, stratified.", 2, 1_000_000_000)] = None
    label_noise: LabelNoise = field(default_factory=LabelNoise)


@dataclass(frozen=True)
class ResizedImages(Settings, node="data"):
    """Images of any size, made equal."""

    image_size: Annotated[int, whole("Side to which images are resized and cropped (folders of images).", 1, 2048)] = 64


@dataclass(frozen=True)
class CachedImages(Settings, node="data"):
    """Images that are decoded once, into a cache."""

    cache_dir: Annotated[str | None, text("Folder of the decoded images; null: dkel_cache in data.root.")] = None


@dataclass(frozen=True)
class Columns(Settings, node="data"):
    """Where a table holds images and labels."""

    image_column: Annotated[str | None, text("Column of the images (hf); null: the only one of images.")] = None
    label_column: Annotated[str | None, text("Column of the labels (hf); null: the only one of classes.")] = None


NODES: dict[str, type[Settings]] = {
    "_base": DataSettings,
    "_resized": ResizedImages,
    "_cached": CachedImages,
    "_columns": Columns,
}
"""By the name under which the file of a data set takes them up: those of all sets, and those that some add."""
