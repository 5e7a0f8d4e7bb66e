"""Image files that are decoded at each use: ImageNet, and any folder too large for a cache of decoded images."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.augment import ResizedCropFlip
from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.files.checks import reading
from dkel_lightning.data.files.decode import encoded_images
from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.data.readers.image_folder import image_bytes, listed
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import ConfigError

MARGIN = 8 / 7
"""How much larger than its central crop an evaluated image is scaled: 256 pixels for 224."""


@register_data("imagenet")
class ImageNetDataModule(ImageDataModule):
    """Image files in `root/train/<class>/...` and `root/val/<class>/...` (or `test/`), decoded by workers at each use.

    ImageNet as torchvision's `ImageNet(root, split)` unpacks it, or any other folder of images. A training view is a
    random part of its image, of 8 to 100 % of its area, scaled; an evaluation sees the central crop. Nothing is cached.

    Args:
        *args: As in `ImageDataModule`; there is no padding, and no residency but `workers`.
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
        if self.padding:
            raise ConfigError("data.padding means nothing where each view is a random part of its image: leave it.")
        if self.residency == "device":
            raise ConfigError("data.residency=device means nothing where workers decode the files: leave it.")
        self.residency = "workers"

    def read(self) -> ImageSet:
        """List the files; none is opened."""
        with reading(self.root):
            splits, classes = listed(self.root)
        # One block of bytes: as many objects would be copied to every worker that touches them.
        blocks = {split: np.array([os.fsencode(name) for name in listing.names]) for split, listing in splits.items()}
        images = {
            split: encoded_images(splits[split].labels, self.image_size, partial(_file, names), MARGIN)
            for split, names in blocks.items()
        }
        return ImageSet(images["train"], images["test"], tuple(classes), images.get("val"))

    def _make_augment(self, data: ImageSet) -> ResizedCropFlip:
        plain = super()._make_augment(data).normalize
        return ResizedCropFlip(self.image_size, self.flip, plain.mean, plain.std, self.policy, self.erasing)


def _file(names: NDArray[np.bytes_], index: int) -> tuple[bytes, str]:
    name = os.fsdecode(bytes(names[index]))
    return image_bytes(Path(name)), name
