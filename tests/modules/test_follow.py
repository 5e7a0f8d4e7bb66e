"""The teacher follows after the optimizer's step, once a step, also where gradients are accumulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.modules.toy import build, parameters_of, train_loader, trainer


class Watch(Callback):
    """Compare the teacher with its update rule after every batch."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.step = trainer.global_step
        self.student = parameters_of(pl_module.student.network)
        self.teacher = parameters_of(pl_module.teacher.network)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        student, teacher = parameters_of(pl_module.student.network), parameters_of(pl_module.teacher.network)
        stepped = trainer.global_step > self.step
        self.steps.append(int(stepped))
        moved = [name for name in student if not torch.equal(student[name], self.student[name])]
        assert bool(moved) is stepped
        for name, before in self.teacher.items():
            expected = 0.5 * before + 0.5 * student[name] if stepped else before
            torch.testing.assert_close(teacher[name], expected)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, [1, 1, 1, 1]), (2, [0, 1, 0, 1]), (3, [0, 0, 1, 1])])
def test_the_teacher_averages_the_student_after_each_optimizer_step(accumulate: int, steps: list[int]) -> None:
    module, watch = build("dkel", 2, teacher={"decay": 0.5, "init_steps": 0}), Watch()
    trainer(watch, accumulate_grad_batches=accumulate).fit(module, train_loader(32))
    assert watch.steps == steps
    assert module.teacher is not None
    assert int(module.teacher.updates) == sum(steps)
