"""DKEL as a plain training loop, written from the method's description: an independent oracle of `method=dkel`.

One forward a view (`backbone.views_per_pass=one`), every loss by itself, the moving average in a Python loop. It takes
only the networks from the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from dkel_lightning.networks import BranchedNetwork


@dataclass
class Weights:
    """Current values of the schedules: lambda, r(e), v(e), the EMA rate; and the temperature."""

    scale: float = 1.0
    rampup: float = 0.0
    ensemble: float = 0.0
    rate: float = 0.999
    ramped: bool = False
    temperature: float = 3.0


class PlainLoop:
    """The training loop.

    Args:
        student: peers with a common trunk.
        teacher: the same, never given a gradient.
        classifier: of the ensemble, on the concatenated features.
        optimizer: of student and classifier.
        weights: current values of the schedules.

    Attributes:
        metrics: of the last step.
    """

    def __init__(
        self,
        student: BranchedNetwork,
        teacher: BranchedNetwork,
        classifier: nn.Linear,
        optimizer: Optimizer,
        weights: Weights,
    ) -> None:
        self.student = student.train()
        self.teacher = teacher.train().requires_grad_(False)
        self.classifier = classifier
        self.optimizer = optimizer
        self.weights = weights
        self.metrics: dict[str, float] = {}

    def initialise(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]], lr: float, weight_decay: float) -> None:
        """Run the teacher's initialisation scheme: plain SGD on its own mini-batches."""
        self.teacher.requires_grad_(True)
        optimizer = torch.optim.SGD(self.teacher.parameters(), lr, weight_decay=weight_decay)
        for views, labels in batches:
            logits, _ = self._forward(self.teacher, views)
            optimizer.zero_grad()
            (sum(F.cross_entropy(each, labels) for each in logits) / len(logits)).backward()
            optimizer.step()
        self.teacher.requires_grad_(False)

    def step(self, views: Sequence[Tensor], labels: Tensor) -> float:
        """Make a step on `views`, P of [B, C, H, W], and return its loss."""
        logits, features = self._forward(self.student, views)
        ensemble = self.classifier(torch.cat(features, dim=1))
        with torch.no_grad():
            taught, _ = self._forward(self.teacher, views)
        terms = self._terms(logits, ensemble, taught, labels)
        loss = terms["ce"] + terms["ce_ensemble"] + terms["kd_ensemble"]
        loss = loss + terms["kd_individual"] + terms["kd_assembled"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, weight in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                average.mul_(self.weights.rate).add_(weight, alpha=1 - self.weights.rate)
        self.metrics = {name: term.item() for name, term in terms.items()} | {"loss": loss.item()}
        for i, each in enumerate([*logits, ensemble]):
            self.metrics[f"accuracy_{i}"] = (each.argmax(1) == labels).float().mean().item()
        return self.metrics["loss"]

    def _forward(self, network: BranchedNetwork, views: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        outputs = [
            branch(network.trunk(view))
            for branch, view in zip(cast("Iterable[nn.Module]", network.branches), views, strict=True)
        ]
        return [logits for logits, *_ in outputs], [features for _, features, _ in outputs]

    def _terms(self, logits: list[Tensor], ensemble: Tensor, taught: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        now = self.weights
        peers = len(logits)
        terms = {name: ensemble.new_zeros(()) for name in ("ce", "kd_ensemble", "kd_individual", "kd_assembled")}
        terms["ce_ensemble"] = F.cross_entropy(ensemble, labels)
        together = (now.rampup if now.ramped else now.scale) * now.ensemble
        each = now.rampup * (1 - now.ensemble)
        for i in range(peers):
            others = [taught[j] for j in range(peers) if j != i]
            terms["ce"] = terms["ce"] + F.cross_entropy(logits[i], labels)
            terms["kd_ensemble"] = terms["kd_ensemble"] + now.rampup * self._kd(logits[i], ensemble.detach())
            for other in others:
                individual = each * self._kd(logits[i], other) / len(others)
                terms["kd_individual"] = terms["kd_individual"] + individual
            assembled = torch.stack(others).mean(0)
            terms["kd_assembled"] = terms["kd_assembled"] + together * self._kd(logits[i], assembled)
        return terms

    def _kd(self, student: Tensor, teacher: Tensor) -> Tensor:
        t = self.weights.temperature
        divergence = F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean")
        return divergence * t * t
