"""The moving average that makes a teacher from its student.

torch's `AveragedModel` and Lightning's `WeightAveraging` copy the live weights at their first update, which would
erase the independent initial weights of a teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError

START_OFFSETS = {"keep": None, "mean_teacher": 2, "copy": 1}
"""By start rule, the offset in `a_t = min(1 - 1 / (t + offset), a)`, t earlier updates; None for a constant rate.

`keep` holds the rate constant, so the teacher's own weights fade as a^t. `mean_teacher` has rate 1/2 at the first
update. `copy` has rate 0 there: the teacher becomes its student (the released behaviour of PCL and DKEL).
"""


def update_rate(updates: Tensor, rate: float, start: str) -> float | Tensor:
    """Return the rate `a_t` of the update that follows `updates` earlier ones.

    A float for `keep`; otherwise a scalar tensor on the counter's device, to avoid a synchronisation.

    Source: Mean Teacher (Tarvainen & Valpola 2017) from t = 1; PCL and DKEL, released code, from t = 0.
    """
    offset = START_OFFSETS[start]
    if offset is None:
        return rate
    # MPS has no float64.
    precise = torch.float32 if updates.device.type == "mps" else torch.float64
    return (1.0 - 1.0 / (updates + offset).to(precise)).clamp_max(rate)


@torch.no_grad()
def average_(teacher: Sequence[Tensor], student: Sequence[Tensor], rate: float | Tensor) -> None:
    """Move `teacher` in place: `theta_t <- a theta_t + (1 - a) theta_s`, with multi-tensor operations.

    A rate of 0 leaves an exact copy of the student.
    """
    if not teacher:
        return
    targets = list(teacher)
    # A student in bf16-true has an average in float32.
    pairs = zip(teacher, student, strict=True)
    sources = [theirs if theirs.dtype == ours.dtype else theirs.to(ours.dtype) for ours, theirs in pairs]
    if isinstance(rate, float | int):
        torch._foreach_lerp_(targets, sources, 1.0 - rate)
        return
    # lerp with a tensor weight reads it back to the host; multiplication and addition do not.
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        group = by_type.setdefault(target.dtype, ([], []))
        group[0].append(target)
        group[1].append(source)
    for dtype, (some_targets, some_sources) in by_type.items():
        keep = rate.to(dtype=dtype)
        torch._foreach_mul_(some_targets, keep)
        torch._foreach_add_(some_targets, torch._foreach_mul(some_sources, (1.0 - rate).to(dtype=dtype)))


def matched(teacher: nn.Module, student: nn.Module, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """Pair the `parameters` or `buffers` of two networks of the same form by name."""
    ours, theirs = _named(teacher, kind), _named(student, kind)
    wrong = sorted(ours.keys() ^ theirs.keys())
    wrong += [name for name in ours if name in theirs and ours[name].shape != theirs[name].shape]
    if wrong:
        listed = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise ConfigError(f"Teacher and student are not of the same form; they differ in {len(wrong)}: {listed}.")
    return list(ours.values()), [theirs[name] for name in ours]


def _named(network: nn.Module, kind: str) -> dict[str, Tensor]:
    return dict(network.named_parameters() if kind == "parameters" else network.named_buffers())
