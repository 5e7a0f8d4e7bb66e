"""The losses beside KD: the authors' numbers, identities, gradients, and every method that takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning import MethodInputs, PeerOutputs, methods
from dkel_lightning.functional import decoupled, distillation, normalised, standardised
from dkel_lightning.methods.distilling import LOSSES, Distilling, Distils
from tests.methods.family import draw, tensor
from tests.modules.toy import build, images_and_labels

CASES = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text(encoding="utf-8"))
DISTILLING = [name for name, preset in methods.METHODS.items() if issubclass(preset.method.Settings, Distils)]
OF_NETWORKS: dict[str, dict[str, float]] = {"consistent": {"kd_weight": 1.0, "weight": 0.0}, "dih": {}, "ekd": {}}
"""Those that cannot be asked about logits alone: they need parts of the networks."""


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_values_and_gradients_of_the_authors_code(case: dict[str, Any]) -> None:
    said, expected = case["settings"], case["expected"]
    student, teacher = (tensor(case["inputs"][f"{name}_logits"]) for name in ("student", "teacher"))
    student.requires_grad_()
    labels = torch.tensor(case["inputs"]["labels"])
    options = {name: said[name] for name in ("alpha", "beta", "gamma") if name in said}
    settings = {"loss": said["loss"], "temperature": said["T"], "loss_options": options}
    method = methods.create("kd", 1, settings)
    assert isinstance(method, Distilling)
    value = method.distil(student, teacher, labels)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, tensor(expected["loss"]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, tensor(expected["grad_student"]), rtol=1e-10, atol=1e-10)
    parts: dict[str, Callable[[], Tensor]] = {
        "tckd": lambda: decoupled(student, teacher, labels, said["T"], 1.0, 0.0),
        "nckd": lambda: decoupled(student, teacher, labels, said["T"], 0.0, 1.0),
        "target": lambda: normalised(student, teacher, labels, said["T"], 0.0),
        "student_standardised": lambda: standardised(student),
        "teacher_standardised": lambda: standardised(teacher),
    }
    for name in parts.keys() & expected.keys():
        torch.testing.assert_close(parts[name](), tensor(expected[name]), rtol=1e-10, atol=1e-10)


def test_decoupled_with_the_mass_of_the_other_classes_as_weight_is_kd() -> None:
    student, teacher, labels = draw(3, 5, 7).requires_grad_(), draw(3, 5, 7, seed=1), torch.tensor([0, 6, 3, 3, 1])
    true = F.one_hot(labels, 7).bool()
    mass = 1 - (teacher / 2).softmax(-1)[:, true]
    found, expected = decoupled(student, teacher, labels, 2.0, 1.0, mass), distillation(student, teacher, 2.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), student, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_normalised_pulls_the_others_to_their_shares_and_the_true_class_up() -> None:
    teacher, labels = draw(4, 6), torch.tensor([5, 0, 2, 2])
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(normalised(student, teacher, labels, 3.0), student)
    true = F.one_hot(labels, 6).bool()
    p = teacher.softmax(-1)
    # Of -p_t log p_s alone: p_t (p - onehot) / B.
    expected = p[true].unsqueeze(-1) * (p - true.double()) / 4
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_standardised_does_not_see_shift_and_scale() -> None:
    logits = draw(2, 5, 7)
    torch.testing.assert_close(standardised(3.7 * logits - 11), standardised(logits), rtol=1e-6, atol=1e-6)
    found = standardised(logits)
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.var(-1), torch.ones(2, 5, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_by_differences_and_at_the_edges(loss: str) -> None:
    labels, said = torch.tensor([1, 0, 3]), Distils(loss=loss, temperature=2.0)
    student, teacher = draw(2, 3, 4).requires_grad_(), draw(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: LOSSES[loss](z, t, labels, said), (student, teacher))
    sure = 4e4 * F.one_hot(labels, 4).float()
    for z, t in ((torch.zeros(3, 4), sure), (sure, torch.zeros(3, 4)), (-sure, sure)):
        z = z.clone().requires_grad_()
        value = LOSSES[loss](z.half(), t.half(), labels, said)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert torch.autograd.grad(LOSSES[loss](z, t, labels, said), z)[0].isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("include_self", [False, True])
def test_from_each_is_the_mean_over_the_pairs(loss: str, include_self: bool) -> None:
    method = methods.create("pcl", 3, {"loss": loss})
    assert isinstance(method, Distilling)
    students, teachers, labels = draw(3, 4, 5), draw(3, 4, 5, seed=1), torch.tensor([4, 0, 1, 1])
    found = method.distil_from_each(students, teachers, labels, include_self=include_self)
    for i in range(3):
        each = [method.distil(students[i], teachers[j], labels) for j in range(3) if include_self or j != i]
        torch.testing.assert_close(found[i], torch.stack(each).mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OF_NETWORKS)
def test_a_method_with_parts_of_the_networks_takes_them_too(name: str) -> None:
    images, labels = images_and_labels(6)
    found = set()
    for loss in LOSSES:
        module = build({"name": name, "loss": loss, **OF_NETWORKS[name]}, 1, image_size=(8, 8))
        module.method.rampup_weight.fill_(1.0)
        found.add(round(module.training_step((images, labels), 0).item(), 5))
    assert len(found) == len(LOSSES)


@pytest.mark.parametrize("name", [name for name in DISTILLING if name not in OF_NETWORKS])
def test_every_method_that_distils_logits_takes_them_in_each_of_its_terms(name: str) -> None:
    student, teacher, fused = draw(3, 4, 5), draw(3, 4, 5, seed=1), draw(4, 5, seed=2)
    features = torch.zeros(3, 4, 8, dtype=torch.float64)
    inputs = MethodInputs(
        torch.tensor([4, 0, 1, 1]),
        PeerOutputs(student, features, fused),
        PeerOutputs(teacher, features),
    )
    found = {}
    for loss in LOSSES:
        method = methods.create(name, 3, {"loss": loss})
        assert isinstance(method, Distilling)
        method.rampup_weight.fill_(1.0)
        if name.startswith("dkel"):
            method.ensemble_weight.fill_(0.5)  # type: ignore[operator]
        if name == "okddip":
            method.attention = lambda _: torch.full((4, 2, 2), 0.5, dtype=torch.float64)  # type: ignore[assignment]
        found[loss] = method.loss_terms(inputs)
    distilled = {term for term in found["kd"] if term.startswith("kd")}
    assert distilled
    for term in found["kd"]:
        values = {round(found[loss][term].item(), 9) for loss in LOSSES}
        assert len(values) == (len(LOSSES) if term in distilled else 1), term
