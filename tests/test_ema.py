"""The moving average: golden trajectories for each start rule, exact copies, and matching by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dkel_lightning.ema import average_, matched, update_rate
from dkel_lightning.errors import ConfigError


@pytest.mark.parametrize("start", ["keep", "mean_teacher", "copy"])
def test_golden_trajectories(golden: dict[str, Any], start: str) -> None:
    for case in golden["ema"]:
        teacher = torch.tensor([case["teacher_start"]], dtype=torch.float64)
        updates = torch.tensor(0)
        for student, expected in zip(
            case["student_after_each_step"], case["teacher_after_each_update"][start], strict=True
        ):
            average_(
                [teacher], [torch.tensor([student], dtype=torch.float64)], update_rate(updates, case["rate"], start)
            )
            updates += 1
            assert teacher.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_constant_rate_is_a_float_and_a_changing_one_stays_on_the_device() -> None:
    assert isinstance(update_rate(torch.tensor(0), 0.9, "keep"), float)
    assert isinstance(update_rate(torch.tensor(0), 0.9, "copy"), torch.Tensor)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_0_and_1_copy_and_keep_bit_for_bit(rate: float, as_tensor: bool) -> None:
    teacher, student = torch.randn(50) * 1e6, torch.randn(50) * 1e-6
    expected = teacher.clone() if rate == 1 else student
    average_([teacher], [student], torch.tensor(rate, dtype=torch.float64) if as_tensor else rate)
    assert torch.equal(teacher, expected)


@pytest.mark.parametrize("rate", [0.75, torch.tensor(0.75, dtype=torch.float64)])
def test_types_and_shapes_may_be_mixed_and_students_stay_as_they_are(rate: float | torch.Tensor) -> None:
    teacher = [torch.full((2, 3), 4.0), torch.full((1,), 8.0, dtype=torch.float64), torch.tensor(-4.0)]
    student = [torch.zeros(2, 3), torch.zeros(1, dtype=torch.float64), torch.zeros(())]
    average_(teacher, student, rate)
    assert [value.flatten()[0].item() for value in teacher] == [3.0, 6.0, -3.0]
    assert [value.dtype for value in teacher] == [torch.float32, torch.float64, torch.float32]
    assert all((value == 0).all() for value in student)


class Swapped(nn.Module):
    """Two layers of equal shape whose order of registration is an argument."""

    def __init__(self, names: tuple[str, str]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(2, 2))


def test_parameters_are_matched_by_name_not_by_position() -> None:
    teacher, student = Swapped(("a", "b")), Swapped(("b", "a"))
    ours, theirs = matched(teacher, student, "parameters")
    average_(ours, theirs, 0.0)
    for name, value in teacher.named_parameters():
        assert torch.equal(value, student.get_parameter(name)), name


def test_networks_of_another_form_are_refused_with_the_differences() -> None:
    with pytest.raises(ConfigError, match=r"not of the same form; they differ in 2: 1\.bias, 1\.weight\."):
        matched(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "parameters")
    with pytest.raises(ConfigError, match=r"they differ in 1: weight\."):
        matched(nn.Linear(2, 3, bias=False), nn.Linear(3, 3, bias=False), "parameters")
    many = nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)])
    with pytest.raises(ConfigError, match=r"differ in 8: 0\.bias, 0\.weight, 1\.bias, 1\.weight, 2\.bias, \.\.\.\."):
        matched(nn.Sequential(), many, "parameters")
