"""KDCL: online knowledge distillation via collaborative learning (Guo et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dkel_lightning.functional import at_least_float32, cross_entropy, one_hot, sample_cross_entropy
from dkel_lightning.methods.base import STUDENT, Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils, Weight
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.declarations import choice

LINEAR_STEPS = 50


def naive(logits: Tensor, labels: Tensor) -> Tensor:
    """Take for each sample the peer with the lowest cross-entropy: [P, B, C], labels -> [B, C]."""
    best = sample_cross_entropy(logits, labels).argmin(0)
    return logits.gather(0, best.view(1, -1, 1).expand(1, -1, logits.shape[-1])).squeeze(0)


def linear(logits: Tensor, labels: Tensor) -> Tensor:
    """Combine the peers' logits with the convex weights of `linear_weights`: [P, B, C], labels -> [B, C]."""
    logits = at_least_float32(logits)
    return (linear_weights(logits, labels).view(-1, 1, 1) * logits).sum(0)


@torch.no_grad()
def linear_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """Find the convex weights of the peers whose mixed logits have the lowest cross-entropy over the batch: [P].

    Exponentiated gradient from equal weights. A step that lowers the objective is kept and the next one is twice as
    long, any other is dropped and the next a quarter as long: never worse than the plain mean, deterministic, always
    `LINEAR_STEPS` steps, nothing read back to the host.
    """
    logits = at_least_float32(logits)
    # The weights sum to 1, so subtracting the mean of the peers changes no gradient.
    differing = logits - logits.mean(0)
    truth = one_hot(labels, logits.shape[-1]).to(logits.dtype)
    whole = truth.sum(-1, keepdim=True)

    def objective(weights: Tensor) -> tuple[Tensor, Tensor]:
        # Products and sums, not a matrix product, which autocast would make a half-precision one.
        log_mixed = (weights.view(-1, 1, 1) * logits).sum(0).log_softmax(-1)
        gradient = ((whole * log_mixed.exp() - truth) * differing).sum(-1).mean(-1)
        return -(log_mixed * truth).sum(-1).mean(), gradient

    # The variance of a variable is at most a quarter of its squared range: the curvature nowhere exceeds this.
    spread = (differing.amax(-1) - differing.amin(-1)).amax(0)
    length = 4 / spread.square().mean().clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)
    log_weights = logits.new_zeros(logits.shape[0]).log_softmax(0)
    value, gradient = objective(log_weights.exp())
    for _ in range(LINEAR_STEPS):
        tried = (log_weights - length * gradient).log_softmax(0)
        tried_value, tried_gradient = objective(tried.exp())
        better = tried_value < value
        log_weights = torch.where(better, tried, log_weights)
        value = torch.where(better, tried_value, value)
        gradient = torch.where(better, tried_gradient, gradient)
        length = torch.where(better, 2 * length, length / 4)
    return log_weights.exp()


def min_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Take the smallest margin of each class over the peers, `min_k (z_k - z_k[y])`: [P, B, C], [B] -> [B, C]."""
    true_class = labels.view(1, -1, 1).expand(logits.shape[0], -1, 1)
    return (logits - logits.gather(-1, true_class)).amin(0)


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the peers' logits: [P, B, C], labels -> [B, C]."""
    return logits.mean(0)


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "linear": linear,
    "min_logit": min_logit,
    "mean": mean,
}


@dataclass(frozen=True)
class KDCLSettings(Distils):
    """Settings of KDCL, which has no ramp-up."""

    weight: Weight = 1.0
    target: Annotated[str, choice("The one target of all peers.", "naive", "linear", "min_logit", "mean")] = "min_logit"


@register("kdcl", sharing="nothing")
class KDCL(Distilling):
    """Collaborative learning: separate networks with a view each learn from one target made of all of them.

    `L = sum_i [ CE(z_i) + w KD(z_i, sg t) ]`, with one target t made of all peers' logits.

    Detached: t. Deployed: the best peer of the student.
    """

    Settings = KDCLSettings
    needs = Needs(teacher=False, minimum_peers=2, deploy=STUDENT)
    settings: KDCLSettings
    terms = ("ce", "kd_target")  # labels, and the common target

    @property
    def wants_classes(self) -> bool:
        return super().wants_classes or self.settings.target in ("min_logit", "naive")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        logits = inputs.student.logits
        labels = inputs.classes if self.settings.target == "min_logit" else inputs.labels
        target = TARGETS[self.settings.target](logits.detach(), labels)
        divergence = self.distil(logits, target.expand_as(logits), inputs.classes)
        return {"ce": cross_entropy(logits, inputs.labels).sum(), "kd_target": self.settings.weight * divergence.sum()}
