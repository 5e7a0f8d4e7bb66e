"""Groups of parameters, warm-up and cosine, the student's moving average of any method."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import SGD, AdamW

from dkel_lightning.errors import ConfigError
from dkel_lightning.methods import METHODS
from dkel_lightning.modules.optim import ParameterGroups, WarmupCosine
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings
from tests.modules.toy import build, images_and_labels, train_loader, trainer, val_loader


def test_an_optimizer_factory_may_split_the_groups_of_the_networks() -> None:
    def without_decay_of_vectors(groups: ParameterGroups) -> AdamW:
        split = []
        for group in groups:
            vectors = [parameter for parameter in group["params"] if parameter.dim() <= 1]
            matrices = [parameter for parameter in group["params"] if parameter.dim() > 1]
            split += [{**group, "params": matrices}, {**group, "params": vectors, "weight_decay": 0.0}]
        return AdamW(split, lr=1e-3, weight_decay=0.1)

    module = build(optimizer=without_decay_of_vectors)
    groups = module.configure_optimizers().param_groups
    assert [group["name"] for group in groups] == ["student", "student", "ensemble", "ensemble"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(("warmup", "length"), [(4, 4), (0.2, 4.0), (0, 0)])
def test_the_rate_rises_linearly_and_falls_by_a_cosine(warmup: float, length: float) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = SGD(groups, lr=1.0)
    schedule = WarmupCosine(optimizer, T_max=20, warmup=warmup, end=0.1)
    for time in range(23):
        fallen = min((time - length) / (20 - length), 1)
        expected = (time + 1) / (length + 1) if time < length else 0.55 + 0.45 * math.cos(math.pi * fallen)
        for group, base in zip(optimizer.param_groups, (1.0, 0.1), strict=True):
            assert group["lr"] == pytest.approx(base * expected)
        optimizer.step()
        schedule.step()
    with pytest.raises(ConfigError, match=r"scheduler.warmup=20 must be less than scheduler.T_max=20"):
        WarmupCosine(optimizer, T_max=20, warmup=20)
    of_run = WarmupCosine(optimizer, warmup=500)
    of_run.set_run_length(501)
    with pytest.raises(ConfigError, match=r"scheduler.warmup=500 must be less than scheduler.T_max=500"):
        of_run.set_run_length(500)


def test_without_a_length_the_cosine_ends_with_the_run() -> None:
    module = build(scheduler=partial(WarmupCosine, warmup=0.25), interval="step")
    fit = trainer(rates := LearningRates(), max_epochs=4)
    fit.fit(module, train_loader())  # 4 epochs of 3 steps
    expected = [rise / 4 for rise in (1, 2, 3)] + [(1 + math.cos(math.pi * fall / 9)) / 2 for fall in range(9)]
    assert rates.seen == pytest.approx([0.05 * factor for factor in expected])


class LearningRates(Callback):
    """The rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


PREPARING = ("heads", "sftn", "soteacher")  # a teacher is what they train
WITHOUT_TEACHER = [n for n, preset in METHODS.items() if preset.teacher == "none" and n not in PREPARING]


@pytest.mark.parametrize("name", WITHOUT_TEACHER)
def test_any_method_can_have_its_students_moving_average_beside_it(name: str) -> None:
    peers = 3 if name == "okddip" else 2
    plain, averaged = build(name, peers), build(name, peers, teacher="follow", deploy={"network": "teacher"})
    assert plain.teacher is None
    images, labels = images_and_labels(6)
    # It follows passively: the loss is what it was.
    assert averaged.training_step((images, labels), 0).item() == plain.training_step((images, labels), 0).item()
    fit = trainer()
    fit.fit(averaged, train_loader(), val_loader())
    assert averaged.teacher.updates.item() == 3
    assert averaged.deployed_member().startswith("teacher_")
    assert "val/acc/teacher_mean" in fit.callback_metrics


@pytest.mark.parametrize("name", sorted(TEACHERS.keys() - {"none"}))
def test_a_teacher_by_name_is_all_that_the_name_stands_for(name: str) -> None:
    for method in ("dkel", "pcl", "baseline"):  # whose own differ
        settings = build(method, teacher=name, schedules="shares").teacher.settings
        assert settings == TeacherSettings(**{**TEACHERS[name].settings, "decay": None, "decay_share": 0.01})
