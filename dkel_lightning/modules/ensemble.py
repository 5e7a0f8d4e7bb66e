"""The ensemble: a classifier over the features of all peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from dkel_lightning.functional import cross_entropy
from dkel_lightning.metrics import NetworkScores, scores_of
from dkel_lightning.modules.batch import check_labels, unpack
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory, configure
from dkel_lightning.networks.peers import PeerFeatures


class EnsembleModule(LightningModule):
    """The ensemble classifier, a linear layer on the concatenated features of all peers.

    Alone, in any Lightning Trainer, it learns from batches of `(features [B, P, D], labels [B])`.

    Args:
        feature_widths: D of each peer.
        num_classes: C.
        optimizer, scheduler, interval: as in StudentModule.
    """

    def __init__(
        self,
        feature_widths: Sequence[int],
        num_classes: int,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        interval: str = "epoch",
    ) -> None:
        super().__init__()
        self.classifier = nn.Linear(sum(feature_widths), num_classes)
        self._factories = (optimizer, scheduler, interval)
        self.scores = NetworkScores(1)

    def forward(self, features: PeerFeatures) -> Tensor:
        """Classify the peers' features, [P, B, D] or P tensors [B, D_i] -> logits [B, C]."""
        logits: Tensor = self.classifier(torch.cat(tuple(features), dim=-1))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features, labels, _ = unpack(batch)
        check_labels(labels, self.classifier.out_features)
        loss = cross_entropy(self(features.transpose(0, 1)), labels)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        features, labels, _ = unpack(batch)
        check_labels(labels, self.classifier.out_features)
        logits = self(features.transpose(0, 1)).unsqueeze(0)
        self.scores.update(*scores_of(logits, labels))

    def on_validation_epoch_end(self) -> None:
        self.log("val/acc", self.scores.per_network()["accuracy"][0], prog_bar=True, sync_dist=True)
        self.scores.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure({"ensemble": self.classifier}, *self._factories, trainer=self._trainer)
