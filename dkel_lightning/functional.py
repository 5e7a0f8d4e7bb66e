"""Losses of online distillation as pure functions of logits.

Shapes: P peers, B samples, C classes. Leading dimensions before [B, C] are kept, so a function takes the
logits of one peer or of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning.errors import ConfigError

HALF_TYPES = (torch.float16, torch.bfloat16)
UNKNOWN = -1
"""The label of a sample whose class is not known."""


def at_least_float32(x: Tensor) -> Tensor:
    """Raise half types to float32 and leave float32 and float64 as they are."""
    return x.float() if x.dtype in HALF_TYPES else x


def not_halved(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap the function of a module's `_apply`: tensors are moved, but not turned into a half type (`bf16-true`)."""

    @wraps(fn)  # torchmetrics reads the name
    def applied(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return tensor.to(moved.device) if moved.dtype in HALF_TYPES and tensor.dtype not in HALF_TYPES else moved

    return applied


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the cross-entropy over the samples whose label is known: `logits` [..., B, C] -> [...].

    `labels` are classes [B], -1 where not known, or float targets [B, C] such as distributions over the classes, which
    `targets_of` scales to the mean over the known samples. Without a known sample the result is 0.
    """
    losses = sample_cross_entropy(logits, labels)
    mean = losses.mean(-1)
    return mean if labels.is_floating_point() else mean * _inverse_share(is_known(labels))


def sample_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, [..., B], 0 where its label is not known; see `cross_entropy`."""
    logits = at_least_float32(logits)
    if labels.is_floating_point():
        return -(labels * logits.log_softmax(-1)).sum(-1)
    flat = logits.reshape(-1, logits.shape[-1])
    repeated = labels.expand(*logits.shape[:-1]).reshape(-1)
    return F.cross_entropy(flat, repeated, ignore_index=UNKNOWN, reduction="none").view(logits.shape[:-1])


def is_known(labels: Tensor) -> Tensor:
    """Return which labels are known: classes [B] other than -1, or targets [..., B, C] that are not 0 everywhere."""
    return labels.sum(-1) > 0 if labels.is_floating_point() else labels != UNKNOWN


def _inverse_share(known: Tensor) -> Tensor:
    """Return 1 over the known share of samples [..., B] -> [...]: exactly 1 where all are known; of none any number."""
    return known.shape[-1] / known.sum(-1).clamp_min(1e-6)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Turn classes [B] into float targets [B, C], 0 where a class is not known; targets stay as they are."""
    return labels if labels.is_floating_point() else _mask(labels, num_classes).to(torch.float32)


def classes_of(labels: Tensor) -> Tensor:
    """Return the class of each sample: classes [B] as they are, of targets [..., B, C] the largest, [..., B]."""
    return labels.argmax(-1) if labels.is_floating_point() else labels


def targets_of(
    labels: Tensor, num_classes: int, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Smooth and weight labels [B] or [..., B, C] for `cross_entropy`; by default they stay as they are.

    With smoothing s a target y is `(1 - s) y + s / C`. With class weights w [C] it is then multiplied by w_c, and of
    classes [B] divided by the batch's mean weight. The cross-entropy with the result is torch's
    `cross_entropy(weight=, label_smoothing=)`, which takes the weighted mean for classes and the plain one for targets.
    Targets of unknown labels are 0; those mixed with one by mixup or cutmix sum to the known share of the sample. All
    are scaled so that a mean over the batch is one over what is known.
    """
    if label_smoothing == 0.0 and class_weights is None and not labels.is_floating_point():
        return labels
    targets = one_hot(labels, num_classes)
    known = targets.sum(-1, keepdim=True)  # of each sample: 0, 1 or, where it was mixed, a share
    scale = _inverse_share(known.squeeze(-1))
    if label_smoothing > 0.0:
        targets = targets * (1 - label_smoothing) + label_smoothing / num_classes * known
    if class_weights is not None:
        targets = targets * class_weights
        if not labels.is_floating_point():
            mean = (class_weights[labels.clamp_min(0)] * known.squeeze(-1)).mean() * scale
            # A batch of nothing but classes of weight 0 teaches nothing.
            targets = targets / mean.clamp_min(torch.finfo(class_weights.dtype).tiny)
    return targets * scale[..., None, None]


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute `T^2 KL(teacher || student)` of softened predictions, averaged over the batch.

    `student` and `teacher` are logits [..., B, C]; the result is [...]. Nothing is detached: a caller
    that teaches detaches its target. The factor T^2 keeps the size of the gradient when T changes.

    Source: Hinton et al. 2015; reduction and direction as in the released code of ONE, PCL and DKEL.
    """
    return sample_divergence(student, teacher, temperature).mean(-1) * temperature**2


def sample_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `KL(teacher || student)` of the softened predictions of each sample: logits [..., B, C] -> [..., B]."""
    log_student = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, dim=-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


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


def decoupled(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float | Tensor = 8.0
) -> Tensor:
    """Compute decoupled KD, `T^2 [alpha KL(b_t || b_s) + beta KL(n_t || n_s)]`, averaged over the batch.

    b is the softened pair (true class, all others), n the softened distribution over the others alone. With
    `beta = 1 - p_t` of the true class, one for each sample, and alpha = 1 it is `distillation`. `student` and `teacher`
    are logits [..., B, C] that broadcast, `labels` the true classes [B], `beta` may be [..., B]. Nothing is detached.

    Source: Zhao et al., CVPR 2022, arXiv 2203.08679; alpha 1 and beta 8 of the authors' code.
    """
    true_class = _mask(labels, student.shape[-1])
    student_pair, student_others = _split(student, true_class, temperature)
    teacher_pair, teacher_others = _split(teacher, true_class, temperature)
    target_class = (teacher_pair.exp() * (teacher_pair - student_pair)).sum(-1)
    non_target = (teacher_others.exp() * (teacher_others - student_others)).sum(-1)
    return (alpha * target_class + beta * non_target).mean(-1) * temperature**2


def normalised(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, gamma: float = 1.5) -> Tensor:
    """Compute normalised KD, `-p_t log p_s - gamma T^2 sum_n n_t log n_s`, averaged over the batch.

    p are the probabilities of the true class at T = 1, n the softened distributions over the other classes, each of
    sum 1. Both terms are cross-entropies, so the least value is not 0. Shapes and gradients as in `decoupled`.

    Source: Yang et al., ICCV 2023, arXiv 2303.13005; gamma 1.5 of the authors' code.
    """
    true_class = _mask(labels, student.shape[-1])
    student_pair, teacher_pair = _split(student, true_class, 1.0)[0], _split(teacher, true_class, 1.0)[0]
    student_others, teacher_others = (_split(logits, true_class, temperature)[1] for logits in (student, teacher))
    non_target = (teacher_others.exp() * student_others).sum(-1)
    target_class = teacher_pair[..., 0].exp() * student_pair[..., 0]
    return -(target_class + gamma * temperature**2 * non_target).mean(-1)


def standardised(logits: Tensor) -> Tensor:
    """Standardise the logits of each sample over the classes, `(z - mean) / (deviation + 1e-7)`: [..., C] -> [..., C].

    The deviation has the divisor C - 1, and the gradient flows through both statistics. The result does not change when
    z is shifted or scaled. Where all logits are equal the gradient is up to 1e7 times as large.

    Source: Sun et al., CVPR 2024, arXiv 2403.01427, algorithm 1.
    """
    logits = at_least_float32(logits)
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


def _mask(labels: Tensor, num_classes: int) -> Tensor:
    # Not F.one_hot, which on some devices reads the labels back to check them.
    return labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)


def _split(logits: Tensor, true_class: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of (true class, all others), [..., 2], and of the others alone, 0 at the true class.

    The latter are [..., C], and what they are multiplied with there cancels or is 0.
    """
    log_all = F.log_softmax(at_least_float32(logits) / temperature, dim=-1)
    others = log_all.masked_fill(true_class, -torch.inf)
    rest = others.logsumexp(-1, keepdim=True)
    pair = torch.cat([log_all.masked_fill(~true_class, 0.0).sum(-1, keepdim=True), rest], dim=-1)
    return pair, (others - rest).masked_fill(true_class, 0.0)


def peer_mean(x: Tensor, *, include_self: bool = False) -> Tensor:
    """Average over the other peers, `mean_{j != i} x_j` (or over all with `include_self`): [P, ...] -> [P, ...]."""
    peers = x.shape[0]
    if include_self:
        return x.mean(0, keepdim=True).expand_as(x)
    if peers < 2:
        raise ConfigError("A leave-one-out mean needs at least 2 peers, got 1: raise the number of peers.")
    # A weighted sum rather than (sum - x_i): no cancellation, so probabilities stay positive.
    weights = (1 - torch.eye(peers, dtype=x.dtype, device=x.device)) / (peers - 1)
    return (weights.view(peers, peers, *[1] * (x.dim() - 1)) * x.unsqueeze(0)).sum(1)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` unchanged, and multiply the gradient that flows back through it by `factor`.

    Source: gradient rescaling at the splits of collaborative learning (Song & Chai, NeurIPS 2018).
    """
    return x.detach() + factor * (x - x.detach())


def assemble(teachers: Tensor, temperature: float, *, space: str = "logits", include_self: bool = False) -> Tensor:
    """Assemble the teachers' knowledge for every peer: logits [P, B, C] -> target logits [P, B, C].

    `space="logits"` averages logits. `space="probabilities"` averages `softmax(t / T)` and returns the logits
    `T log(mean)`; their softened softmax is that mean.

    Source: DKEL, released code (logits, leave-one-out); probabilities are the switch of this library.
    """
    teachers = at_least_float32(teachers)
    if space == "logits":
        return peer_mean(teachers, include_self=include_self)
    mean = peer_mean(F.softmax(teachers / temperature, dim=-1), include_self=include_self)
    return temperature * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
