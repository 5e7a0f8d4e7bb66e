"""Golden cases of the methods with a prepared or learning teacher, and steps made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkel_lightning.modules.outputs import MethodInputs, StudentOutput, TeacherOutput

PATH = Path(__file__).parents[1] / "golden" / "teachers.json"


@cache
def golden() -> dict[str, Any]:
    """Read `golden/teachers.json`; the `source` and `evidence` of each case say whence its numbers are."""
    loaded: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return loaded


def leaf(values: Any) -> Tensor:
    """Make a float64 tensor that collects a gradient."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def step(student: Tensor, teacher: Tensor | None, labels: Any, /, **named: Any) -> MethodInputs:
    """Make a step of student logits [P, B, C] and teacher logits [1 or P, B, C]."""
    features = torch.zeros(*student.shape[:2], 1)
    taught = None if teacher is None else TeacherOutput(teacher, features, named.get("teacher"))
    seen = StudentOutput(student, features, named=named.get("student"))
    return MethodInputs(torch.as_tensor(labels), seen, taught, None, torch.zeros(()))


def check_gradient(found: Tensor, expected: Any) -> None:
    """Compare a leaf's gradient to 1e-10; none at all is one of zeros."""
    grad = torch.zeros_like(found) if found.grad is None else found.grad
    torch.testing.assert_close(grad, torch.tensor(expected, dtype=torch.float64).view_as(grad), rtol=1e-10, atol=1e-10)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Sum the terms."""
    return torch.stack(list(terms.values())).sum()
