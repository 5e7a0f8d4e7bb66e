"""Settings of the data: source, split, augmentation and loading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from dkel_lightning.settings.declarations import SEEDS, Settings, choice, number, several, switch, text, whole

FACTS = ("num_classes", "image_shape", "class_names", "mean", "std", "batch_keys")
"""Attributes of a data module; settings of these names replace missing ones."""


@dataclass(frozen=True)
class LabelNoise(Settings, node="data.label_noise"):
    """Artificially wrong training labels."""

    kind: Annotated[str, choice("Wrong labels: any other class, or the next class.", "symmetric", "pair")] = "symmetric"
    rate: Annotated[float, number("Share of wrong training labels.", 0, 1)] = 0.0
    seed: Annotated[int, whole("Seed of the wrong labels.", 0, SEEDS)] = 0


@dataclass(frozen=True)
class DataSettings(Settings, node="data"):
    """Settings of every data set."""

    name: Annotated[str, text("Data set.")]
    root: Annotated[str, text("Folder or file of the data set.")] = "data"
    download: Annotated[bool, switch("Download missing files, if the data set supports it.")] = True
    batch_size: Annotated[int, whole("Training samples per batch and process.", 2, 1_000_000)] = 128
    eval_batch_size: Annotated[int, whole("Evaluation samples per batch and process.", 1, 1_000_000)] = 512
    padding: Annotated[
        int | None,
        whole("Padding of training images before the random crop, in pixels; null: the data set's default.", 0, 256),
    ] = None
    flip: Annotated[bool | None, switch("Mirror half of the training views; null: the data set's default.")] = None
    augment: Annotated[
        str, choice("torchvision's policy after crop and flip.", "standard", "randaugment", "trivial")
    ] = "standard"
    augment_strong: Annotated[
        str | None,
        choice(
            "Policy of the students' views if teachers have their own (method.views); null: augment.",
            "randaugment",
            "trivial",
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None,
        several("Channel means of images in [0, 1]; null: the data set's, or computed.", number("", 0, 1)),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        several("Channel deviations of images in [0, 1]; null: as for mean.", number("", 1e-6, 1000)),
    ] = None
    validation: Annotated[
        float, number("Share of the training images held out for validation.", 0, 0.9, above=True)
    ] = 0.1
    test: Annotated[
        float, number("Share held out for the test if the data set has no test images.", 0, 0.9, above=True)
    ] = 0.2
    split_seed: Annotated[int, whole("Seed of the held-out images, of limit and of labelled.", 0, SEEDS)] = 0
    selection: Annotated[
        str, choice("What selects the epoch and the peer; paper: the test set.", "validation", "paper")
    ] = "validation"
    residency: Annotated[
        str,
        choice(
            "Where images are kept; auto: on the device up to 2 GiB. The two draw different augmentations.",
            "auto",
            "device",
            "workers",
        ),
    ] = "auto"
    workers: Annotated[int, whole("Worker processes, if residency is workers.", 0, 1024)] = 2
    drop_last: Annotated[bool, switch("Drop a last, smaller training batch.")] = False
    limit: Annotated[
        int | None, whole("Number of training images to use, stratified; null: all.", 2, 1_000_000_000)
    ] = None
    labelled: Annotated[
        int | None, whole("Number of training images that keep their labels, stratified; null: all.", 1, 1_000_000_000)
    ] = None
    unlabelled_share: Annotated[
        float | None,
        number("Share of unlabelled images in each training batch; 0 drops them; null: not mixed.", 0, 0.99),
    ] = None
    label_noise: LabelNoise = field(default_factory=LabelNoise)
