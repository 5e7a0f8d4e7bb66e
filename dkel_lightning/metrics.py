"""Metrics for several networks at once, kept on the device and correct across processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dkel_lightning.functional import cross_entropy


class TermMeans(Metric):
    """Average the loss terms of an epoch over its steps.

    The sums stay on the device and in the checkpoint; they are read once an epoch.
    """

    full_state_update = False
    sums: Tensor
    steps: Tensor

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(self.names)), dist_reduce_fx="sum", persistent=True)
        self.add_state("steps", torch.zeros(()), dist_reduce_fx="sum", persistent=True)

    def update(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one step, scalars without gradient."""
        self.sums += torch.stack([terms[name].detach().to(self.sums.dtype) for name in self.names])
        self.steps += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each term, by name."""
        means = self.sums / self.steps
        return {name: means[i] for i, name in enumerate(self.names)}


class NetworkScores(Metric):
    """Top-1 accuracy and negative log-likelihood of several networks on the same samples."""

    full_state_update = False
    correct: Tensor
    nll: Tensor
    samples: Tensor

    def __init__(self, networks: int, *, persistent: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", torch.zeros(networks), dist_reduce_fx="sum", persistent=persistent)
        self.add_state("nll", torch.zeros(networks), dist_reduce_fx="sum", persistent=persistent)
        self.add_state("samples", torch.zeros(()), dist_reduce_fx="sum", persistent=persistent)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: `logits` [N, B, C] of the N networks, `labels` [B]."""
        logits = logits.detach()
        self.correct += (logits.argmax(-1) == labels).sum(-1).to(self.correct.dtype)
        self.nll += cross_entropy(logits, labels).to(self.nll.dtype) * labels.numel()
        self.samples += labels.numel()

    def compute(self) -> dict[str, Tensor]:
        """Return `accuracy` and `nll`, each [N]."""
        return {"accuracy": self.correct / self.samples, "nll": self.nll / self.samples}

    def per_network(self) -> dict[str, Tensor]:
        """Return what `compute` does, [N] also for a single network, whose values torchmetrics makes scalars."""
        return {name: value.reshape(-1) for name, value in self.compute().items()}
