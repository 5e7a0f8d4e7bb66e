"""One `.npz` file in the MedMNIST layout."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import DataError

_LAYOUT = (
    "train_images, train_labels and optionally test_images, test_labels, val_images, val_labels, unlabelled_images, "
    "class_names; images uint8 [N, H, W] or [N, H, W, C], labels integers [N] or [N, 1]"
)


class NpzDataModule(ImageDataModule):
    """An `.npz` file in the MedMNIST layout; `root` is its path. Arguments: `ImageDataModule`.

    `unlabelled_images`, and images with the label -1, are training images of unknown class. Nothing is unpickled.
    Images are not mirrored by default, since they may show letters or organs.
    """

    default_flip = False

    def read(self) -> ImageSet:
        try:
            with np.load(self.root, allow_pickle=False) as file:
                arrays: dict[str, NDArray[Any]] = dict(file)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{self.root} cannot be read ({error}): data.root must be an .npz file written by numpy.savez, with "
                f"{_LAYOUT}"
            ) from error
        if "unlabeled_images" in arrays:
            arrays["unlabelled_images"] = arrays.pop("unlabeled_images")
        splits = ["train", *(name for name in ("test", "val") if {f"{name}_images", f"{name}_labels"} & arrays.keys())]
        required = [f"{split}_{kind}" for split in splits for kind in ("images", "labels")]
        if missing := [name for name in required if name not in arrays]:
            raise DataError(f"{self.root} lacks {', '.join(missing)}; it needs {_LAYOUT}")
        read = {split: self._images(arrays, split) for split in splits}
        labels = read["train"].labels
        names = arrays.get("class_names", np.setdiff1d(labels, -1))
        if "unlabelled_images" in arrays:
            arrays["unlabelled_labels"] = np.full(len(arrays["unlabelled_images"]), -1)
            known, others = read["train"], self._images(arrays, "unlabelled")
            if known.images.shape[1:] != others.images.shape[1:]:
                raise DataError(f"{self.root}: unlabelled_images must have the shape of train_images")
            images = np.concatenate([known.images, others.images])
            read["train"] = Images(images, np.concatenate([known.labels, others.labels]))
        return ImageSet(read["train"], read.get("test"), tuple(map(str, names.tolist())), read.get("val"))

    def _images(self, arrays: Mapping[str, NDArray[Any]], split: str) -> Images:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] > (4,):
            raise DataError(
                f"{self.root}: {split}_images is {images.dtype} {list(images.shape)}: store values 0..255 as uint8 "
                "[N, H, W] or [N, H, W, C] with C at most 4"
            )
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        labels = labels.astype(np.int64) if labels.dtype.kind == "u" else labels  # with -1 uint64 would become float
        return Images(np.ascontiguousarray(images), labels.reshape(-1))
