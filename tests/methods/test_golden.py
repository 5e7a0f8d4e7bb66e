"""The golden losses and gradients of both presets, and what each method's terms are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning import Method, MethodInputs, PeerOutputs, methods
from dkel_lightning.functional import distillation
from dkel_lightning.schedules import Clock
from dkel_lightning.settings.teacher import TeacherSettings


class Case:
    """A golden case as a step of `method`, in float64, with leaves that collect gradients."""

    def __init__(self, method: Method, case: dict[str, Any], epoch: int) -> None:
        self.method: Any = method.double()
        clock = Clock(epoch)
        method.set_time(clock)
        self.student, self.ensemble, self.teacher = (
            torch.tensor(case[key], dtype=torch.float64, requires_grad=True)
            for key in ("student_logits", "ensemble_logits", "teacher_logits")
        )
        self.labels = torch.tensor(case["labels"])
        features = torch.zeros(len(self.student), len(self.labels), 1)
        self.step = MethodInputs(
            self.labels,
            PeerOutputs(self.student, features, self.ensemble),
            PeerOutputs(self.teacher, features),
        )
        self.terms = self.method.loss_terms(self.step)

    def total(self) -> Tensor:
        return torch.stack([self.terms[name] for name in self.method.terms]).sum()


def dkel_of(case: dict[str, Any]) -> Method:
    settings = {
        "temperature": case["temperature"],
        "rampup": {"scale": case["rampup_scale"], "epochs": case["rampup_epochs"]},
        "ensemble": {"decay": case["decay"]},
    }
    return methods.create("dkel", case["peers"], settings)


def released_of(case: dict[str, Any]) -> Method:
    settings = {
        "temperature": case["temperature"],
        "rampup": {"scale": case["rampup_scale"]},
        "ensemble": {"decay": case["decay"]},
    }
    return methods.create("dkel_released", len(case["student_logits"]), settings)


def check_against(expected: dict[str, Any], found: Case) -> None:
    total = found.total()
    assert total.item() == pytest.approx(expected["total"], rel=1e-9)
    total.backward()
    for leaf, key in ((found.student, "grad_student_logits"), (found.ensemble, "grad_ensemble_logits")):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, torch.tensor(expected[key], dtype=torch.float64), rtol=1e-7, atol=1e-9)
    assert found.teacher.grad is None


@pytest.mark.parametrize("index", [0, 1, 2])  # P = 3, 2, 4
def test_golden_dkel_loss_and_gradients(golden: dict[str, Any], index: int) -> None:
    case = golden["dkel_loss"][index]
    for expected in case["expected"]:
        check_against(expected, Case(dkel_of(case), case, expected["epoch"]))


@pytest.mark.parametrize("index", [0, 1])
def test_golden_released_loss_and_gradients(golden: dict[str, Any], index: int) -> None:
    case = golden["released_loss"][index]
    for expected in case["expected"]:
        check_against(expected, Case(released_of(case), case, expected["epoch"]))


def test_pcl_is_dkel_without_its_assembled_term(golden: dict[str, Any]) -> None:
    # Once v has been cut off, dkel's golden loss is that of PCL with the same ramp-up.
    case = golden["dkel_loss"][0]
    settings = {
        "temperature": case["temperature"],
        "rampup": {"scale": case["rampup_scale"], "epochs": case["rampup_epochs"]},
    }
    for expected in case["expected"]:
        if expected["epoch"] >= 10:
            check_against(expected, Case(methods.create("pcl", 3, settings), case, expected["epoch"]))


def test_baseline_is_cross_entropy_of_peers_and_ensemble(golden: dict[str, Any]) -> None:
    for part in golden["parts"]:
        logits = torch.tensor(part["student_logits"], dtype=torch.float64)
        ensemble = torch.tensor(part["ensemble_logits"], dtype=torch.float64)
        labels = torch.tensor(part["labels"])
        step = MethodInputs(labels, PeerOutputs(logits, logits, ensemble), None)
        terms = methods.create("baseline", len(logits)).loss_terms(step)
        assert terms["ce"].item() == pytest.approx(sum(part["cross_entropy"]), rel=1e-9)
        assert terms["ce_ensemble"].item() == pytest.approx(part["ensemble_cross_entropy"], rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "ramped", "expected"),
    [
        ("complement", False, (2 * math.exp(-0.5), 0.3 * (1 - math.exp(-0.5)))),
        ("complement", True, (0.3 * math.exp(-0.5), 0.3 * (1 - math.exp(-0.5)))),
        ("decay", False, (2 * math.exp(-0.5), 0.0)),
        ("decay", True, (0.3 * math.exp(-0.5), 0.0)),
        ("ramp", False, (0.0, 0.3)),
        ("constant", True, (0.0, 2.0)),
    ],
)
def test_current_weights_are_g_and_h(weights: str, ramped: bool, expected: tuple[float, float]) -> None:
    settings = {"rampup": {"scale": 2.0}, "ensemble": {"weights": weights, "ramped": ramped}}
    method: Any = methods.create("dkel", 3, settings).double()
    method.rampup_weight.fill_(0.3)
    method.ensemble_weight.fill_(math.exp(-0.5))
    logged = method.current_weights()
    assert logged["rampup"].item() == pytest.approx(0.3)
    assert logged["ensemble_decay"].item() == pytest.approx(math.exp(-0.5))
    assert (logged["teacher_assembled"].item(), logged["teacher_individual"].item()) == pytest.approx(expected)


@pytest.mark.parametrize("include_self", [False, True])
def test_a_peers_own_teacher_takes_part_in_both_means_on_request(golden: dict[str, Any], include_self: bool) -> None:
    case = golden["dkel_loss"][0]
    settings = {"temperature": case["temperature"], "ensemble": {"include_self": include_self}}
    found = Case(methods.create("dkel", 3, settings), case, 1)
    z, t, temperature = found.student, found.teacher, case["temperature"]
    assembled, individual = found.method.teacher_weights()
    expected = {
        "kd_assembled": torch.zeros((), dtype=torch.float64),
        "kd_individual": torch.zeros((), dtype=torch.float64),
    }
    for i in range(3):
        teachers = t if include_self else t[[j for j in range(3) if j != i]]
        expected["kd_assembled"] += assembled * distillation(z[i], teachers.mean(0), temperature)
        expected["kd_individual"] += (
            individual * torch.stack([distillation(z[i], each, temperature) for each in teachers]).mean()
        )
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value, rtol=1e-9, atol=1e-12)


def test_presets_differ_as_the_method_page_says() -> None:
    dkel, released, pcl = (methods.create(name, 3) for name in ("dkel", "dkel_released", "pcl"))
    assert (dkel.settings.rampup.scale, dkel.settings.rampup.form, dkel.settings.rampup.epochs) == (1.0, "correct", 80)
    assert (released.settings.rampup.scale, released.settings.rampup.form) == (0.1, "released")
    assert (pcl.settings.rampup.scale, pcl.settings.rampup.form) == (1.0, "correct")
    for method, ramped in ((dkel, False), (released, True)):
        term = method.settings.ensemble
        assert (term.decay, term.cutoff, term.ramped, term.space, term.include_self) == (
            0.5, 0.01, ramped, "logits", False
        )  # fmt: skip
    assert [methods.get_preset(name).arrangement.classifiers for name in ("dkel", "dkel_released", "pcl")] == [
        "own",
        "released",
        "own",
    ]
    assert [methods.get_preset(name).views_per_pass for name in ("dkel", "dkel_released", "pcl")] == [
        "all",
        "one",
        "all",
    ]
    teacher = TeacherSettings()
    assert (teacher.draw, teacher.start, teacher.decay, teacher.batchnorm) == ("independent", "keep", 0.999, "own")
    assert (teacher.init_steps, teacher.init_lr_scale, teacher.init_weight_decay) == (2, 0.01, 5e-4)
    assert methods.get_preset("dkel").teacher_settings == {}
    assert methods.get_preset("dkel_released").teacher_settings == {"draw": "student", "start": "copy"}
    assert methods.get_preset("pcl").teacher_settings == {"draw": "student", "start": "copy", "init_steps": 0}
