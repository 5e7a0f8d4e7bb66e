"""Losses: hand-computed values, gradients, precision, and the golden parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import (
    assemble,
    cross_entropy,
    distillation,
    distillation_from_each,
    peer_mean,
)
from tests.methods.family import draw

# KL((3/4, 1/4) || (1/2, 1/2)) and its reverse, by hand.
KL_STEEP_FLAT = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
KL_FLAT_STEEP = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)


def steep(temperature: float) -> Tensor:
    """Logits [1, 2] whose softened softmax is (3/4, 1/4)."""
    return torch.tensor([[temperature * math.log(3.0), 0.0]], dtype=torch.float64)


FLAT = torch.zeros(1, 2, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_distillation_by_hand_has_its_direction_and_temperature_squared(temperature: float) -> None:
    there = distillation(FLAT, steep(temperature), temperature)
    back = distillation(steep(temperature), FLAT, temperature)
    assert there.item() == pytest.approx(temperature**2 * KL_STEEP_FLAT, rel=1e-12)
    assert back.item() == pytest.approx(temperature**2 * KL_FLAT_STEEP, rel=1e-12)


def test_peer_mean_leaves_one_out_by_hand() -> None:
    assert peer_mean(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]
    assert peer_mean(torch.tensor([1.0, 2.0, 6.0]), include_self=True).tolist() == [3.0, 3.0, 3.0]
    assert peer_mean(torch.tensor([0.0, 3.0, 6.0, 9.0])).tolist() == pytest.approx([6.0, 5.0, 4.0, 3.0], rel=1e-6)


def test_peer_mean_of_probabilities_stays_positive_under_cancellation() -> None:
    tiny = torch.tensor([1.0, 1e-30, 1e-30])
    assert peer_mean(tiny)[0].item() == pytest.approx(1e-30, rel=1e-5, abs=0)


def test_a_single_peer_has_no_others_to_average_over() -> None:
    with pytest.raises(ConfigError, match="leave-one-out mean needs at least 2 peers, got 1"):
        peer_mean(torch.ones(1, 2, 3))


def test_with_two_peers_assembled_and_individual_knowledge_are_the_same_term() -> None:
    students, teachers = draw(2, 4, 6).requires_grad_(), draw(2, 4, 6, seed=1)
    individual = distillation_from_each(students, teachers, 3.0)
    for space in ("logits", "probabilities"):
        assembled = distillation(students, assemble(teachers, 3.0, space=space), 3.0)
        torch.testing.assert_close(assembled, individual, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("include_self", [False, True])
def test_probabilities_space_gives_the_mean_of_softened_probabilities(include_self: bool) -> None:
    teachers = draw(3, 4, 6)
    target = assemble(teachers, 3.0, space="probabilities", include_self=include_self)
    softened = (teachers / 3).softmax(-1)
    for i in range(3):
        chosen = [j for j in range(3) if include_self or j != i]
        torch.testing.assert_close((target[i] / 3).softmax(-1), softened[chosen].mean(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_raised_to_float32(dtype: torch.dtype) -> None:
    student, teacher = draw(3, 4, 6).to(dtype), draw(3, 4, 6, seed=1).to(dtype)
    labels = torch.tensor([0, 1, 2, 3])
    exact_student, exact_teacher = student.double(), teacher.double()
    pairs = [
        (cross_entropy(student, labels), cross_entropy(exact_student, labels)),
        (distillation(student, teacher, 3.0), distillation(exact_student, exact_teacher, 3.0)),
        (distillation_from_each(student, teacher, 3.0), distillation_from_each(exact_student, exact_teacher, 3.0)),
        (assemble(teacher, 3.0), assemble(exact_teacher, 3.0)),
        (assemble(teacher, 3.0, space="probabilities"), assemble(exact_teacher, 3.0, space="probabilities")),
    ]
    for result, exact in pairs:
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_types_are_kept(dtype: torch.dtype) -> None:
    student, teacher = draw(2, 3, 4).to(dtype), draw(2, 3, 4, seed=1).to(dtype)
    assert cross_entropy(student, torch.tensor([0, 1, 2])).dtype == dtype
    assert distillation(student, teacher, 3.0).dtype == dtype
    assert distillation_from_each(student, teacher, 3.0).dtype == dtype
    assert assemble(teacher, 3.0).dtype == dtype


def test_golden_parts(golden: dict[str, Any]) -> None:
    for case in golden["parts"]:
        student, ensemble, teachers = (
            torch.tensor(case[key], dtype=torch.float64)
            for key in ("student_logits", "ensemble_logits", "teacher_logits")
        )
        labels, temperature = torch.tensor(case["labels"]), case["temperature"]
        found = {
            "cross_entropy": cross_entropy(student, labels).tolist(),
            "ensemble_cross_entropy": cross_entropy(ensemble, labels).item(),
            "peer_to_ensemble": distillation(student, ensemble, temperature).tolist(),
            "peer_to_assembled_teachers": distillation(student, assemble(teachers, temperature), temperature).tolist(),
            "peer_to_each_teacher": distillation_from_each(student, teachers, temperature).tolist(),
        }
        for key, value in found.items():
            assert value == pytest.approx(case[key], rel=1e-9, abs=1e-9), key
