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

from dkel_lightning import MethodInputs, PeerOutputs, methods
from tests.methods.family import total, trained_and_deployed
from tests.modules.toy import Recorder, build, images_and_labels, train_loader, trainer


def loss(student: Tensor, teacher: Tensor, labels: Tensor, rampup: float, **settings: Any) -> Tensor:
    method = methods.create("mean_teacher", len(student), settings).double()
    method.rampup_weight.fill_(rampup)
    step = MethodInputs(labels, PeerOutputs(student, student), PeerOutputs(teacher, teacher))
    terms = method.loss_terms(step)
    assert tuple(terms) == method.terms
    return total(terms)


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


def test_a_run_ramps_up_and_deploys_a_plain_teacher(tmp_path: Path) -> None:
    length = ("method.rampup.epochs=5", "method.rampup.share=null")
    result, *_ = trained_and_deployed(
        tmp_path, "method=mean_teacher", "method.peers=2", "deploy.network=teacher", *length
    )
    assert result.last.deployed.startswith("teacher_")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        weights = [float(row["weights/rampup"]) for row in csv.DictReader(file)]
    assert weights == pytest.approx([math.exp(-5), math.exp(-5 * 0.8**2)], rel=1e-5)
