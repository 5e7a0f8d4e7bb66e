"""mixup and cutmix of a batch's views, by torchvision, as a function of a key."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from dkel_lightning.functional import one_hot
from dkel_lightning.modules.batch import Batch
from dkel_lightning.runtime.seeding import Label, seeded
from dkel_lightning.settings.targets import Targets


class Mixing:
    """Mix each image of a batch with the one before it, and their labels alike, on the device where they lie.

    Args:
        settings: with mixup, cutmix or both, of which each batch draws one.
        num_classes: C.
        peers: P; with `mixing="per_peer"` views i and P + i are mixed as peer i's, otherwise all views are mixed alike.

    Source: Zhang et al. 2018 (arXiv 1710.09412), Yun et al. 2019 (arXiv 1905.04899).
    """

    def __init__(self, settings: Targets, num_classes: int, peers: int) -> None:
        self.num_classes = num_classes
        self.peers = peers if settings.mixing == "per_peer" else 1
        kinds = [v2.MixUp(alpha=settings.mixup)] if settings.mixup > 0 else []
        kinds += [v2.CutMix(alpha=settings.cutmix)] if settings.cutmix > 0 else []
        self._draw = v2.RandomChoice(kinds)

    def __call__(self, batch: Batch, seed: int, *key: Label) -> Batch:
        """Mix views [B, V, C, H, W] or [B, C, H, W]; the labels become [B, C], or [B, P, C] where peers differ."""
        # Not torchvision's one-hot, which on some devices reads the labels back to check them.
        labels = one_hot(batch.labels, self.num_classes)
        views = batch.views.unsqueeze(1) if batch.views.dim() == 4 else batch.views
        made, targets = [], []
        for index, view in enumerate(views.unbind(1)):
            # torchvision draws from the global generator.
            with seeded(seed, "mixing", *key, index % self.peers):
                images, mixed = self._draw(view, labels)
            made.append(images)
            targets.append(mixed)
        of_peers = targets[: self.peers]
        return Batch(
            made[0] if batch.views.dim() == 4 else torch.stack(made).transpose(0, 1),
            of_peers[0] if len(of_peers) == 1 else torch.stack(of_peers, 1),
            batch.indices,
        )


def peers_first(labels: Tensor) -> Tensor:
    """Bring labels that differ between peers, [B, P, C], into the order of logits, [P, B, C]; others stay."""
    return labels.transpose(0, 1) if labels.dim() == 3 else labels
