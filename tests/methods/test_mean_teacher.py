"""Mean Teacher: its loss and gradients by hand, whose view is whose, the rate of its average, a run."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning import DistillationModule, MethodInputs, PeerOutputs, methods
from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import Clock
from tests.methods.family import total, trained_and_deployed
from tests.modules.toy import Recorder, build, images_and_labels, train_loader, trainer


def loss(student: Tensor, teacher: Tensor, labels: Tensor, rampup: float, **settings: Any) -> Tensor:
    method = methods.create("mean_teacher", len(student), settings).double()
    method.rampup_weight.fill_(rampup)
    step = MethodInputs(labels, PeerOutputs(student, student), PeerOutputs(teacher, teacher))
    terms = method.loss_terms(step)
    assert tuple(terms) == method.terms
    return total(terms)


def test_two_pairs_by_explicit_numbers_each_student_pulled_to_its_own_teacher() -> None:
    # Students predict (3/4, 1/4) and (1/2, 1/2), their teachers (1/2, 1/2) and (1/2, 1/2); label 0, weight 4.
    student = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    teacher = torch.zeros(2, 1, 2, dtype=torch.float64, requires_grad=True)
    value = loss(student, teacher, torch.tensor([0]), 4.0)
    # (1/4)^2 + (1/4)^2 for the first pair, nothing for the second.
    assert value.item() == pytest.approx(math.log(4 / 3) + math.log(2) + 4 / 8, rel=1e-12)
    found = torch.autograd.grad(value, [student, teacher], allow_unused=True)
    # p - y = (-1/4, 1/4); 2 p_a (d_a - sum_c p_c d_c) with d = (1/4, -1/4) is (3/16, -3/16), times 4.
    torch.testing.assert_close(found[0][:, 0].tolist(), [[0.5, -0.5], [-0.5, 0.5]], atol=1e-12, rtol=0)
    assert found[1] is None


@pytest.mark.parametrize("consistency", ["mse", "kl"])
def test_loss_and_gradients_are_those_of_plain_torch_and_the_teacher_gets_none(consistency: str) -> None:
    draws = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 4, generator=draws, dtype=torch.float64).requires_grad_() for _ in range(2))
    labels = torch.arange(5) % 4
    value = loss(student, teacher, labels, 3.0, consistency=consistency)
    expected = torch.zeros((), dtype=torch.float64)
    for z, t in zip(student, teacher.detach(), strict=True):
        expected = expected + F.cross_entropy(z, labels)
        if consistency == "mse":
            expected = expected + 3 * F.mse_loss(z.softmax(-1), t.softmax(-1), reduction="sum") / len(z)
        else:
            expected = expected + 3 * F.kl_div(z.log_softmax(-1), t.softmax(-1), reduction="batchmean")
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    found = torch.autograd.grad(value, [student, teacher], allow_unused=True)
    torch.testing.assert_close(found[0], torch.autograd.grad(expected, student)[0])
    assert found[1] is None


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_weight_of_the_consistency_follows_the_classes(classes: int) -> None:
    # The authors average over the classes and weight that by C to C^2: by default C, 10 on CIFAR-10.
    draws = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 5, classes, generator=draws, dtype=torch.float64) for _ in range(2))
    labels = torch.arange(5) % classes
    method = methods.create("mean_teacher", 1)
    consistency = F.mse_loss(student.softmax(-1), teacher.softmax(-1))
    value = loss(student, teacher, labels, method.rampup.weight(Clock(epoch=5))) - F.cross_entropy(student[0], labels)
    assert value.item() == pytest.approx(classes * consistency.item(), rel=1e-12)


def test_the_teacher_sees_the_second_half_of_the_views_in_training_and_in_its_initialisation() -> None:
    module = build("mean_teacher", peers=1, teacher={"draw": "independent"}).eval()
    (images, labels), (others, _) = images_and_labels(6), images_and_labels(6, 1)
    module.method.rampup_weight.fill_(2.0)
    value = module.training_step((torch.stack([images, others], 1), labels), 0)
    z, t = module.student.peer(0)(images), module.teacher.peer(0)(others)
    consistency = F.mse_loss(z.softmax(-1), t.softmax(-1), reduction="sum") / len(z)
    assert value.item() == pytest.approx((F.cross_entropy(z, labels) + 2 * consistency).item(), rel=1e-5)
    fitted = build("mean_teacher", peers=2, teacher={"init_steps": 2, "draw": "independent"})
    trainer(limit_train_batches=1).fit(fitted, train_loader(views=4))
    assert bool(fitted.teacher.initialised)


def test_an_augmentation_makes_a_view_for_each_student_and_each_teacher() -> None:
    module = build("mean_teacher", peers=2, augmentation=lambda images, generator: images + 1)
    assert module.make_views(images_and_labels(4)[0], 0).shape == (4, 4, 3, 8, 8)


def test_the_teacher_is_the_even_mean_of_its_students_history_and_not_its_student() -> None:
    # At rates 1/2, 2/3, 3/4 all states so far weigh the same. A rate of min(1e-3, ...) would leave the student itself.
    module, recorder = build("mean_teacher", peers=1), Recorder()
    trainer(callbacks=[recorder], max_epochs=2, limit_train_batches=2).fit(module, train_loader())
    assert module.teacher is not None
    assert len(recorder.teachers) == 4
    for updates, teacher in enumerate(recorder.teachers):
        for name, value in teacher.items():
            history = torch.stack([student[name] for student in recorder.students[: updates + 1]])
            torch.testing.assert_close(value, history.mean(0), rtol=1e-4, atol=1e-6)
    assert not any(torch.equal(value, recorder.students[-1][name]) for name, value in recorder.teachers[-1].items())


def test_the_rate_ends_at_its_configured_value() -> None:
    module, recorder = build("mean_teacher", peers=1, teacher={"decay": 0.5}), Recorder()
    trainer(callbacks=[recorder], max_epochs=2, limit_train_batches=2).fit(module, train_loader())
    for before, after, student in zip(recorder.teachers, recorder.teachers[1:], recorder.students[1:], strict=False):
        for name, value in after.items():
            torch.testing.assert_close(value, 0.5 * before[name] + 0.5 * student[name], rtol=1e-4, atol=1e-6)


def test_one_pair_is_the_default_and_a_teacher_is_needed() -> None:
    module = DistillationModule.build("resnet8", 10, "mean_teacher")
    assert module.scores.members == ("student_0", "teacher_0")
    with pytest.raises(ConfigError, match="MeanTeacher needs a teacher"):
        build("mean_teacher", teacher={"update": "none"})


def test_a_run_ramps_up_and_deploys_a_plain_teacher(tmp_path: Path) -> None:
    result, *_ = trained_and_deployed(tmp_path, "method=mean_teacher", "method.peers=2", "deploy.network=teacher")
    assert result.last.deployed.startswith("teacher_")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        weights = [float(row["weights/rampup"]) for row in csv.DictReader(file)]
    assert weights == pytest.approx([math.exp(-5), math.exp(-5 * 0.8**2)], rel=1e-5)
