"""What every reader returns: arrays of images with their labels, the checks they have passed, and parts of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkel_lightning.errors import DataError

# Of images that are widened to 4 bytes at once.
_CHUNK_VALUES = 2 << 20


@dataclass(frozen=True)
class Images:
    """One split: uint8 images `[N, C, H, W]` and int64 labels `[N]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageSet:
    """A data set as its maker divides it; `val` only where the maker gives one."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    val: Images | None = None

    @property
    def splits(self) -> dict[str, Images]:
        """The splits by name, without those that do not exist."""
        named = {"train": self.train, "test": self.test, "val": self.val}
        return {name: split for name, split in named.items() if split is not None}


class StoredImages:
    """Images of a split that stay where they are: an array in memory or a memory-mapped cache.

    Args:
        images: uint8 `[M, C, H, W]`.
        labels: Integers `[N]`, those of the chosen images.
        chosen: Indices `[N]` into `images`.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = torch.from_numpy(labels)
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, indices: Tensor) -> Tensor:
        """Return a copy of the images (uint8 `[B, C, H, W]`) with these indices into the split."""
        return torch.from_numpy(self.images[self.chosen[indices.numpy()]])

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # A pickled memory map is a full copy of the file, one for each spawned worker.
        if isinstance(self.images, np.memmap) and self.images.filename is not None:
            state["images"] = str(self.images.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(state["images"], str):
            self.images = np.load(state["images"], mmap_mode="r", allow_pickle=False)


def check_image_set(data: ImageSet, where: str) -> None:
    """Raise a DataError unless all splits hold images of one shape and labels that have a class.

    Args:
        data: The set to check.
        where: The file or folder it came from, for the message.
    """
    shape = data.train.images.shape[1:]
    classes = len(data.class_names)
    for name, split in data.splits.items():
        if len(split) == 0:
            raise DataError(f"{where}: the {name} split holds no image; every split needs at least one")
        if split.images.dtype != np.uint8 or split.images.ndim != 4:
            raise DataError(
                f"{where}: {name} images are {split.images.dtype} {split.images.shape}, not uint8 [N,C,H,W]"
            )
        if split.images.shape[1:] != shape:
            raise DataError(
                f"{where}: {name} images are {split.images.shape[1:]} (channels, height, width) but train images "
                f"{shape}; store both in one shape"
            )
        if len(split.labels) != len(split):
            raise DataError(f"{where}: {len(split)} {name} images but {len(split.labels)} {name} labels")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"{where}: {name} labels run from {low} to {high}, but with {classes} classes they must lie in "
                f"0..{classes - 1}; renumber the labels or name all classes"
            )
    empty = np.flatnonzero(np.bincount(data.train.labels, minlength=classes) == 0)
    if len(empty):
        raise DataError(
            f"{where}: no training image has the label {empty[0]} ({data.class_names[empty[0]]}), though there are "
            f"{classes} classes; number the classes 0, 1, ... without a gap, or leave out classes without images"
        )


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images `[N, C, H, W]` scaled to [0, 1].

    The sums are exact integers, so the result does not depend on the order of the images. A constant channel gets the
    deviation 1.
    """
    channels = images.shape[1]
    total, squares = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
    chunk = max(1, _CHUNK_VALUES // math.prod(images.shape[1:]))
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk].astype(np.uint32)
        total += part.sum(axis=(0, 2, 3), dtype=np.uint64)
        squares += np.square(part).sum(axis=(0, 2, 3), dtype=np.uint64)
    pixels = images.size // channels
    mean = total / pixels / 255
    variance = squares / pixels / 255**2 - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    std[total * total == pixels * squares] = 1
    return tuple(mean.tolist()), tuple(std.tolist())
