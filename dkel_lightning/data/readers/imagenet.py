"""Image files that are decoded at each use: ImageNet, and any folder too large for a cache of decoded images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkel_lightning.data.augment import ResizedCropFlip
from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.files.checks import reading
from dkel_lightning.data.files.decode import EncodedImages, decode_rgb
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.readers.image_folder import image_bytes, listed
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import ConfigError

MARGIN = 8 / 7
"""How much larger than its central crop an evaluated image is scaled: 256 pixels for 224."""


class WithOriginals(EncodedImages):
    """Images whose central crops evaluations see; training cuts its own parts of the `original`."""

    margin = MARGIN

    def original(self, index: int) -> Tensor:
        """Return a whole image, uint8 `[3, H, W]`."""
        return torch.from_numpy(decode_rgb(*self.encoded(index)))


class ImageFiles(WithOriginals):
    """Image files as an array."""

    def __init__(self, names: Sequence[str], size: int) -> None:
        super().__init__(len(names), size)
        # One block of bytes: as many objects would be copied to every worker that touches them.
        self._names = np.array([os.fsencode(name) for name in names])

    def encoded(self, index: int) -> tuple[bytes, str]:
        """Return a file's bytes and name."""
        name = os.fsdecode(bytes(self._names[index]))
        return image_bytes(Path(name)), name


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
        images = {
            split: Images(
                cast("NDArray[np.uint8]", ImageFiles(listing.names, self.image_size)),
                np.asarray(listing.labels, dtype=np.int64),
            )
            for split, listing in splits.items()
        }
        return ImageSet(images["train"], images["test"], tuple(classes), images.get("val"))

    def _make_augment(self, data: ImageSet) -> ResizedCropFlip:
        plain = super()._make_augment(data).normalize
        return ResizedCropFlip(self.image_size, self.flip, plain.mean, plain.std, self.policy, self.erasing)
