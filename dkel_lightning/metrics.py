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


class CalibrationErrors(Metric):
    """Expected calibration error of several networks on the same samples: `sum_b n_b / n |accuracy_b - confidence_b|`.

    The value of torchmetrics' MulticlassCalibrationError with the l1 norm, which keeps every confidence until the
    end; this one keeps sums by bin. As there, bins are [k / bins, (k + 1) / bins), and a confidence of exactly 1 has a
    bin of its own.

    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """

    full_state_update = False
    samples: Tensor
    correct: Tensor
    confidence: Tensor

    def __init__(self, networks: int, bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins
        for name in ("samples", "correct", "confidence"):
            self.add_state(name, torch.zeros(networks, bins + 1), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: `logits` [N, B, C] of the N networks, `labels` [B]."""
        confidence, predicted = logits.detach().to(self.confidence.dtype).softmax(-1).max(-1)
        edges = torch.linspace(0, 1, self.bins + 1, dtype=confidence.dtype, device=confidence.device)
        position = torch.bucketize(confidence, edges, right=True) - 1
        position = position.clamp(0, self.bins)
        self.samples.scatter_add_(1, position, torch.ones_like(confidence))
        self.correct.scatter_add_(1, position, (predicted == labels).to(confidence.dtype))
        self.confidence.scatter_add_(1, position, confidence)

    def compute(self) -> Tensor:
        """Return the errors, [N]."""
        return (self.correct - self.confidence).abs().sum(1) / self.samples.sum(1)


class Disagreement(Metric):
    """Share of samples on which two peers predict different classes, averaged over all pairs of peers."""

    full_state_update = False
    different: Tensor
    samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("different", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Add a batch: `logits` [P, B, C] of at least two peers."""
        predicted = logits.detach().argmax(-1)
        peers = len(predicted)
        # Each unordered pair is met twice, and a peer never differs from itself.
        unequal = (predicted.unsqueeze(0) != predicted.unsqueeze(1)).sum()
        self.different += unequal.to(self.different.dtype) / (peers * (peers - 1))
        self.samples += predicted.shape[1]

    def compute(self) -> Tensor:
        """Return the share, a scalar in [0, 1]."""
        return self.different / self.samples


def relative_distance(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor | None:
    """Compute `||theta_t - theta_s|| / ||theta_s||` over all parameters; None where their shapes differ."""
    if [p.shape for p in teacher] != [p.shape for p in student]:
        return None
    differences = [(t.detach() - s.detach()).float() for t, s in zip(teacher, student, strict=True)]
    return _norm(differences) / _norm([s.detach().float() for s in student])


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm
