"""Wrong labels put among the training labels on purpose, to see what a network and its teacher make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.splits import stratified_order
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import derive_seed

KINDS = ("none", "symmetric", "pair")
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class LabelNoise:
    """How training labels are made wrong, a pure function of these settings and the labels.

    Exactly `round(rate * N)` of the N labels change, and of each class about its share. A sample that is wrong at one
    rate is wrong in the same way at every higher one.

    Attributes:
        kind: `symmetric`: any other class, all alike (the true one is never drawn); `pair`: class c becomes c + 1, the
            last one 0; `none`.
        rate: Share of wrong labels, in [0, 1].
        seed: Seed of the choice; the run's own seed has no part in it.

    Raises:
        ConfigError: A setting is out of range.
    """

    kind: str = "none"
    rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"label_noise.kind={self.kind!r} is unknown: choose {', '.join(KINDS)}")
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"label_noise.rate={self.rate} is no share: give a number between 0 and 1")
        if self.kind == "none" and self.rate > 0:
            raise ConfigError(f"label_noise.rate={self.rate} without a kind: choose symmetric or pair, or set it to 0")

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> LabelNoise:
        """Make it from a mapping of its attributes.

        Raises:
            ConfigError: A key does not exist, or a setting is out of range.
        """
        unknown = sorted(set(settings or {}) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"label_noise has no {', '.join(unknown)}: its keys are kind, rate and seed")
        return cls(**(settings or {}))

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
        steps: Labels = random.randint(1, classes, samples).astype(np.int64)
        return steps
