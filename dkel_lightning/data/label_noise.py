"""Artificial label noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.splits import stratified_order
from dkel_lightning.runtime.seeding import derive_seed
from dkel_lightning.settings.data import LabelNoise

Labels = NDArray[np.int64]


def with_wrong_labels(labels: Labels, classes: int, noise: LabelNoise) -> Labels:
    """Return a copy of labels `[N]` with wrong ones, a pure function of labels and settings.

    Exactly `round(rate * N)` labels change, stratified by class. A higher rate only adds wrong labels. `symmetric`:
    uniform over the other classes; `pair`: class c becomes c + 1, the last one 0.
    """
    noisy: Labels = labels.copy()
    wrong = stratified_order(labels, noise.seed, "label noise")[: round(noise.rate * len(labels))]
    if len(wrong) == 0:
        return noisy
    steps: int | Labels = 1  # how many classes further the wrong label is, 1..classes-1
    if noise.kind != "pair":
        # RandomState: frozen, as in `stratified_order`. Drawn for all samples, so that the rate moves no draw.
        random = np.random.RandomState(derive_seed(noise.seed, "wrong labels") % 2**32)
        steps = random.randint(1, classes, len(labels)).astype(np.int64)[wrong]
    noisy[wrong] = (labels[wrong] + steps) % classes
    return noisy
