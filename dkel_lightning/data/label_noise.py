"""Wrong labels put among the training labels on purpose, to see what a network and its teacher make of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.splits import stratified_order
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import derive_seed
from dkel_lightning.settings import data as settings

Labels = NDArray[np.int64]


class LabelNoise(settings.LabelNoise):
    """How training labels are made wrong, a pure function of these settings and the labels.

    Exactly `round(rate * N)` of the N labels change, and of each class about its share. A sample that is wrong at one
    rate is wrong in the same way at every higher one. `symmetric`: any other class, all alike (the true one is never
    drawn); `pair`: class c becomes c + 1, the last one 0. The run's own seed has no part in the choice.

    Raises:
        ConfigError: A setting is out of range.
    """

    def apply(self, labels: Labels, classes: int) -> Labels:
        """Return a copy of `labels` `[N]` with the wrong ones among them.

        Raises:
            ConfigError: There is no other class to name.
        """
        noisy: Labels = labels.copy()
        wrong = stratified_order(labels, self.seed, "label noise")[: round(self.rate * len(labels))]
        if len(wrong) == 0:
            return noisy
        if classes < 2:
            raise ConfigError("label_noise needs at least 2 classes: set data.label_noise.kind=none")
        noisy[wrong] = (labels[wrong] + self._steps(len(labels), classes)[wrong]) % classes
        return noisy

    def _steps(self, samples: int, classes: int) -> Labels:
        """Return for each sample how many classes further its wrong label lies, 1..classes-1."""
        if self.kind == "pair":
            return np.ones(samples, np.int64)
        # RandomState: frozen, as in `stratified_order`. Drawn for all samples, so that the rate moves no draw.
        random = np.random.RandomState(derive_seed(self.seed, "wrong labels") % 2**32)
        return random.randint(1, classes, samples).astype(np.int64)
