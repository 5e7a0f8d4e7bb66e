"""KD: its loss by hand, the teacher of another architecture, and two stages with one command."""

from __future__ import annotations

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from dkel_lightning import DistillationModule, methods
from dkel_lightning.app.run import Run, load_config
from dkel_lightning.app.tasks import stages
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import CheckpointError, ConfigError
from tests.compose import tiny_run
from tests.methods.family import step
from tests.modules.toy import CLASSES, SGD, parameters_of, same, train_loader, trainer, val_loader

TWO_STAGES = ("method=kd", "backbone=resnet8", "teacher.backbone=densenet40_12")


def test_loss_and_gradient_of_two_peers_by_hand_and_no_gradient_into_the_teacher() -> None:
    # One sample, two classes; softmax(z / 2) = (3/4, 1/4) and (1/2, 1/2), softmax(t / 2) = (1/2, 1/2), T = 2.
    student = torch.tensor([[[2 * log(3.0), 0.0]], [[0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    teacher = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    method = methods.create("kd", 2, {"ce_weight": 0.5, "weight": 3.0, "temperature": 2.0})
    terms = method.loss_terms(step(student, teacher, [0]))
    # CE: softmax(z_0) = (9, 1) / 10. KL(t || s_0) = (log(2/3) + log 2) / 2 = log(4/3) / 2, times T^2 = 4.
    assert terms["ce"].item() == pytest.approx(0.5 * (log(10 / 9) + log(2)), rel=1e-12)
    assert terms["kd"].item() == pytest.approx(3.0 * 4 * log(4 / 3) / 2, rel=1e-12)
    (terms["ce"] + terms["kd"]).backward()
    # 0.5 (softmax(z) - onehot) + 3 T (softmax(z/T) - softmax(t/T)).
    first = 0.5 * (0.9 - 1) + 3 * 2 * (0.75 - 0.5)
    expected = torch.tensor([[[first, -first]], [[-0.25, 0.25]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


def test_every_peer_learns_from_the_teachers_word_on_its_own_view() -> None:
    module = build(peers=2)
    views = torch.randn(4, 2, 3, 8, 8)
    assert module.teacher is not None
    taught = module.teacher.teach(views).logits
    assert taught.shape == (2, 4, CLASSES)
    for peer in range(2):
        torch.testing.assert_close(taught[peer], module.teacher(views[:, peer]).logits[0])
    assert module.teacher.teach(views[:, 0]).logits.shape == (1, 4, CLASSES)


def build(peers: int = 1, teacher: dict[str, Any] | None = None, **settings: Any) -> DistillationModule:
    given = {"backbone": "densenet40_12", **(teacher or {})}
    return DistillationModule.build("resnet8", CLASSES, "kd", peers, teacher=given, optimizer=SGD, **settings)


def test_the_frozen_teacher_of_another_architecture_does_not_change_in_training(tmp_path: Path) -> None:
    module = build(peers=2)
    before = {name: value.clone() for name, value in module.teacher.network.state_dict().items()}
    fit = trainer()
    fit.fit(module, train_loader(), val_loader())
    after = module.teacher.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)  # BatchNorm's statistics too
    assert int(module.teacher.updates) == 0
    assert not any(p.requires_grad or p.grad is not None for p in module.teacher.parameters())
    assert [group["name"] for group in fit.optimizers[0].param_groups] == ["student"]
    assert "weights/ema_rate" not in fit.callback_metrics
    assert module.scores.members == ("student_0", "student_1", "student_ensemble", "teacher_0")
    assert module.deployed_member().startswith("student_")
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(loaded.teacher.eval()(images).logits, module.teacher.eval()(images).logits)
    torch.testing.assert_close(loaded.deploy()(images), module.deploy()(images))
    assert loaded.deploy("teacher")(images).shape == (5, CLASSES)


@pytest.mark.parametrize(
    ("method", "teacher", "message"),
    [
        ("kd", {"update": "ema"}, "teacher.update is 'ema', but the teacher of KD is a separate network"),
        ("kd", {"init_steps": 2}, "teacher.init_steps is 2, but the teacher of KD is a separate network"),
        ("kd", {"draw": "student"}, "is a separate network"),
        ("kd", {"update": "none"}, "KD needs a teacher"),
        ("dkel", {"backbone": "resnet8"}, "has the student's form"),
        ("kd", {"backbone": "resnet9"}, "Unknown choice backbone=resnet9"),
        ("kd", {"backbone": "torchvision:resnet51"}, "torchvision has no classifier 'resnet51'. Did you mean resnet"),
        ("kd", {"backbone": "timm:resnet51x"}, "timm has no classifier 'resnet51x'."),
    ],
)
def test_what_contradicts_a_teacher_of_its_own_is_refused(method: str, teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DistillationModule.build("resnet8", CLASSES, method, 2, teacher=teacher)
    assert message in str(caught.value)


# ---------------------------------------------------------------------- weights from files


def same_logits(module: DistillationModule, network: nn.Module, size: int = 32) -> None:
    images = torch.randn(3, 3, size, size)
    torch.testing.assert_close(module.teacher.eval()(images).logits[0], network.eval()(images))


def external(path: Path, backbone: str = "torchvision:resnet18", classes: int = CLASSES) -> DistillationModule:
    return DistillationModule.build("resnet8", classes, "kd", 1, teacher={"backbone": backbone, "weights": str(path)})


def test_the_teacher_takes_the_state_dict_of_a_torchvision_model(tmp_path: Path) -> None:
    model = models.resnet18(weights=None, num_classes=CLASSES)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    module = external(tmp_path / "w.pth")
    same_logits(module, model)
    fit = trainer()
    fit.strategy.connect(module)
    fit.save_checkpoint(tmp_path / "kd.ckpt")
    # It is from elsewhere, so the checkpoint leaves it out.
    again = DistillationModule.load_from_checkpoint(tmp_path / "kd.ckpt", teacher={"weights": str(tmp_path / "w.pth")})
    same_logits(again, model)


def test_the_teacher_takes_the_deployed_peer_of_a_checkpoint_or_its_state_dict(tmp_path: Path) -> None:
    taught = DistillationModule.build("resnet8", CLASSES, "dkel", 2, seed=5, deploy={"network": "teacher", "peer": 1})
    fit = trainer()
    fit.strategy.connect(taught)
    fit.save_checkpoint(tmp_path / "dkel.ckpt")
    torch.save(taught.deploy().state_dict(), tmp_path / "peer.pt")
    for name in ("dkel.ckpt", "peer.pt"):
        same_logits(build(teacher={"backbone": "resnet8", "weights": str(tmp_path / name)}), taught.deploy(), 8)


def test_a_dkel_teacher_of_several_peers_takes_those_of_a_checkpoint(tmp_path: Path) -> None:
    taught = DistillationModule.build("resnet8", CLASSES, "dkel", 2, seed=5)
    fit = trainer()
    fit.strategy.connect(taught)
    fit.save_checkpoint(tmp_path / "dkel.ckpt")
    settings = {"update": "frozen", "weights": str(tmp_path / "dkel.ckpt")}
    module = DistillationModule.build("resnet8", CLASSES, "dkel", 2, teacher=settings, optimizer=SGD)
    trainer().fit(module, train_loader())
    assert same(parameters_of(module.teacher.network), parameters_of(taught.teacher.network))


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused_with_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(CheckpointError, match="No weights at"):
        external(path)
    weights = models.resnet18(weights=None, num_classes=CLASSES).state_dict()
    torch.save({**{k: v for k, v in weights.items() if k != "fc.bias"}, "head.bias": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"do not fit: set teacher\.backbone .*"):
        external(path)
    torch.save(models.resnet18(weights=None, num_classes=1000).state_dict(), path)
    with pytest.raises(CheckpointError, match="has 1000 classes, the data 3"):
        external(path)
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r"do not fit: set teacher\.backbone"):
        external(path, "torchvision:mobilenet_v3_small")
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match="holds no state_dict of named tensors"):
        external(path)
    torch.save(models.resnet18(weights=None), path)
    with pytest.raises(CheckpointError, match="objects that could run code"):
        external(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        external(path)


# ---------------------------------------------------------------------- two stages with one command


def teacher_of(path: Path) -> dict[str, Tensor]:
    module = DistillationModule.load_from_checkpoint(path)
    return dict(module.teacher.network.state_dict())


@pytest.mark.slow
def test_one_command_trains_the_teacher_and_then_the_student_from_it(tmp_path: Path) -> None:
    train(tiny_run(tmp_path, *TWO_STAGES, "method.peers=2"))
    first = tmp_path / "teacher"
    summary = json.loads((first / "summary.json").read_text())
    assert (summary["method"], summary["backbone"], summary["peers"]) == ("baseline", "densenet40_12", 1)
    assert load_config(first)["trainer"]["max_epochs"] == 2
    best = DistillationModule.load_from_checkpoint(first / "checkpoints" / "best.ckpt").student.network.state_dict()
    for name in ("best.ckpt", "last.ckpt"):
        inside = teacher_of(tmp_path / "checkpoints" / name)
        assert best.keys() == inside.keys()
        assert all(torch.equal(best[key], inside[key]) for key in best)
    second = json.loads((tmp_path / "summary.json").read_text())
    assert second["method"] == "kd"
    assert second["test"]["best"]["accuracy"]["teacher_0"] == summary["test"]["best"]["accuracy"]["student_0"]
    assert second["test"]["best"]["deployed"].startswith("student_")


def test_teacher_and_student_of_one_architecture_do_not_start_alike() -> None:
    values = tiny_run(Path(), "method=kd").values
    inner = stages.stages_before(values)["teacher"]
    assert inner["backbone"]["name"] == values["backbone"]["name"]
    assert inner["seed"] != values["seed"]
    assert inner["data"] == {**values["data"], "unlabelled_share": 0.0}  # it learns from labels


def test_given_weights_skip_the_first_stage(tmp_path: Path) -> None:
    train(tiny_run(tmp_path / "a", "method=baseline", "method.peers=1", "teacher=none"))
    path = tmp_path / "a" / "checkpoints" / "best.ckpt"
    run = tiny_run(tmp_path / "b", "method=kd", "teacher.backbone=resnet8", f"teacher.weights={path}")
    train(run)
    assert not (tmp_path / "b" / "teacher").exists()
    path.unlink()
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    assert train(Run(run.values, run.folder, last)).last.epoch == 2  # a resume needs no file of weights
    # Nor does whoever reads the checkpoint, which may be a stranger's, open the file that it names.
    path.write_bytes(b"no weights at all")
    assert DistillationModule.load_from_checkpoint(last).teacher is not None
