"""From the labels of a batch to targets: mixing, smoothing, class weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import one_hot, targets_of
from dkel_lightning.runtime.seeding import Label, seeded
from dkel_lightning.settings.targets import Targets


class TargetMaker(nn.Module):
    """Turn labels into the targets of the losses.

    Args:
        settings: with mixup and cutmix, each batch draws one of them.
        num_classes: C.
        wants_classes: whether the method works on classes, and takes no distributions.

    Source: mixup, Zhang et al. 2018 (arXiv 1710.09412); cutmix, Yun et al. 2019 (arXiv 1905.04899).
    """

    class_weights: Tensor | None

    def __init__(self, settings: Targets, num_classes: int, wants_classes: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes
        self._wants_classes = wants_classes
        self.register_buffer("class_weights", _weights(settings, num_classes), persistent=False)
        kinds = [v2.MixUp(alpha=settings.mixup)] if settings.mixup > 0 else []
        kinds += [v2.CutMix(alpha=settings.cutmix)] if settings.cutmix > 0 else []
        if kinds:
            self._refuse("targets.mixup and targets.cutmix")
        self._mix = v2.RandomChoice(kinds) if kinds else None

    def forward(self, labels: Tensor) -> Tensor:
        """Smooth and weight labels [B] or [B, C], as `functional.targets_of`."""
        return targets_of(labels, self.num_classes, self.settings.label_smoothing, self.class_weights)

    def mix(self, batch: Batch, seed: int, *key: Label) -> Batch:
        """Apply mixup or cutmix to all views alike, on the device of the batch; the labels become [B, C].

        Indices are left out.
        """
        if batch.labels.is_floating_point():
            self._refuse("these labels")
        if self._mix is None:
            return batch
        # Not torchvision's one-hot, which on some devices reads the labels back to check them.
        labels = one_hot(batch.labels, self.num_classes)
        with seeded(seed, "mixing", *key):  # torchvision draws from the global generator
            images, labels = self._mix(batch.views.flatten(1, -3), labels)
        return Batch(images.view_as(batch.views), labels, None)

    def _refuse(self, what: str) -> None:
        if self._wants_classes:
            raise ConfigError(
                f"The method as it is set works on one class an image, and {what} give distributions over the classes: "
                "leave them out, or choose another method, method.loss or, of kdcl, method.target."
            )


def _weights(settings: Targets, num_classes: int) -> Tensor | None:
    weights = settings.class_weights
    if weights is None:
        return None
    if isinstance(weights, str) or len(weights) != num_classes or max(weights) <= 0:
        raise ConfigError(
            f"targets.class_weights must be a number for each of the {num_classes} classes, one of them above 0, got "
            f"{weights}; balanced is for `train` and the command line: pass balanced_weights() of the data module."
        )
    return torch.tensor(weights, dtype=torch.float32)
