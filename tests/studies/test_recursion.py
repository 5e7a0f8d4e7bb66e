"""The closed forms beside both analyses, each against the recursion, an eigenvalue or the library's own functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dkel_lightning import functional, methods
from dkel_lightning.methods.dkel import DKEL
from dkel_lightning.schedules import TEACHER_WEIGHTS, ensemble_weight, rampup
from dkel_lightning.studies import recursion
from tests.studies import closed_forms

# ---------------------------------------------------------------------- what a training uses


@pytest.mark.parametrize("weights", list(TEACHER_WEIGHTS))
@pytest.mark.parametrize("epoch", [0, 3, 40, 90])
def test_the_weights_are_those_of_a_training_with_dkel(weights: str, epoch: int) -> None:
    method = methods.create("dkel", 3, {"rampup": {"scale": 0.7}, "ensemble": {"decay": 0.1, "weights": weights}})
    assert isinstance(method, DKEL)
    method.rampup_weight.fill_(rampup(epoch, 0.7, 80))
    method.ensemble_weight.fill_(ensemble_weight(epoch, 0.1))
    trained = method.teacher_weights()
    expected = recursion.teacher_weights(epoch, 0.7, 80, 0.1, weights)
    assert expected == pytest.approx([float(w) for w in trained], rel=1e-5)


@pytest.mark.parametrize(
    ("k", "at", "minimum", "share"),
    [
        (0.5, {0: 1.00, 10: 0.022, 20: 0.06, 40: 0.29, 60: 0.73}, 0.022, 1.0),
        (0.2, {}, 0.076, 2.1),
        (0.1, {}, 0.17, 4.0),
        (0.05, {}, 0.33, 7.6),
        (0.02, {}, 0.60, 17.8),
    ],
)
def test_the_total_teacher_weight_over_300_epochs(k: float, at: dict[int, float], minimum: float, share: float) -> None:
    weights = [recursion.teacher_weights(epoch, 1.0, 80, k, "complement") for epoch in range(300)]
    total = [sum(pair) for pair in weights]
    assert {epoch: total[epoch] for epoch in at} == pytest.approx(at, abs=0.005)
    assert min(total) == pytest.approx(minimum, abs=0.005)
    assert 100 * sum(assembled for assembled, _ in weights) / sum(total) == pytest.approx(share, abs=0.06)
    if k == 0.5:
        assert sum(weight < 0.1 for weight in total) == 21


@pytest.mark.parametrize(("curvature", "weight", "lr", "decay"), [(1, 1, 0.05, 0.98), (0.1, 3, 0.1, 0.999)])
def test_three_peers_follow_the_matrices_of_their_mean_and_of_their_differences(
    curvature: float, weight: float, lr: float, decay: float
) -> None:
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(2, 3))
    first = np.array([student, teacher])
    for _ in range(30):
        others = (teacher.sum() - teacher) / 2
        student = student - lr * (curvature * student + weight * (student - others))
        teacher = decay * teacher + (1 - decay) * student
    mean = recursion.mode_matrix(curvature, weight, lr, decay, weight)
    apart = recursion.mode_matrix(curvature, weight, lr, decay, closed_forms.difference_coupling(weight, 3))
    after = np.array([student, teacher])
    assert after.mean(1) == pytest.approx(np.linalg.matrix_power(mean, 30) @ first.mean(1), abs=1e-13)
    differences = first - first.mean(1, keepdims=True)
    expected = np.linalg.matrix_power(apart, 30) @ differences
    assert after - after.mean(1, keepdims=True) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("curvature", "student", "teachers"), [(1.0, 0.530, 0.20), (0.1, 0.104, 0.006)])
def test_a_teacher_takes_variance_from_its_student_and_diversity_from_the_teachers(
    curvature: float, student: float, teachers: float
) -> None:
    alone = closed_forms.stationary_covariance(recursion.mode_matrix(curvature, 0, 0.1, 0.999, 0), 0.999)
    mean = closed_forms.stationary_covariance(recursion.mode_matrix(curvature, 1, 0.1, 0.999, 1), 0.999)
    apart = closed_forms.stationary_covariance(recursion.mode_matrix(curvature, 1, 0.1, 0.999, -0.5), 0.999)
    assert mean[0, 0] / alone[0, 0] == pytest.approx(student, abs=0.0005)
    assert mean[0, 0] / alone[0, 0] == pytest.approx(curvature / (curvature + 1), abs=0.05)
    assert apart[0, 0] / alone[0, 0] == pytest.approx(student, abs=0.01)
    assert apart[1, 1] / alone[1, 1] == pytest.approx(teachers, abs=0.0015)


def gradients(student: Tensor, teachers: Tensor, space: str, temperature: float = 3.0) -> tuple[Tensor, Tensor]:
    """Give the gradients in the logits of the peers, assembled and individual: [P, B, C] each."""
    student = student.clone().requires_grad_()
    target = functional.assemble(teachers, temperature, space=space)
    assembled = functional.distillation(student, target, temperature).sum()
    individual = functional.distillation_from_each(student, teachers, temperature).sum()
    return torch.autograd.grad(assembled, student)[0], torch.autograd.grad(individual, student)[0]


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_probabilities_teach_exactly_what_the_individual_teachers_teach() -> None:
    student, teachers = logits(3, 5, 10), logits(3, 5, 10, seed=1)
    assembled, individual = gradients(student, teachers, "probabilities")
    assert torch.allclose(assembled, individual, atol=1e-14)
    others = functional.peer_mean(torch.softmax(teachers / 3, -1))
    assert torch.allclose(individual, 3 * (torch.softmax(student / 3, -1) - others) / 5, atol=1e-14)
    # The losses differ by what does not depend on the student.
    target = functional.assemble(teachers, 3.0, space="probabilities")
    gaps = [
        functional.distillation_from_each(z, teachers, 3.0) - functional.distillation(z, target, 3.0)
        for z in (student, logits(3, 5, 10, seed=2))
    ]
    assert torch.allclose(gaps[0], gaps[1], atol=1e-12)
    assert bool((gaps[0] > 0).all())
    assert not torch.allclose(*gradients(student, teachers, "logits"), atol=1e-3)
