"""Images with labels: the result of readers, its checks, and splits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkel_lightning.errors import DataError

_CHUNK_VALUES = 2 << 20


@dataclass(frozen=True)
class Images:
    """One split: uint8 images `[N, C, H, W]`, an array or `EncodedImages`, and integer labels `[N]`.

    Training labels may be -1: unknown.
    """

    images: Any
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class ImageSet:
    """A data set with its official splits; a split that is None is held out of the training images."""

    train: Images
    test: Images | None
    class_names: tuple[str, ...]
    val: Images | None = None


class StoredImages:
    """Images of a split.

    Args:
        images: uint8 `[M, C, H, W]`, an array, a memory map or `EncodedImages`.
        labels: Labels `[N]` of the chosen images.
        chosen: Indices `[N]` into `images`.
    """

    def __init__(self, images: Any, labels: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = torch.from_numpy(labels)
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, indices: Tensor) -> Tensor:
        """Return a copy of the images at these indices of the split, uint8 `[B, C, H, W]`."""
        return torch.from_numpy(self.images[self.chosen[indices.numpy()]])

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # A pickled memory map is a copy of the file, one for each spawned worker.
        if isinstance(self.images, np.memmap) and self.images.filename is not None:
            state["images"] = str(self.images.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(state["images"], str):
            self.images = np.load(state["images"], mmap_mode="r", allow_pickle=False)


def check_image_set(data: ImageSet, where: str) -> None:
    """Raise a DataError unless all splits hold images of one shape and labels of the classes, or -1 in training.

    Args:
        data: The set to check.
        where: The file or folder it came from, for the message.
    """
    shape, classes = data.train.images.shape[1:], len(data.class_names)
    if classes == 0:
        raise DataError(f"{where}: no training image has a label")
    for name, split in (("train", data.train), ("test", data.test), ("val", data.val)):
        if split is None:
            continue
        images, labels = split.images, split.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or len(images) == 0:
            raise DataError(
                f"{where}: {name} images are {images.dtype} {list(images.shape)}: store uint8 [N, C, H, W], N > 0, "
                f"with the shape {list(shape)} of the training images"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise DataError(
                f"{where}: {name} labels are {labels.dtype} {list(labels.shape)} for {len(images)} images: store one "
                "integer class number for each image"
            )
        least = -1 if name == "train" else 0
        if labels.min() < least or labels.max() >= classes:
            raise DataError(
                f"{where}: {name} labels run from {labels.min()} to {labels.max()}, but with {classes} classes they "
                f"must lie in {least}..{classes - 1}: number the classes that have labelled training images 0, 1, ..."
            )
    known = data.train.labels[data.train.labels >= 0]
    empty = np.flatnonzero(np.bincount(known, minlength=classes) == 0)
    if len(empty):
        raise DataError(
            f"{where}: no training image has the label {empty[0]} ({data.class_names[empty[0]]}) of {classes} classes: "
            "number the classes 0, 1, ... without a gap, or leave out classes without images"
        )


def channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images `[N, C, H, W]` scaled to [0, 1].

    Sums are exact integers, so the result does not depend on the order of the images. The deviation of a constant
    channel is 1.
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
