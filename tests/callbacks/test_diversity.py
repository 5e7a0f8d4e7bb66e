"""The diversity monitor in a running fit: what it logs is what the networks say, for every kind of method."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from dkel_lightning import DistillationModule
from dkel_lightning.callbacks import DiversityMonitor, diversity
from dkel_lightning.callbacks.diversity import gradient_shares, parameter_distances
from dkel_lightning.errors import ConfigError
from tests.modules.toy import Toy, build, train_loader, trainer, val_loader

METHODS = [
    ("dkel", 3, {}),
    ("dkel_released", 2, {}),
    ("pcl", 2, {}),
    ("baseline", 1, {}),
    ("baseline", 2, {"teacher": {"update": "none"}}),
    ("baseline", 1, {"teacher": {"update": "none"}}),
    ("kd", 2, {"teacher": {"backbone": "resnet32"}}),
    ("mean_teacher", 1, {}),
    ("dml", 2, {}),
    ("okddip", 3, {}),
    ("one", 2, {}),
    ("ffl", 2, {}),
]


def logged(module: DistillationModule, *callbacks: Callback, **settings: Any) -> dict[str, float]:
    fit = trainer(*callbacks, **settings)
    fit.fit(module, train_loader(), val_loader())
    return {name: float(value) for name, value in fit.callback_metrics.items()}


@pytest.mark.parametrize(("method", "peers", "settings"), METHODS)
def test_every_method_is_watched_unasked(method: str, peers: int, settings: dict[str, Any]) -> None:
    module = build(method, peers, **settings)
    metrics = logged(module)
    kinds = {name.split("/")[2] for name in metrics if name.startswith("diversity/kl/")}
    teachers = module.teacher.num_peers if module.teacher is not None else 0
    expected = {"student-teacher"} if teachers else set()
    expected |= {"student-student"} if peers > 1 else set()
    expected |= {"teacher-teacher"} if teachers > 1 else set()
    assert kinds == expected
    assert {name.split("/")[2] for name in metrics if name.startswith("diversity/cka/")} == expected
    assert ("diversity/distance/student-teacher" in metrics) == (teachers > 0 and method != "kd")
    assert ("diversity/homogenised" in metrics) == (teachers > 0)
    shares = {name: value for name, value in metrics.items() if name.startswith("share/")}
    assert len(shares) == 2 * len(module.method.terms)
    for kind in ("loss", "gradient"):
        assert sum(value for name, value in shares.items() if f"/{kind}/" in name) == pytest.approx(1, abs=1e-5)


def test_peers_of_different_backbones_are_compared_by_what_they_say() -> None:
    module = DistillationModule.build("resnet8", 3, "dml", ["resnet8", "resnet18"])
    metrics = logged(module, limit_train_batches=1, limit_val_batches=1)
    assert 0 <= metrics["diversity/cka/student-student"] <= 1
    assert 0 <= metrics["diversity/agreement/student-student"] <= 1
    assert not any(name.startswith("diversity/distance") for name in metrics)


def test_each_pair_and_member_is_named_on_request_and_the_means_are_theirs() -> None:
    metrics = logged(build("dkel", 3), DiversityMonitor("pairs"))
    pairs = [f"student_{i}-teacher_{i}" for i in range(3)]
    for measure in ("agreement", "kl", "cka", "distance"):
        mean = sum(metrics[f"diversity/{measure}/{pair}"] for pair in pairs) / 3
        assert metrics[f"diversity/{measure}/student-teacher"] == pytest.approx(mean, abs=1e-6)
    within = {name.split("/")[2] for name in metrics if name.startswith("diversity/kl/teacher_")}
    assert within == {"teacher_0-teacher_1", "teacher_0-teacher_2", "teacher_1-teacher_2"}
    members = {name.split("/")[2] for name in metrics if name.startswith("diversity/entropy/")}
    assert members == {*build("dkel", 3).scores.members, "student", "teacher"}
    assert not any("_0" in name for name in logged(build("dkel", 2)) if name.startswith("diversity/"))


def test_nothing_is_logged_when_switched_off() -> None:
    metrics = logged(build("dkel"), DiversityMonitor("none"))
    assert not any(name.startswith(("diversity/", "share/")) for name in metrics)
    with pytest.raises(ConfigError, match=r"callbacks\.diversity is 'all': choose one of none, means, pairs"):
        DiversityMonitor("all")


def test_the_figures_are_those_of_the_networks_on_all_validation_images() -> None:
    module = build("dkel", 2)
    # As validation left them: nothing is trained after it.
    metrics = logged(module, DiversityMonitor("pairs"))
    images = Toy(15, seed=1).images
    with torch.no_grad():
        said = module.eval().evaluate(images)
    first, second = (
        said.logits[module.scores.members.index("student_0")],
        said.logits[module.scores.members.index("teacher_0")],
    )
    agreement = (first.argmax(-1) == second.argmax(-1)).float().mean().item()
    assert metrics["diversity/agreement/student_0-teacher_0"] == pytest.approx(agreement)
    p, q = first.double().softmax(-1), second.double().softmax(-1)
    kl = ((p - q) * (p.log() - q.log())).sum(-1).mean().item() / 2
    assert metrics["diversity/kl/student_0-teacher_0"] == pytest.approx(kl, rel=1e-4)
    x, y = (said.features[i].double() - said.features[i].double().mean(0) for i in (0, 2))
    cka = ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()
    assert metrics["diversity/cka/student_0-teacher_0"] == pytest.approx(cka, rel=1e-4)
    assert metrics["diversity/entropy/teacher_0"] == pytest.approx(-(q * q.log()).sum(-1).mean().item(), rel=1e-4)
    assert metrics["diversity/classes/teacher_0"] == len(set(second.argmax(-1).tolist()))


def test_a_teacher_that_is_its_student_is_at_no_distance_and_homogenised_while_poor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = build("pcl", 2, teacher={"decay": 0.0, "batchnorm": "copy"})  # a teacher without a memory
    alike = {"diversity/homogenised": 1.0, "diversity/agreement/student-teacher": 1.0}
    monkeypatch.setattr(diversity, "POOR", 1.01)  # whatever they have learnt
    metrics = logged(module)
    assert {name: metrics[name] for name in alike} == alike
    assert metrics["diversity/distance/student-teacher"] == pytest.approx(0, abs=1e-6)
    assert metrics["diversity/kl/student-teacher"] == pytest.approx(0, abs=1e-5)
    assert metrics["diversity/cka/student-teacher"] == pytest.approx(1, abs=1e-4)
    # As close, but no longer poor.
    again = build("pcl", 2, teacher={"decay": 0.0, "batchnorm": "copy"})
    monkeypatch.setattr(diversity, "POOR", 0.01)
    assert logged(again)["diversity/homogenised"] == 0


def test_distances_are_relative_to_the_path_of_the_peer() -> None:
    module = build("dkel", 2)
    module.teacher.network.load_state_dict(module.student.network.state_dict())
    pairs = {(0, 2): "student-teacher", (1, 3): "student-teacher", (0, 1): "student-student", (2, 3): "teacher-teacher"}
    with torch.no_grad():
        for parameter in module.teacher.network.own_part(1).parameters():
            parameter.mul_(3)
    found = parameter_distances(module, pairs)
    assert found[0, 2] == 0
    own = sum(float(p.detach().square().sum()) for p in module.student.network.own_part(1).parameters())
    path = sum(float(p.detach().square().sum()) for p in module.student.network.peer(1).parameters())
    assert found[1, 3].item() == pytest.approx(2 * (own / path) ** 0.5, rel=1e-5)
    # Of the two students' branches, not of the trunk that they share.
    ours, theirs = (torch.cat([p.flatten() for p in module.student.network.own_part(i).parameters()]) for i in (0, 1))
    expected = (ours - theirs).norm() / ((ours.square().sum() + theirs.square().sum()) / 2).sqrt()
    assert found[0, 1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradient_shares_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0]], requires_grad=True)
    elsewhere = torch.tensor(1.0, requires_grad=True)
    terms = {"a": 3 * logits.sum(), "b": logits[0, 0], "c": elsewhere * 2, "d": torch.tensor(5.0)}
    norms = torch.tensor([18**0.5, 1.0, 0.0, 0.0])
    shares = gradient_shares(terms, logits)
    assert [shares[name].item() for name in "abcd"] == pytest.approx((norms / norms.sum()).tolist())
    terms["a"].backward()
    assert logits.grad.tolist() == [[3.0, 3.0]]
    # As of heads on a frozen network.
    assert gradient_shares({"c": elsewhere * 2}, logits) == {"c": 0.0}


def test_watching_changes_no_weight() -> None:
    states = []
    for detail in ("none", "pairs"):
        module = build("dkel", 2)
        trainer(DiversityMonitor(detail), max_epochs=2).fit(module, train_loader(), val_loader())
        states.append(copy.deepcopy(module.state_dict()))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_gradient_shares_of_a_term_whose_squared_gradient_overflows() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    shares = gradient_shares(
        {"large": 1e30 * logits.sum(), "small": logits.sum(), "other": logits.detach().sum()}, logits
    )
    assert [float(share) for share in shares.values()] == pytest.approx([1.0, 1e-30, 0.0])


def test_the_first_batch_of_the_epoch_gives_the_gradients_and_survives_a_checkpoint() -> None:
    monitor = DiversityMonitor()
    seen: list[int] = []

    def count(fit: Trainer, module: Any, *_: Any) -> None:
        seen.append(sum(each == monitor._observe for each in module.observers))

    order = LambdaCallback(on_train_batch_start=count)
    metrics = logged(build("dkel"), monitor, order)
    assert seen == [1, 0, 0]
    state = monitor.state_dict()
    fresh = DiversityMonitor()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    assert state["gradients"]["ce"] == pytest.approx(metrics["share/gradient/ce"])


def test_a_fit_that_breaks_off_leaves_no_observer() -> None:
    module = build("dkel")
    module.method.loss_terms = lambda inputs: {}
    with pytest.raises(ConfigError):
        trainer().fit(module, train_loader())
    assert module.observers == []
