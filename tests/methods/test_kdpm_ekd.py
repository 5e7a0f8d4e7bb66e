"""KDPM and EKD: golden losses, who learns from whom, and teachers that learn beside their students."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning import DistillationModule, methods
from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.ekd import GuidedModule
from tests.methods import family
from tests.methods.family import check_gradient, draw, golden, leaf, step, total
from tests.modules.toy import parameters_of, same, train_loader, trainer


def build(method: str, peers: int, backbone: str = "resnet8", **settings: Any) -> Any:
    return family.build(method, backbone, peers=peers, **settings)


# ---------------------------------------------------------------------- KDPM


@pytest.mark.parametrize("index", [0, 1])
def test_golden_kdpm_and_no_student_s_gradient_in_the_teacher(index: int) -> None:
    case = golden()["kdpm"][index]
    given, expected = case["settings"], case["expected"]
    settings = {"ce_weight": given["a"], "weight": given["b"], "peer_weight": given["g"], "temperature": given["T"]}
    method = methods.create("kdpm", given["students"], settings)
    student, teacher = leaf(case["inputs"]["student_logits"]), leaf([case["inputs"]["teacher_logits"]])
    terms = method.loss_terms(step(student, teacher, case["inputs"]["labels"]))
    assert terms["ce"].item() == pytest.approx(given["a"] * sum(expected["student_ce"]), rel=1e-12)
    assert terms["kd"].item() == pytest.approx(given["b"] * sum(expected["student_from_teacher"]), rel=1e-12)
    assert terms["kd_peers"].item() == pytest.approx(given["g"] * sum(expected["student_from_peers"]), rel=1e-12)
    own = cross_entropy(teacher, torch.tensor(case["inputs"]["labels"])).sum()
    (total(terms) + own).backward()
    assert (total(terms) + own).item() == pytest.approx(expected["total"], rel=1e-12)
    check_gradient(student, expected["grad_student_logits"])
    check_gradient(teacher, expected["grad_teacher_logits"])


def fitted(module: DistillationModule, epochs: int = 1) -> DistillationModule:
    trainer(max_epochs=epochs).fit(module, train_loader())
    return module


def test_without_peers_teaching_it_is_independent_kd_and_without_the_teacher_dml() -> None:
    online = {"update": "gradient", "init_steps": 0}
    ours = fitted(build("kdpm", 2, peer_weight=0.0, ce_weight=0.1, weight=0.9, temperature=4.0))
    kd = fitted(build("kd", 2, teacher=online, sharing="nothing"))
    for name in ("student", "teacher"):
        pair = [parameters_of(getattr(module, name).network) for module in (ours, kd)]
        assert pair[0].keys() == pair[1].keys()
        assert all(torch.allclose(pair[0][key], pair[1][key], atol=1e-6) for key in pair[0])
    student, labels = torch.randn(3, 4, 5), torch.arange(4)
    mutual = methods.create("kdpm", 3, {"weight": 0.0, "temperature": 1.0, "peer_weight": 1.0})
    dml = methods.create("dml", 3).loss_terms(step(student, None, labels))
    found = mutual.loss_terms(step(student, torch.randn(1, 4, 5), labels))
    torch.testing.assert_close(found["ce"] + found["kd_peers"], total(dml))


def test_each_student_has_its_channel_of_the_teacher() -> None:
    module = build(
        "kdpm", 3, channels=["logits", "features", "both"], layer="stage2", teacher_layer="stage3", weight=2.0
    )
    assert len(module.method.adapters) == 2
    fit = trainer()
    fit.fit(module, train_loader())
    assert float(fit.callback_metrics["train/features"]) > 0
    assert [group["name"] for group in fit.optimizers[0].param_groups] == ["student", "method", "teacher"]
    # The student of features alone does not see the teacher's logits.
    module.zero_grad()
    images = torch.randn(4, 3, 8, 8)
    with torch.enable_grad():
        student, taught = module(images), module.teacher.teach(images)
    inputs = step(
        student.logits, taught.logits, torch.tensor([0, 1, 2, 0]), student=student.named, teacher=taught.named
    )
    told = torch.autograd.grad(module.method.loss_terms(inputs)["kd"], student.logits)[0]
    assert [bool(each.any()) for each in told] == [True, False, True]
    assert methods.create("kdpm", 1).terms == ("ce", "kd")
    with pytest.raises(ConfigError, match=r"method\.channels has 1 entries for 2 peers"):
        build("kdpm", 2, channels=["both"])


def test_each_student_of_features_learns_from_the_maps_of_its_own_view_and_the_teacher_from_none() -> None:
    layers = {"layer": "stage3", "teacher_layer": "stage3"}
    method = build("kdpm", 2, channels=["both", "both"], weight=2.0, **layers).method.double()
    ours, theirs = (draw(2, 4, 64, 2, 2, seed=seed).requires_grad_() for seed in (0, 1))
    student, teacher = (draw(2, 4, 3, seed=seed).requires_grad_() for seed in (2, 3))
    named = {"student": {"stage3": ours}, "teacher": {"stage3": theirs}}
    terms = method.loss_terms(step(student, teacher, torch.tensor([0, 1, 2, 0]), **named))
    pairs = zip(method.adapters, ours, theirs, strict=True)
    by_hand = 2 * sum((adapt(mine) - its).square().mean() for adapt, mine, its in pairs)
    torch.testing.assert_close(terms["features"], by_hand)
    assert torch.autograd.grad(total(terms), [theirs, teacher], allow_unused=True) == (None, None)  # type: ignore[comparison-overlap]


# ---------------------------------------------------------------------- EKD


@pytest.mark.parametrize("index", [0, 1])
def test_golden_ekd(index: int) -> None:
    case = golden()["ekd"]["loss"][index]
    given, inputs, expected = case["settings"], case["inputs"], case["expected"]
    settings = {"weight": given["a"], "feature_weight": given["m"], "temperature": given["T"]}
    method: Any = methods.create("ekd", 1, settings)
    kinds = ("logits", "guided_logits", "guided_features")
    names = [f"{who}_{kind}" for who in ("student", "teacher") for kind in kinds]
    leaves = {name: leaf(inputs[name]) for name in names}
    labels = torch.tensor(inputs["labels"])
    terms: dict[str, Tensor] = method.terms_of(*(each.unsqueeze(0) for each in leaves.values()), labels, labels)
    student = total({name: value for name, value in terms.items() if name != "teacher_ce_guided"})
    assert student.item() == pytest.approx(expected["student_loss"], rel=1e-12)
    teacher = cross_entropy(leaves["teacher_logits"], labels) + terms["teacher_ce_guided"]
    assert teacher.item() == pytest.approx(expected["teacher_loss"], rel=1e-12)
    (student + teacher).backward()
    for name, value in leaves.items():
        check_gradient(value, expected[f"grad_{name}"])


def test_the_teacher_s_heads_learn_the_mean_over_its_views() -> None:
    method: Any = methods.create("ekd", 2)
    labels = torch.tensor([0, 1, 2, 0])
    student, h, u = draw(2, 4, 3), draw(2, 3, 4, 3), draw(2, 3, 4, 5)
    teacher, h_teacher, u_teacher = draw(2, 4, 3, seed=1), draw(2, 3, 4, 3, seed=1), draw(2, 3, 4, 5, seed=1)
    terms = method.terms_of(student, h, u, teacher, h_teacher, u_teacher, labels, labels)
    heads = [F.cross_entropy(head, labels) for view in h_teacher for head in view]
    torch.testing.assert_close(terms["teacher_ce_guided"], torch.stack(heads).sum() / 2)


def test_golden_guided_module() -> None:
    case = golden()["ekd"]["guided_module"][0]
    given, expected = case["inputs"], case["expected"]
    module = GuidedModule(2, 3, 3).double().train()
    weights = {"conv.weight": "conv_weight", "norm.weight": "bn_weight", "norm.bias": "bn_bias"}
    weights |= {"head.weight": "head_weight", "head.bias": "head_bias"}
    with torch.no_grad():
        for name, key in weights.items():
            part = module.get_parameter(name)
            part.copy_(torch.tensor(given[key], dtype=torch.float64).view_as(part))
    maps = leaf(given["features"])
    pooled, logits = module(maps)
    loss = cross_entropy(logits, torch.tensor(given["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(expected["cross_entropy"], rel=1e-12)
    torch.testing.assert_close(pooled.detach(), torch.tensor(expected["pooled"], dtype=torch.float64))
    check_gradient(maps, expected["grad_features"])
    for name, key in weights.items():
        check_gradient(module.get_parameter(name), expected[f"grad_{key}"])


def test_the_teacher_does_not_notice_its_student_and_guided_modules_stay_behind() -> None:
    small, other = (fitted(build("ekd", 1, backbone, feature_weight=0.5)) for backbone in ("resnet8", "densenet40_12"))
    assert same(parameters_of(small.teacher.network), parameters_of(other.teacher.network))
    assert not any("guided" in name for name in small.deploy().state_dict())
    with pytest.raises(ConfigError, match=r"the student has 3 .* the teacher 5"):
        DistillationModule.build("resnet8", 3, "ekd", 1, teacher={"backbone": "vgg16"}, image_size=(32, 32))


@pytest.mark.parametrize("method", ["ekd", "iakd"])
def test_compiled_networks_give_named_outputs_and_swap_blocks_too(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    own: dict[str, Any] = {"statistics_batches": 0} if method == "iakd" else {}
    eager, compiled = fitted(build(method, 1, **own)), fitted(build(method, 1, execution="compile", **own))
    ours, theirs = eager.state_dict(), compiled.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5, equal_nan=True)
