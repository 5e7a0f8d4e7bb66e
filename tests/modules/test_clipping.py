"""Gradients are clipped network by network: the student has no influence on a teacher that learns beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.modules.toy import build, parameters_of, same, train_loader, trainer

CLIP = 0.01


class Norms(Callback):
    """Keep the norms of the gradients with which the optimizer steps."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        groups = {
            group["name"]: [p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups
        }
        if any(groups.values()):
            self.seen.append({name: float(torch.nn.utils.get_total_norm(grads)) for name, grads in groups.items()})


@pytest.mark.parametrize("method", ["online_checkpoints", "kdpm", "ekd"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_teacher_that_learns_is_clipped_apart_from_its_student(method: str, algorithm: str) -> None:
    teachers, norms = [], Norms()
    for weight in (0.1, 100.0):
        module = build({"name": method, "weight": weight}, 1, teacher={"init_steps": 0})
        fit = trainer(norms, max_epochs=2, gradient_clip_val=CLIP, gradient_clip_algorithm=algorithm)
        fit.fit(module, train_loader())
        teachers.append(parameters_of(module.teacher.network))
    assert same(*teachers)
    if algorithm == "norm":
        assert norms.seen
        assert all(max(seen["student"], seen["teacher"]) <= 1.001 * CLIP for seen in norms.seen)


def test_lightning_refuses_an_optimizer_that_unscales_gradients_itself() -> None:
    fused = partial(torch.optim.SGD, lr=0.1, fused=True)
    module = build("online_checkpoints", 1, teacher={"init_steps": 0}, optimizer=fused)
    fit = trainer(precision="bf16-mixed", gradient_clip_val=CLIP)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit.fit(module, train_loader())


def test_student_ensemble_and_method_share_one_norm() -> None:
    norms = Norms()
    trainer(norms, max_epochs=2, gradient_clip_val=CLIP).fit(build("dkel"), train_loader())
    assert [sum(norm**2 for norm in seen.values()) ** 0.5 for seen in norms.seen] == pytest.approx(
        [CLIP] * len(norms.seen), rel=1e-3
    )
