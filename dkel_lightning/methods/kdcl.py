"""KDCL: online knowledge distillation via collaborative learning (Guo et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning.functional import at_least_float32, cross_entropy, distillation
from dkel_lightning.methods.base import Method, register
from dkel_lightning.methods.pcl import check_temperature
from dkel_lightning.modules.outputs import Step
from dkel_lightning.schedules import non_negative, one_of

LINEAR_STEPS = 50


def naive(logits: Tensor, labels: Tensor) -> Tensor:
    """Take for each sample the peer with the lowest cross-entropy: [P, B, C], [B] -> [B, C]."""
    true_class = labels.view(1, -1, 1).expand(logits.shape[0], -1, 1)
    best = at_least_float32(logits).log_softmax(-1).gather(-1, true_class).argmax(0)
    return logits.gather(0, best.view(1, -1, 1).expand(1, -1, logits.shape[-1])).squeeze(0)


def linear(logits: Tensor, labels: Tensor) -> Tensor:
    """Combine the peers' logits with the convex weights of `linear_weights`: [P, B, C], [B] -> [B, C]."""
    logits = at_least_float32(logits)
    return (linear_weights(logits, labels).view(-1, 1, 1) * logits).sum(0)


@torch.no_grad()
def linear_weights(logits: Tensor, labels: Tensor, steps: int = LINEAR_STEPS) -> Tensor:
    """Find the convex weights of the peers whose mixed logits have the lowest cross-entropy over the batch: [P].

    Accelerated exponentiated gradient from equal weights (Tseng 2008): deterministic, a fixed number of steps,
    nothing read back to the host. The objective is above its minimum by at most `4 L log P / (steps + 1)^2`.
    """
    logits = at_least_float32(logits)
    # Weights sum to 1, so what all peers say alike does not curve the objective.
    differing = logits - logits.mean(0)
    spread = differing.amax(-1) - differing.amin(-1)
    # The variance of a variable of this spread is at most a quarter of its square: smoothness in the l1 norm.
    smoothness = (spread.square().amax(0).mean() / 4).clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)
    truth = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    score = logits.new_zeros(logits.shape[0])
    weights = mirrored = score.softmax(0)
    for step in range(steps):
        momentum = 2.0 / (step + 2)
        ahead = (1 - momentum) * weights + momentum * mirrored
        # Products and sums, not a matrix product: autocast would make that one a half-precision one.
        error = (ahead.view(-1, 1, 1) * logits).sum(0).softmax(-1) - truth
        gradient = (error * differing).sum(-1).mean(-1)
        score = score - gradient / (momentum * smoothness)
        mirrored = score.softmax(0)
        weights = (1 - momentum) * weights + momentum * mirrored
    return weights


def min_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """Take the smallest margin of each class over the peers, `min_k (z_k - z_k[y])`: [P, B, C], [B] -> [B, C]."""
    true_class = labels.view(1, -1, 1).expand(logits.shape[0], -1, 1)
    return (logits - logits.gather(-1, true_class)).amin(0)


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the peers' logits: [P, B, C], [B] -> [B, C]."""
    return logits.mean(0)


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "linear": linear,
    "min_logit": min_logit,
    "mean": mean,
}


@dataclass(frozen=True)
class KDCLSettings:
    """Settings of KDCL.

    Attributes:
        temperature: T.
        weight: of what the common target teaches, from the first step on.
        target: how the peers' logits become the target: `naive`, `linear`, `min_logit` or `mean`.
    """

    temperature: float = 3.0
    weight: float = 1.0
    target: str = "min_logit"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        non_negative("method.weight", self.weight)
        one_of("method.target", self.target, TARGETS)


@register("kdcl", sharing="nothing")
class KDCL(Method):
    """`L = sum_i [ CE(z_i) + w KD(z_i, sg t) ]`: separate networks, a view each, one target t of all peers' logits.

    Detached: t. Deployed: the best peer of the student.
    """

    Settings: ClassVar[type[KDCLSettings]] = KDCLSettings
    settings: KDCLSettings
    teacher: ClassVar[str] = "none"
    uses_ensemble: ClassVar[bool] = False
    deployed_network: ClassVar[str] = "student"

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms: labels, and the common target."""
        return ("ce", "kd_target")

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        logits = step.student.logits
        target = TARGETS[self.settings.target](logits.detach(), step.labels)
        divergence = distillation(logits, target.expand_as(logits), self.settings.temperature)
        return {"ce": cross_entropy(logits, step.labels).sum(), "kd_target": self.settings.weight * divergence.sum()}
