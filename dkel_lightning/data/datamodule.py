"""The base class of our data modules: batches, splits and settings."""

from __future__ import annotations

import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from dkel_lightning.data.augment import CropFlip
from dkel_lightning.data.imageset import Images, ImageSet, StoredImages, channel_statistics, check_image_set
from dkel_lightning.data.label_noise import with_wrong_labels
from dkel_lightning.data.loaders import EvaluationLoader, TrainingLoader
from dkel_lightning.data.own import ClassificationData
from dkel_lightning.data.sources import DeviceImages, Source, WorkerImages
from dkel_lightning.data.splits import hide_labels, hold_out_share, limited
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.settings.data import DataSettings, LabelNoise
from dkel_lightning.settings.declarations import from_mapping, settings_of

MOST_ON_DEVICE = 2 << 30
"""Bytes of images up to which `residency="auto"` uses the device."""


class ImageDataModule(ClassificationData, ABC):
    """Train, validation and test loaders of an image classification set.

    Training batches are (views float32 `[B, V, C, H, W]`, labels, indices), evaluation batches (images `[B, C, H, W]`,
    labels, indices); indices are positions in the split. Without a Trainer, call `prepare_data()` and `setup()`; the
    loaders are then for the CPU and one process.

    Subclasses implement `read`, and `prepare_data` to download or decode.

    Attributes after `setup`: `num_classes`, `class_names`, `image_shape`, `train_size`, `unlabelled_size` (training
    images with the label -1: unknown), `val_size`, `test_size`, and `true_labels`, the training labels `[N]` (int64)
    before label noise.

    `DataSettings` documents the arguments, except for two:

    Args:
        views: Views of each training sample: 1, one for each peer, or one for each peer and then one for each teacher.
        seed: Seed of order and augmentation, but not of the splits.

    `validation` and `test` are ignored if the data set has such images. With `selection="paper"` no training images are
    held out, and the validation loader yields the test set. `split_seed` also selects the images of `limit` and
    `labelled`. `label_noise` changes known training labels only.
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        views: int = 1,
        padding: int | None = None,
        flip: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        split_seed: int = 0,
        validation: float = 0.1,
        test: float = 0.2,
        selection: str = "validation",
        residency: str = "auto",
        workers: int = 2,
        drop_last: bool = False,
        limit: int | None = None,
        labelled: int | None = None,
        unlabelled_share: float | None = None,
        label_noise: Mapping[str, Any] | None = None,
        augment: str = "standard",
        augment_strong: str | None = None,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.download = download
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.views = views
        self.padding = self.default_padding if padding is None else padding
        self.flip = self.default_flip if flip is None else flip
        self.policy, self.augment_strong = augment, augment_strong
        self.mean = self.default_mean if mean is None else tuple(mean)
        self.std = self.default_std if std is None else tuple(std)
        self.seed = seed
        self.split_seed = split_seed
        self.validation, self.test = validation, test
        self.selection = selection
        self.residency = residency
        self.workers = workers
        self.drop_last = drop_last
        self.limit = limit
        self.labelled = labelled
        self.unlabelled_share = unlabelled_share
        self.label_noise = from_mapping(LabelNoise, label_noise or {}, "data.label_noise")
        self._check_settings()
        self._splits: dict[str, StoredImages] = {}
        self._resident: dict[tuple[int, torch.device], Tensor] = {}
        self._augment: CropFlip | None = None

    # Defaults of a data set.

    default_padding = 4
    default_flip = True
    default_mean: tuple[float, ...] | None = None
    default_std: tuple[float, ...] | None = None

    @abstractmethod
    def read(self) -> ImageSet:
        """Read the images; called on every process after `prepare_data`."""

    # Lightning's hooks.

    def setup(self, stage: str | None = None) -> None:
        """Read the images and split them, once."""
        if self._splits:
            return
        data = self.read()
        check_image_set(data, str(self.root))
        self.class_names = data.class_names
        self.num_classes = len(data.class_names)
        channels, height, width = data.train.images.shape[1:]
        self.image_shape = (channels, height, width)
        self._augment = self._make_augment(data)
        self.normalize = self._augment.normalize
        self._splits = self._divide(data)
        self.train_size, self.val_size, self.test_size = (len(self._splits[s]) for s in ("train", "val", "test"))
        self.unlabelled_size = int((self.true_labels < 0).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return a checksum of which training images were chosen, and of their labels."""
        train = self._stored("train")
        return {"train": zlib.crc32(train.labels.numpy().tobytes() + train.chosen.tobytes())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise an error if a resumed training has other labels, or another number of images."""
        fits = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if fits and state_dict != self.state_dict():
            raise DataError(f"{self.root} is not the data of the resumed run: its labels or their number have changed.")

    def teardown(self, stage: str | None = None) -> None:
        self._resident.clear()

    def train_dataloader(self) -> TrainingLoader:
        """Return a new loader of training batches in the Trainer's epoch."""
        device, rank, world = self._place()
        return TrainingLoader(
            self._source("train", device, self.views),
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=self.trainer.current_epoch if self.trainer is not None else 0,
            rank=rank,
            world=world,
            drop_last=self.drop_last,
            unlabelled_share=self.unlabelled_share,
        )

    def val_dataloader(self) -> EvaluationLoader:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EvaluationLoader:
        return self._evaluation_loader("test")

    # Used by callbacks and tasks.

    def wrongly_labelled(self, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield images with a wrong label: batches (images, wrong labels, true labels) on the CPU.

        Images are float32 `[B, C, H, W]`, normalised but not augmented; at most `most` images, spread over the set.
        """
        stored = self._stored("train")
        wrong = torch.nonzero(stored.labels != self.true_labels).flatten()
        if len(wrong) > most:
            wrong = wrong[torch.arange(most) * len(wrong) // most]
        for chosen in torch.split(wrong, self.eval_batch_size):
            if len(chosen):
                yield self.augment.normalize(stored.read(chosen)), stored.labels[chosen], self.true_labels[chosen]

    def balanced_weights(self) -> list[float]:
        """Return the weight N / (C N_c) of each class, from known labels."""
        labels = self._stored("train").labels
        counts = torch.bincount(labels[labels >= 0], minlength=self.num_classes)
        return (counts.sum() / (self.num_classes * counts.clamp_min(1))).tolist()

    @property
    def augment(self) -> CropFlip:
        """The training augmentation with its normalisation."""
        assert self._augment is not None, "call setup() first"
        return self._augment

    @property
    def chosen_residency(self) -> str:
        """`residency`, where `auto` depends on the size of the images."""
        if self.residency != "auto":
            return self.residency
        arrays = {id(split.images): split.images.nbytes for split in self._splits.values()}
        return "device" if sum(arrays.values()) <= MOST_ON_DEVICE else "workers"

    def _place(self) -> tuple[torch.device, int, int]:
        """Return device, rank and number of processes."""
        trainer = self.trainer
        if trainer is None:
            return torch.device("cpu"), 0, 1
        return trainer.strategy.root_device, trainer.global_rank, trainer.world_size

    def _evaluation_loader(self, name: str) -> EvaluationLoader:
        device, rank, world = self._place()
        return EvaluationLoader(self._source(name, device), batch_size=self.eval_batch_size, rank=rank, world=world)

    def _source(self, name: str, device: torch.device, views: int = 1) -> Source:
        split = self._stored(name)
        if self.chosen_residency == "device":
            images, rows = self._on_device(split.images, device), torch.from_numpy(split.chosen).to(device)
            return DeviceImages(images, split.labels.to(device), self.augment, views, rows=rows)
        return WorkerImages(split, self.augment, views, workers=self.workers, device=device)

    def _on_device(self, images: Any, device: torch.device) -> Tensor:
        """Return an array on the device, kept until `teardown`; on a CPU without a copy, also of a memory map."""
        if (id(images), device) not in self._resident:
            array = np.ascontiguousarray(images if isinstance(images, np.ndarray) else images[:])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a memory map is read-only
                self._resident[id(images), device] = torch.from_numpy(array).to(device)
        return self._resident[id(images), device]

    def _divide(self, data: ImageSet) -> dict[str, StoredImages]:
        images, labels = data.train.images, data.train.labels.astype(np.int64)
        train = np.arange(len(labels))
        if data.test is not None:
            test = _whole(data.test)
        else:
            train, rows = hold_out_share(labels, self.test, self.split_seed, "test")
            test = StoredImages(images, labels[rows], rows)
        if self.selection == "paper":
            val = test
        elif data.val is not None:
            val = _whole(data.val)
        else:
            kept, held_out = hold_out_share(labels[train], self.validation, self.split_seed, "validation")
            val = StoredImages(images, labels[train[held_out]], train[held_out])
            train = train[kept]
        if self.limit is not None:
            train = train[limited(labels[train], self.limit, self.split_seed)]
        true = labels[train] if self.labelled is None else hide_labels(labels[train], self.labelled, self.split_seed)
        if self.unlabelled_share == 0:
            train, true = train[true >= 0], true[true >= 0]
        self.true_labels = torch.from_numpy(true)
        # Noise comes last: splits do not depend on wrong labels, and the rate is exact.
        known, noisy = true >= 0, true.copy()
        noisy[known] = with_wrong_labels(true[known], len(data.class_names), self.label_noise)
        return {"train": StoredImages(images, noisy, train), "val": val, "test": test}

    def _make_augment(self, data: ImageSet) -> CropFlip:
        mean, std = self.mean, self.std
        if mean is None or std is None:
            # Of all training images, so that the inputs do not depend on selection and limit.
            measured = channel_statistics(data.train.images)
            mean, std = mean or measured[0], std or measured[1]
        channels = data.train.images.shape[1]
        if channels not in (1, 3) and {self.policy, self.augment_strong} - {"standard", None}:
            raise ConfigError(f"data.augment={self.policy} takes images of 1 or 3 channels, the data has {channels}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ConfigError(f"data.{name} has {len(values)} values for images of {channels} channel(s)")
        return CropFlip(self.padding, self.flip, mean, std, self.policy, self.augment_strong)

    def _stored(self, name: str) -> StoredImages:
        assert self._splits, "call prepare_data() and setup() first"
        return self._splits[name]

    def _check_settings(self) -> None:
        values = {name: value for name, value in vars(self).items() if name not in ("root", "label_noise")}
        values["augment"] = self.policy
        settings = settings_of(DataSettings).items()
        mistakes = [item.error(f"data.{name}", values[name]) for name, item in settings if name in values]
        if any(mistakes):
            raise ConfigError("\n".join(filter(None, mistakes)))


def _whole(split: Images) -> StoredImages:
    return StoredImages(split.images, split.labels.astype(np.int64), np.arange(len(split)))
