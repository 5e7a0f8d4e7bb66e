from __future__ import annotations

import numpy as np
import pytest

from dkel_lightning.data import DigitsDataModule
from dkel_lightning.data.imageset import channel_statistics
from dkel_lightning.data.splits import hold_out_share, limited
from dkel_lightning.errors import ConfigError

LABELS = np.repeat(np.arange(10), 50)


def test_a_tenth_of_equal_classes_is_a_tenth_of_each() -> None:
    train, val = hold_out_share(LABELS, 0.1, 0, "validation")
    assert np.bincount(LABELS[val]).tolist() == [5] * 10
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(500))
    assert not np.array_equal(val, hold_out_share(LABELS, 0.1, 1, "validation")[1])


def test_the_split_never_changes_between_versions() -> None:
    # The first indices of split_seed 0, written down once: another result silently changes everyone's validation set.
    assert hold_out_share(LABELS, 0.02, 0, "validation")[1].tolist() == [7, 99, 124, 192, 205, 283, 330, 350, 446, 483]


def test_unequal_classes_keep_their_shares() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    train, val = hold_out_share(labels, 0.2, 0, "validation")
    assert len(val) == 20
    assert abs(int((labels[val] == 0).sum()) - 18) <= 1
    assert abs(int((labels[val] == 1).sum()) - 2) <= 1
    assert 2 in labels[train]


def test_a_larger_limit_only_adds_images() -> None:
    small, large = limited(LABELS, 20, 0), limited(LABELS, 100, 0)
    assert np.bincount(LABELS[small]).tolist() == [2] * 10
    assert set(small.tolist()) < set(large.tolist())
    assert limited(LABELS, 9999, 0).tolist() == list(range(500))


@pytest.mark.parametrize("share", [0.001, 0.9995])
def test_an_empty_part_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="leaves some for both"):
        hold_out_share(LABELS, share, 0, "validation")


def test_digits_are_divided_once_and_for_all() -> None:
    data = DigitsDataModule().read()
    assert data.train.images.shape == (1437, 1, 8, 8)
    assert data.test.images.shape == (360, 1, 8, 8)
    assert np.bincount(data.test.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert int(data.train.images.max()) == 255
    together = np.concatenate([data.train.images, data.test.images]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    expected = np.rint(load_digits().data * 255 / 16)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, expected.astype(int).tolist()))


def test_channel_statistics_match_numpy() -> None:
    images = np.random.RandomState(0).randint(0, 256, (2100, 3, 4, 5)).astype(np.uint8)
    images[:, 2] = 7
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], scaled.std(axis=(0, 2, 3))[:2], rtol=1e-9)
    assert std[2] == 1
