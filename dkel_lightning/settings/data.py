"""Settings of the data: source, split, augmentation and loading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from dkel_lightning.settings.declarations import SEEDS, Settings, choice, number, several, switch, text, whole

FACTS = ("num_classes", "image_shape", "class_names", "mean", "std", "batch_keys")
"""Attributes that a data module may have; settings of these names replace missing ones."""


@dataclass(frozen=True)
class LabelNoise(Settings, node="data.label_noise"):
    """Wrong labels among those trained on."""

    kind: Annotated[str, choice("A wrong label is any other class, or the next one.", "symmetric", "pair")] = (
        "symmetric"
    )
    rate: Annotated[float, number("Share of wrong labels; exact.", 0, 1)] = 0.0
    seed: Annotated[int, whole("Seed of that choice.", 0, SEEDS)] = 0


@dataclass(frozen=True)
class DataSettings(Settings, node="data"):
    """Settings of every data set."""

    name: Annotated[str, text("Data set.")]
    root: Annotated[str, text("Folder or file of the data set.")] = "data"
    download: Annotated[bool, switch("Fetch what is missing, where the set can be fetched.")] = True
    batch_size: Annotated[int, whole("Training samples a batch and process.", 2, 1_000_000)] = 128
    eval_batch_size: Annotated[int, whole("Evaluation samples a batch and process.", 1, 1_000_000)] = 512
    padding: Annotated[
        int | None, whole("Pixels around a training image before its crop; null: as the set defines.", 0, 256)
    ] = None
    flip: Annotated[bool | None, switch("Mirror half of the training views; null: as the set defines.")] = None
    augment: Annotated[
        str, choice("What follows crop and flip, by torchvision.", "standard", "randaugment", "trivial")
    ] = "standard"
    augment_strong: Annotated[
        str | None,
        choice(
            "The same in the students' views, where teachers have their own (method.views); null: augment.",
            "randaugment",
            "trivial",
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None,
        several("Channel means of images in [0, 1]; null: as the set defines, or computed.", number("", 0, 1)),
    ] = None
    std: Annotated[tuple[float, ...] | None, several("Channel deviations, likewise.", number("", 1e-6, 1000))] = None
    validation: Annotated[
        float, number("Share of the training images held out for validation.", 0, 0.9, above=True)
    ] = 0.1
    test: Annotated[
        float, number("Share held out for the test, where the set has no test images.", 0, 0.9, above=True)
    ] = 0.2
    split_seed: Annotated[int, whole("Seed of what is held out, of limit and of labelled.", 0, SEEDS)] = 0
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
    workers: Annotated[int, whole("Processes that read images, for workers.", 0, 1024)] = 2
    drop_last: Annotated[bool, switch("Leave out a last, smaller training batch.")] = False
    limit: Annotated[int | None, whole("Use only this many training images, stratified.", 2, 1_000_000_000)] = None
    labelled: Annotated[
        int | None, whole("Hide the labels of all but this many training images, stratified.", 1, 1_000_000_000)
    ] = None
    unlabelled_share: Annotated[
        float | None,
        number("Share of each training batch that has no labels; 0 leaves them out; null: as they come.", 0, 0.99),
    ] = None
    label_noise: LabelNoise = field(default_factory=LabelNoise)
