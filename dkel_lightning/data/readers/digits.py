"""The 1,797 handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np

from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.splits import hold_out

TEST_IMAGES = 360
# The division into training and test images is part of the data set, so no setting reaches this seed.
TEST_SPLIT_SEED = 1797


def read_digits() -> ImageSet:
    """Return 1,437 training and 360 test images `[1, 8, 8]`, grey values 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train, test = hold_out(labels, TEST_IMAGES, TEST_SPLIT_SEED, "digits test set")
    return ImageSet(
        train=Images(images[train], labels[train]),
        test=Images(images[test], labels[test]),
        class_names=tuple(str(name) for name in bunch.target_names),
    )
