"""scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

import numpy as np

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.splits import hold_out

TEST_IMAGES = 360
# The test split is part of the data set, so its seed is not a setting.
TEST_SPLIT_SEED = 1797


class DigitsDataModule(ImageDataModule):
    """scikit-learn's digits: 1,437 training and 360 test images `[1, 8, 8]` of 10 classes, in a fixed stratified split.

    `root` is not used. Arguments: `ImageDataModule`.
    """

    default_padding = 1
    default_flip = False
    # Measured on the training images by `channel_statistics`.
    default_mean = (0.3051,)
    default_std = (0.3758,)

    def read(self) -> ImageSet:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # grey values 0..16 stretched to 0..255
        labels = bunch.target.astype(np.int64)
        train, test = hold_out(labels, TEST_IMAGES, TEST_SPLIT_SEED, "digits test set")
        return ImageSet(
            train=Images(images[train], labels[train]),
            test=Images(images[test], labels[test]),
            class_names=tuple(str(name) for name in bunch.target_names),
        )
