"""The Lightning data module of every data set here: the same batches, splits and settings whatever reads the images."""

from __future__ import annotations

import math
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dkel_lightning.data.augment import CropFlip
from dkel_lightning.data.batch import Batch
from dkel_lightning.data.device_loaders import DeviceImages, EvaluationLoader, Source, TrainingLoader
from dkel_lightning.data.imageset import Images, ImageSet, StoredImages, channel_statistics, check_image_set
from dkel_lightning.data.label_noise import with_wrong_labels
from dkel_lightning.data.own import ClassificationData
from dkel_lightning.data.residency import Residency, choose_residency
from dkel_lightning.data.splits import limited, validation_split
from dkel_lightning.data.worker_loaders import WorkerImages
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.settings.data import DataSettings, LabelNoise
from dkel_lightning.settings.declarations import from_mapping, settings_of

_PIECE_BYTES = 16 << 20


class _Place(NamedTuple):
    """The device and process that the loaders serve."""

    device: torch.device
    rank: int
    world: int


class ImageDataModule(ClassificationData, ABC):
    """Train, validation and test loaders of an image classification set.

    Training batches are (views float32 `[B, V, C, H, W]`, labels, indices), evaluation batches (images `[B, C, H, W]`,
    labels, indices); indices count within the split. It also works without a Trainer: `prepare_data()`, `setup()`, then
    the loaders, on the CPU and for one process.

    A data set says how its images are read (`read`, after `prepare_data`, which downloads and decodes) and is known by
    its name once `register_data` has it.

    Attributes known after `setup`: `num_classes`, `class_names`, `image_shape`, `train_size`, `val_size`, `test_size`,
    and `true_labels`, an int64 tensor `[N]` of the training labels before label noise, by sample index.

    Arguments are explained where they are declared, in `DataSettings`, but for two:

    Args:
        views: Views of each training sample: 1, or one for each peer.
        seed: Seed of order and augmentation. It never decides which images are held out.

    Where the set brings validation images, `validation` is not used. With `selection="paper"` all training images are
    trained on, and the validation loader gives the test set. `split_seed` chooses what `limit` leaves, too. Only labels
    that are trained on are made wrong by `label_noise`. A run that goes on keeps what `residency="auto"` decided, since
    images on the device and in worker processes are augmented with other draws.

    Raises:
        ConfigError: A setting is out of the range that `DataSettings` declares.
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
        selection: str = "validation",
        residency: str = "auto",
        workers: int = 2,
        drop_last: bool = False,
        limit: int | None = None,
        label_noise: Mapping[str, Any] | None = None,
        padding_mode: str = "constant",
        augment: str = "standard",
        erasing: float = 0.0,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.download = download
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.views = views
        self.padding = self.default_padding if padding is None else padding
        self.padding_mode = padding_mode
        self.flip = self.default_flip if flip is None else flip
        self.policy = augment
        self.erasing = erasing
        self.balanced = balanced
        self.mean = self.default_mean if mean is None else tuple(mean)
        self.std = self.default_std if std is None else tuple(std)
        self.seed = seed
        self.split_seed = split_seed
        self.validation = validation
        self.selection = selection
        self.residency = residency
        self.workers = workers
        self.drop_last = drop_last
        self.limit = limit
        self.label_noise = from_mapping(LabelNoise, label_noise or {}, "data.label_noise")
        self._check_settings()
        self._splits: dict[str, StoredImages] = {}
        self._resident: dict[tuple[str, torch.device], dict[str, Tensor | None]] = {}
        self._residencies: dict[torch.device, Residency] = {}
        self._augment: CropFlip | None = None

    # What a data set defines.

    default_padding = 4
    default_flip = True
    default_mean: tuple[float, ...] | None = None
    default_std: tuple[float, ...] | None = None

    @abstractmethod
    def read(self) -> ImageSet:
        """Read the images; called on every process after `prepare_data`."""

    # Lightning's hooks.

    def setup(self, stage: str | None = None) -> None:
        """Read the images and divide them; does nothing the second time.

        Raises:
            DataError: The images are missing, damaged or inconsistent.
            ConfigError: A setting does not fit the images.
        """
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

    def state_dict(self) -> dict[str, Any]:
        """Return what tells this data from other data, and where its images lie; kept in every checkpoint."""
        return {**self._fingerprint(), "residency": self.chosen_residency}

    def _fingerprint(self) -> dict[str, Any]:
        train = self._splits_or_error()["train"]
        return {
            "classes": self.num_classes,
            "shape": list(self.image_shape),
            "sizes": [self.train_size, self.val_size, self.test_size],
            "labels": zlib.crc32(train.labels.cpu().numpy().tobytes()),
            "chosen": zlib.crc32(train.chosen.tobytes()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other data than the run began with; `residency="auto"` stays as it was decided then.

        Raises:
            DataError: sizes, shape, classes, training labels or the choice of training images differ.
        """
        wrong = [
            f"{key} {state_dict[key]} then, {ours} now"
            for key, ours in self._fingerprint().items()
            if state_dict.get(key, ours) != ours  # an older checkpoint may lack a key
        ]
        if wrong:
            raise DataError(f"{self.root} is not the data that this run began with ({'; '.join(wrong)}).")
        kept = state_dict.get("residency")
        training = self.trainer is not None and self.trainer.state.fn == "fit"
        if training and self.residency == "auto" and kept in ("device", "workers"):
            # The two draw their augmentation differently, and the free memory of another hour must not choose.
            self._residencies[self._place().device] = kept

    def teardown(self, stage: str | None = None) -> None:
        """Let go of the images on the device."""
        self._resident.clear()

    def train_dataloader(self) -> TrainingLoader:
        """Return a new loader of training batches, in the epoch that the Trainer is in.

        With the Trainer's `overfit_batches` the order is that of epoch 0 in every epoch.
        """
        loader = self._training_loader(self._place())
        # Lightning sets this attribute without declaring it.
        loader.fixed_order = bool(getattr(self.trainer, "overfit_batches", 0))
        return loader

    def training_loader_on(self, device: torch.device) -> TrainingLoader:
        """Return a loader of training batches for a loop of one's own, in one process, on any device."""
        return self._training_loader(_Place(device, 0, 1))

    def _training_loader(self, place: _Place) -> TrainingLoader:
        return TrainingLoader(
            self._source("train", place, self.views),
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=self.trainer.current_epoch if self.trainer is not None else 0,
            rank=place.rank,
            world=place.world,
            drop_last=self.drop_last,
            balanced=self.balanced,
        )

    def _source(self, name: str, place: _Place, views: int = 1) -> Source:
        stored = self._splits_or_error()[name]
        if self._residency(place) == "device":
            return DeviceImages(augment=self.augment, views=views, **self._on_device(name, place.device))
        cores = os.cpu_count() or 1
        most = max(32, 4 * cores)
        if self.workers > most:
            raise ConfigError(f"data.workers={self.workers}, and this machine has {cores} cores: give {most} at most.")
        return WorkerImages(stored, self.augment, views, workers=self.workers, device=place.device)

    def val_dataloader(self) -> EvaluationLoader:
        """Return the loader that chooses epochs: held-out training images, or the test set for `selection="paper"`."""
        return self._evaluation("val")

    def test_dataloader(self) -> EvaluationLoader:
        """Return the loader of the test set."""
        return self._evaluation("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """Return the loader of the test set."""
        return self._evaluation("test")

    # For the rest of the library.

    def initialisation_batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield training batches keyed by (seed, "init", rank) from a loader of their own, on its device or the CPU."""
        return self.train_dataloader().initialisation_batches(seed, steps)

    def wrongly_labelled(self, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield images whose label was made wrong, as evaluation sees them, with their wrong and true labels.

        Batches (float32 `[B, C, H, W]`, `[B]`, `[B]`) on the CPU, in all `most` images at most, spread over the set.
        """
        stored = self._splits_or_error()["train"]
        wrong = torch.nonzero(stored.labels != self.true_labels).flatten()
        if len(wrong) > most:
            wrong = wrong[torch.arange(most) * len(wrong) // most]
        for chosen in torch.split(wrong, self.eval_batch_size):
            if len(chosen):
                images = self.augment.normalize(stored.read(chosen))
                yield images, stored.labels[chosen], self.true_labels[chosen]

    def balanced_weights(self) -> list[float]:
        """Give each class the weight N / (C N_c), so that all weigh alike among the training images."""
        counts = torch.bincount(self._splits_or_error()["train"].labels, minlength=self.num_classes)
        return (counts.sum() / (self.num_classes * counts.clamp_min(1))).tolist()

    @property
    def training_images(self) -> StoredImages:
        """The images that are trained on, as they are stored."""
        return self._splits_or_error()["train"]

    @property
    def augment(self) -> CropFlip:
        """The training augmentation; it knows the constants of the normalisation."""
        self._splits_or_error()
        assert self._augment is not None
        return self._augment

    @property
    def chosen_residency(self) -> Residency:
        """Where the images lie: `residency`, with `auto` decided once a device, and alike on all processes."""
        return self._residency(self._place())

    def _residency(self, place: _Place) -> Residency:
        if place.device not in self._residencies:
            # A dictionary by identity: validation and test may be one split.
            splits = {id(split): split for split in self._splits_or_error().values()}
            needed = sum(map(len, splits.values())) * math.prod(self.image_shape)
            chosen = choose_residency(self.residency, needed, place.device, place.world)
            if self.trainer is not None:
                fits = self.trainer.strategy.reduce_boolean_decision(chosen == "device", all=True)
                chosen = "device" if fits else "workers"
            self._residencies[place.device] = chosen
        return self._residencies[place.device]

    def _place(self) -> _Place:
        trainer = self.trainer
        if trainer is None:
            return _Place(torch.device("cpu"), 0, 1)
        return _Place(trainer.strategy.root_device, trainer.global_rank, trainer.world_size)

    def _evaluation(self, name: str) -> EvaluationLoader:
        place = self._place()
        source = self._source(name, place)
        return EvaluationLoader(source, batch_size=self.eval_batch_size, rank=place.rank, world=place.world)

    def _on_device(self, name: str, device: torch.device) -> dict[str, Any]:
        """Give images, labels and rows of a split as the loaders take them; held until `teardown`."""
        if name == "val" and self.selection == "paper":
            name = "test"
        if (name, device) not in self._resident:
            split = self._splits[name]
            images, rows = _upload(split, device)
            self._resident[name, device] = {"images": images, "labels": split.labels.to(device), "rows": rows}
        return self._resident[name, device]

    def _divide(self, data: ImageSet) -> dict[str, StoredImages]:
        train_labels = data.train.labels
        train = np.arange(len(data.train))
        test = _whole(data.test)
        if self.selection == "paper":
            val = test
        elif data.val is not None:
            val = _whole(data.val)
        else:
            train, held_out = validation_split(train_labels, self.validation, self.split_seed)
            val = StoredImages(data.train.images, train_labels[held_out], held_out)
        if self.limit is not None:
            if self.limit < len(data.class_names):
                raise ConfigError(f"limit={self.limit} is less than the {len(data.class_names)} classes: raise it.")
            train = train[limited(train_labels[train], self.limit, self.split_seed)]
        self.true_labels = torch.from_numpy(train_labels[train])
        # Last, so that neither the held-out part nor the limit looks at a wrong label, and the rate is exact.
        noisy = with_wrong_labels(train_labels[train], len(data.class_names), self.label_noise)
        return {"train": StoredImages(data.train.images, noisy, train), "val": val, "test": test}

    def _make_augment(self, data: ImageSet) -> CropFlip:
        mean, std = self.mean, self.std
        if mean is None or std is None:
            # Of all training images, so that selection and limit do not change the inputs of a network.
            measured = channel_statistics(data.train.images)
            mean, std = mean or measured[0], std or measured[1]
        channels, height, width = data.train.images.shape[1:]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ConfigError(f"{name} has {len(values)} values, but the images have {channels} channel(s)")
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ConfigError(
                f"padding={self.padding} cannot be reflected in images of {height}x{width}: make it smaller, or set "
                "padding_mode=constant"
            )
        if self.policy != "standard" and channels not in (1, 3):
            raise ConfigError(f"augment={self.policy} takes images of 1 or 3 channels, and these have {channels}")
        return CropFlip(self.padding, self.flip, mean, std, self.padding_mode, self.policy, self.erasing)

    def _splits_or_error(self) -> dict[str, StoredImages]:
        if not self._splits:
            raise DataError("the data are not read yet: call prepare_data() and setup() first")
        return self._splits

    def _check_settings(self) -> None:
        if self.views < 1:
            raise ConfigError(f"views={self.views} is too small: the least is 1")
        held = {name: value for name, value in vars(self).items() if name not in ("root", "label_noise")}
        held["augment"] = self.policy
        declared = settings_of(DataSettings)
        mistakes = [declared[name].error(f"data.{name}", held[name]) for name in declared if name in held]
        if any(mistakes):
            raise ConfigError("\n".join(filter(None, mistakes)))


def _whole(split: Images) -> StoredImages:
    return StoredImages(split.images, split.labels, np.arange(len(split)))


def _upload(split: StoredImages, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Give the images on a device, and which of them are the split's (None: all, in their order).

    Those that are in the host's memory already stay there for a CPU. Others are copied in pieces: all at once would
    hold them twice in the host's memory.
    """
    if device.type == "cpu" and type(split.images) is np.ndarray and split.images.flags.carray:
        return torch.from_numpy(split.images), torch.from_numpy(split.chosen)
    result = torch.empty((len(split), *split.images.shape[1:]), dtype=torch.uint8, device=device)
    size = max(1, _PIECE_BYTES // math.prod(split.images.shape[1:]))
    for start in range(0, len(split), size):
        piece = split.read(torch.arange(start, min(start + size, len(split))))
        result[start : start + len(piece)] = piece
    return result, None
