"""A frozen teacher from elsewhere stays outside of the checkpoint, which carries its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning import DistillationModule, TeacherSettings
from dkel_lightning.app.cli import saved_settings
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.evaluate import evaluate
from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError
from dkel_lightning.networks import create
from tests.compose import compose, tiny_run
from tests.modules.toy import CLASSES, SGD, parameters_of, same, train_loader, trainer, val_loader

BACKBONE = "densenet40_12"


def weights_file(
    folder: Path, seed: int = 0, classes: int = CLASSES, channels: int = 3, backbone: str = BACKBONE
) -> str:
    torch.manual_seed(seed)
    path = folder / f"from_elsewhere_{seed}.pt"
    torch.save(create(backbone, classes, 1, in_channels=channels).peer(0).state_dict(), path)
    return str(path)


def build(weights: str | None, method: Any = "kd", **settings: Any) -> DistillationModule:
    teacher = {"backbone": BACKBONE, "weights": weights, **settings}
    return DistillationModule.build("resnet8", CLASSES, method, 1, teacher=teacher, optimizer=SGD, image_size=(8, 8))


def trained(module: DistillationModule, path: Path, epochs: int = 1, resume: Path | None = None) -> DistillationModule:
    fit = trainer(max_epochs=epochs)
    fit.fit(module, train_loader(), val_loader(), ckpt_path=resume, weights_only=True)
    fit.save_checkpoint(path)
    return module


def of_teacher(path: Path) -> list[str]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return [name for name in state if name.startswith("teacher.network.")]


def test_the_checkpoint_names_the_teacher_and_a_resume_with_the_same_one_is_exact(tmp_path: Path) -> None:
    given = weights_file(tmp_path)
    whole = trained(build(given), tmp_path / "whole.ckpt", 2)
    trained(build(given), tmp_path / "half.ckpt")
    assert of_teacher(tmp_path / "half.ckpt") == []
    told = file_format.left_out(file_format.load(tmp_path / "half.ckpt"))["teacher"]
    assert (told["name"], told["source"]) == (BACKBONE, "from_elsewhere_0.pt")
    assert told["parameters"] == sum(value.numel() for value in create(BACKBONE, CLASSES, 1).parameters())
    resumed = trained(build(given), tmp_path / "rest.ckpt", 2, tmp_path / "half.ckpt")
    assert same(parameters_of(whole), parameters_of(resumed))
    assert of_teacher(tmp_path / "rest.ckpt") == []


def test_a_resume_with_another_teacher_is_refused(tmp_path: Path) -> None:
    trained(build(weights_file(tmp_path)), tmp_path / "x.ckpt")
    other = weights_file(tmp_path, 1)
    said = rf"leaves out its teacher, {BACKBONE} \(from_elsewhere_0\.pt, hash \w{{12}}\), and the one here is "
    with pytest.raises(
        CheckpointError, match=said + rf"{BACKBONE} \(from_elsewhere_1\.pt, hash \w{{12}}\): give teach"
    ):
        trained(build(other), tmp_path / "y.ckpt", 2, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=said + r"none of that kind: give teacher\.weights or"):
        trained(build(None), tmp_path / "y.ckpt", 2, tmp_path / "x.ckpt")


def test_without_its_teacher_a_checkpoint_is_evaluated_and_deployed_and_the_teacher_refused(tmp_path: Path) -> None:
    given = weights_file(tmp_path)
    module = trained(build(given), tmp_path / "x.ckpt")
    alone = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(alone.deploy()(images), module.deploy()(images))
    assert alone.members == ("student_0",)
    for path in (None, tmp_path / "x.ckpt"):  # the latter has the teacher's accuracy too
        (scores,) = trainer().test(alone, val_loader(), ckpt_path=path, verbose=False, weights_only=True)
        assert not any("teacher" in name for name in scores)
    assert alone.validation_accuracy.tolist() == module.validation_accuracy[:1].tolist()
    missing = rf"The teacher, {BACKBONE}, is no part of this checkpoint, and its weights \(from_elsewhere_0\.pt, hash"
    with pytest.raises(CheckpointError, match=missing):
        alone.deploy("teacher")
    with pytest.raises(CheckpointError, match=missing):
        trainer().fit(alone, train_loader())
    with pytest.raises(CheckpointError, match=missing):
        DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", deploy={"network": "teacher"}).deploy()
    for form in ({"weights": given}, TeacherSettings(weights=given)):
        again = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", teacher=form)
        torch.testing.assert_close(again.deploy("teacher")(images), module.deploy("teacher")(images))
    assert DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", teacher="frozen").members == ("student_0",)
    with pytest.raises(CheckpointError, match=r"and the one here is .*from_elsewhere_1\.pt"):
        DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt", teacher={"weights": weights_file(tmp_path, 1)})


@pytest.mark.parametrize("method", ["dih", {"name": "consistent", "matcher": "learned"}])
def test_what_a_method_keeps_of_the_teacher_stays_inside(method: Any, tmp_path: Path) -> None:
    given = weights_file(tmp_path)
    module = trained(build(given, method), tmp_path / "x.ckpt")
    alone = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert of_teacher(tmp_path / "x.ckpt") == []
    assert same(dict(alone.method.state_dict()), dict(module.method.state_dict()))


@pytest.mark.slow
def test_a_checkpoint_that_holds_its_teacher_goes_on_with_it(tmp_path: Path) -> None:
    given = weights_file(tmp_path)
    older = build(given)
    older.teacher.manifest = None  # as versions before did
    trained(older, tmp_path / "older.ckpt")
    assert of_teacher(tmp_path / "older.ckpt")
    for resumed in (build(given), build(None)):
        trained(resumed, tmp_path / "rest.ckpt", 2, tmp_path / "older.ckpt")
        assert of_teacher(tmp_path / "rest.ckpt")
        assert same(parameters_of(resumed.teacher.network), parameters_of(older.teacher.network))


def test_a_trained_and_a_learning_teacher_stay_inside(tmp_path: Path) -> None:
    stage = DistillationModule.build(BACKBONE, CLASSES, "baseline", 1, teacher={"update": "none"}, image_size=(8, 8))
    trained(stage, tmp_path / "stage.ckpt")
    for module in (build(str(tmp_path / "stage.ckpt")), build(weights_file(tmp_path), update="gradient")):
        trained(module, tmp_path / "x.ckpt")
        assert of_teacher(tmp_path / "x.ckpt")


@pytest.mark.slow
def test_tasks_read_the_teacher_again_where_they_are_told_to(tmp_path: Path) -> None:
    given = weights_file(tmp_path, classes=10, channels=1)
    asked = ("method=kd", f"teacher.backbone={BACKBONE}", "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    first = tiny_run(tmp_path / "run", *asked, f"teacher.weights={given}")
    train(first)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert of_teacher(path) == []
    train(replace(first, resume=path))
    with pytest.raises(CheckpointError, match="and the one here is none of that kind"):
        train(replace(first, values={**first.values, "teacher": compose(*asked)["teacher"]}, resume=path))
    read = {}
    for name, again in {"alone": [], "both": [f"teacher.weights={given}"]}.items():
        said = ["task=evaluate", f"checkpoint={path}", *again]
        values = saved_settings.of_checkpoint(first.values, compose(*said), said, path)
        assert values["teacher"]["weights"] == (given if again else None)
        read[name] = evaluate(Run(values, tmp_path / name)).scores.accuracy
    assert "teacher_0" in read["both"]
    assert "teacher_0" not in read["alone"]
    assert read["both"]["student_0"] == read["alone"]["student_0"]
