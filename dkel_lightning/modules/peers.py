"""The base of student and teacher: peers that classify, and can be trained alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from dkel_lightning.functional import cross_entropy
from dkel_lightning.metrics import NetworkScores, scores_of
from dkel_lightning.modules.batch import explain_shape_errors, unpack_checked
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory, configure
from dkel_lightning.networks import PeerNetwork, PeerOutputs


class PeersModule(LightningModule):
    """A network of P peers; trained alone, it learns as P classifiers.

    As a part of a DistillationModule only its `network` and `forward` are used: Lightning calls the hooks of the
    root alone, and a child may not log.

    Args:
        network: the peers.
        optimizer: makes the optimizer from parameter groups; AdamW at 3e-3 by default.
        scheduler: makes the scheduler from the optimizer; none by default.
        interval: step the scheduler every `epoch` or every `step`.

    Attributes:
        lr_scale: learning rate of all but the classifiers, as a share of the optimizer's; at 0 these stay in eval mode.
        is_frozen: whether the whole network stays in eval mode.
    """

    def __init__(
        self,
        network: PeerNetwork,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        interval: str = "epoch",
    ) -> None:
        super().__init__()
        self.network = network
        self._factories = (optimizer, scheduler, interval)
        self.scores = NetworkScores(network.num_peers)
        self.lr_scale = 1.0
        self.is_frozen = False
        self.compiled: Callable[[Tensor], PeerOutputs] | None = None

    def pass_through(self, views: Tensor) -> PeerOutputs:
        """Pass `views` through the network, which is compiled during a fit if `execution` says so."""
        return self.network(views) if self.compiled is None else self.compiled(views)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "compiled": None}  # it refers to the weights of the original

    def train(self, mode: bool = True) -> PeersModule:
        """Set the mode; frozen layers stay in eval mode, which keeps their statistics."""
        super().train(mode)
        if self.is_frozen or self.lr_scale == 0:
            self.network.eval()
            for classifier in self.network.classifiers:
                classifier.train(mode and not self.is_frozen)
        return self

    @property
    def num_peers(self) -> int:
        return self.network.num_peers

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def peer(self, index: int) -> nn.Module:
        """Return one peer as a plain network [B, C, H, W] -> [B, classes] that shares its parameters."""
        return self.network.peer(index)

    def supervised_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum the peers' cross-entropies: logits [P, B, C], labels [B] -> scalar."""
        return cross_entropy(logits, labels).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views, labels, _ = unpack_checked(batch, batch_idx, self.num_peers, self.num_classes)
        with explain_shape_errors(views, self.network):
            logits = self(views).logits
        loss = self.supervised_loss(logits, labels)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        views, labels, _ = unpack_checked(batch, batch_idx, self.num_peers, self.num_classes)
        with explain_shape_errors(views, self.network):
            logits = self(views).logits
        self.scores.update(*scores_of(logits, labels))

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure({"network": self.network}, *self._factories, trainer=self._trainer)

    def _log_scores(self, stage: str) -> None:
        accuracy = self.scores.per_network()["accuracy"]
        self.log_dict({f"{stage}/acc/peer_{i}": value for i, value in enumerate(accuracy)}, sync_dist=True)
        self.log(f"{stage}/acc", accuracy.mean(), prog_bar=True, sync_dist=True)
        self.scores.reset()


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """List the BatchNorm layers that keep running statistics."""
    layers = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    return [layer for layer in layers if layer.running_mean is not None]


def running_statistics(network: nn.Module) -> list[Tensor]:
    """List their means and variances."""
    layers = batch_norms(network)
    return [value for layer in layers for value in (layer.running_mean, layer.running_var) if value is not None]
