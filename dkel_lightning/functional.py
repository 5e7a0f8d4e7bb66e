"""Losses of online distillation as pure functions of logits.

Shapes: P peers, B samples, C classes. Leading dimensions before [B, C] are kept, so a function takes the
logits of one peer or of all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning.errors import ConfigError


def at_least_float32(x: Tensor) -> Tensor:
    """Raise half types to float32 and leave float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the cross-entropy over the batch: `logits` [..., B, C] -> [...].

    `labels` are [B] classes, or float targets [B, C] or [..., B, C], such as distributions over the classes. Of targets
    [P, B, C] for peers, logits [B, C] of all of them learn the mean.
    """
    return sample_cross_entropy(logits, labels).mean(-1)


def sample_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Give the cross-entropy of each sample, [..., B]; see `cross_entropy`."""
    logits = at_least_float32(logits)
    if labels.is_floating_point():
        targets = labels.mean(0) if labels.dim() > logits.dim() else labels
        return -(targets * logits.log_softmax(-1)).sum(-1)
    flat = logits.reshape(-1, logits.shape[-1])
    repeated = labels.expand(*logits.shape[:-1]).reshape(-1)
    return F.cross_entropy(flat, repeated, reduction="none").view(logits.shape[:-1])


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Write classes [B] as float targets [B, C], without a look at their values; targets stay as they are."""
    if labels.is_floating_point():
        return labels
    return (labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)).to(torch.float32)


def classes_of(labels: Tensor) -> Tensor:
    """Give the class of each sample: classes [B] as they are, of targets [..., B, C] the largest, [..., B]."""
    return labels.argmax(-1) if labels.is_floating_point() else labels


def targets_of(
    labels: Tensor, num_classes: int, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Make what `cross_entropy` is to take of labels [B] or [..., B, C]: they themselves where nothing is asked for.

    With smoothing s a target is `(1 - s) y + s / C`. With class weights w [C] it is then multiplied by
    `w_c / mean_i sum_c w_c y_ic`. Both as in torch's cross_entropy, whose weighted mean this is for classes.
    """
    if label_smoothing == 0.0 and class_weights is None:
        return labels
    exact = one_hot(labels, num_classes)
    targets = exact * (1 - label_smoothing) + label_smoothing / num_classes
    if class_weights is None:
        return targets
    mean = (exact * class_weights).sum(-1, keepdim=True).mean(-2, keepdim=True)
    # A batch of nothing but classes of weight 0 teaches nothing.
    return targets * class_weights / mean.clamp_min(torch.finfo(mean.dtype).tiny)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute `T^2 KL(teacher || student)` of softened predictions, averaged over the batch.

    `student` and `teacher` are logits [..., B, C]; the result is [...]. Nothing is detached: a caller
    that teaches detaches its target. The factor T^2 keeps the size of the gradient when T changes.

    Source: Hinton et al. 2015; reduction and direction as in the released code of ONE, PCL and DKEL.
    """
    log_student = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return divergence.mean(-1) * temperature**2


def distillation_from_each(
    student: Tensor, teachers: Tensor, temperature: float, *, include_self: bool = False
) -> Tensor:
    """Average `T^2 KL(t_j || z_i)` over the teachers j of the other peers: [P, B, C] twice -> [P].

    The mean over j needs one pass only: the mean of the teachers' negative entropies minus the cross term
    with their mean probability. Hence its gradient is that of a single divergence to the mean probability.

    Source: PCL and DKEL, released code (leave-one-out mean of peer-to-teacher divergences).
    """
    log_student = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    log_teachers = F.log_softmax(at_least_float32(teachers) / temperature, dim=-1)
    probabilities = log_teachers.exp()
    negative_entropy = peer_mean((probabilities * log_teachers).sum(-1), include_self=include_self)
    cross = (peer_mean(probabilities, include_self=include_self) * log_student).sum(-1)
    return (negative_entropy - cross).mean(-1) * temperature**2


def peer_mean(x: Tensor, *, include_self: bool = False) -> Tensor:
    """Average over the other peers, `mean_{j != i} x_j` (or over all with `include_self`): [P, ...] -> [P, ...].

    Raises:
        ConfigError: with a single peer there is no other one to average over.
    """
    peers = x.shape[0]
    if include_self:
        return x.mean(0, keepdim=True).expand_as(x)
    if peers < 2:
        raise ConfigError("A leave-one-out mean needs at least 2 peers, got 1: raise the number of peers.")
    # A weighted sum rather than (sum - x_i): no cancellation, so probabilities stay positive.
    weights = (1 - torch.eye(peers, dtype=x.dtype, device=x.device)) / (peers - 1)
    return (weights.view(peers, peers, *[1] * (x.dim() - 1)) * x.unsqueeze(0)).sum(1)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` unchanged, and multiply the gradient that flows back through it by `factor`.

    Source: gradient rescaling at the splits of collaborative learning (Song & Chai, NeurIPS 2018).
    """
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


def assemble(teachers: Tensor, temperature: float, *, space: str = "logits", include_self: bool = False) -> Tensor:
    """Assemble the teachers' knowledge for every peer: logits [P, B, C] -> target logits [P, B, C].

    `space="logits"` averages logits. `space="probabilities"` averages `softmax(t / T)` and returns the logits
    `T log(mean)`, whose softened softmax is that mean.

    Source: DKEL, released code (logits, leave-one-out); probabilities are the switch of this library.
    """
    teachers = at_least_float32(teachers)
    if space == "logits":
        return peer_mean(teachers, include_self=include_self)
    if space == "probabilities":
        mean = peer_mean(F.softmax(teachers / temperature, dim=-1), include_self=include_self)
        return temperature * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    raise ConfigError(f"Unknown space {space!r} for assembling teachers: choose logits or probabilities.")
