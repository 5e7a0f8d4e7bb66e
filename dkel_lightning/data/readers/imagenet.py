"""ImageNet, and other folders that are too large for a cache: images are decoded at each use."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.augment import ResizedCropFlip
from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.decode import EncodedImages
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.readers.image_folder import list_images
from dkel_lightning.errors import ConfigError

MARGIN = 8 / 7
"""Size of a resized evaluation image relative to its central crop: 256 to 224 pixels."""


class ImageNetDataModule(ImageDataModule):
    """Image files in `root/train/<class>/...` and `root/val/<class>/...` (or `test/`), decoded by workers at each use.

    ImageNet as unpacked by torchvision's `ImageNet(root, split)`, or any other folder of images. Training uses random
    resized crops, evaluation the central crop.

    Args:
        *args: As in `ImageDataModule`, without `padding` and without `residency="device"`.
        image_size: Height and width of the views, in pixels.
        **kwargs: As in `ImageDataModule`.

    Source: the augmentation of He et al. 2016 as in torchvision's reference; constants of ImageNet.
    """

    default_padding = 0
    default_mean = (0.485, 0.456, 0.406)
    default_std = (0.229, 0.224, 0.225)
    margin = MARGIN

    def __init__(self, *args: Any, image_size: int = 224, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_size = image_size
        if self.padding or self.residency == "device":
            raise ConfigError("data=imagenet uses random resized crops in workers: leave out padding and residency")
        self.residency = "workers"

    def read(self) -> ImageSet:
        listings, classes = list_images(self.root)
        splits = {}
        for split, (files, labels) in listings.items():
            # One block of bytes: as many objects would be copied to every worker that touches them.
            names = np.array([os.fsencode(name) for name in files])
            encoded = EncodedImages(len(names), self.image_size, partial(_read, names), MARGIN)
            splits[split] = Images(encoded, np.asarray(labels, dtype=np.int64))
        return ImageSet(splits["train"], splits.get("test"), classes, splits.get("val"))

    def _make_augment(self, data: ImageSet) -> ResizedCropFlip:
        constants = super()._make_augment(data).normalize
        policies = (self.policy, self.augment_strong)
        return ResizedCropFlip(self.image_size, self.flip, constants.mean, constants.std, *policies)


def _read(names: NDArray[np.bytes_], index: int) -> tuple[bytes, str]:
    name = os.fsdecode(bytes(names[index]))
    return Path(name).read_bytes(), name
