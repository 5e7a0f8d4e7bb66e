"""A frozen teacher from elsewhere is left out of the checkpoint and filled in on loading."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning import DistillationModule, TeacherSettings
from dkel_lightning.app import config, saved
from dkel_lightning.app.run import Run
from dkel_lightning.app.tasks.evaluate import evaluate
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import CheckpointError
from dkel_lightning.networks import create
from tests.compose import compose, tiny_run
from tests.modules.toy import CLASSES, SGD, parameters_of, same, train_loader, trainer, val_loader

BACKBONE = "densenet40_12"


def weights_file(folder: Path, classes: int = CLASSES, channels: int = 3) -> str:
    torch.manual_seed(0)
    path = folder / "from_elsewhere.pt"
    torch.save(create(BACKBONE, classes, 1, in_channels=channels).peer(0).state_dict(), path)
    return str(path)


def build(weights: str | None, method: Any = "kd", **settings: Any) -> DistillationModule:
    teacher = {"backbone": BACKBONE, "weights": weights, **settings}
    return DistillationModule.build("resnet8", CLASSES, method, 1, teacher=teacher, optimizer=SGD, image_size=(8, 8))


def trained(module: DistillationModule, path: Path, epochs: int = 1, resume: Path | None = None) -> DistillationModule:
    fit = trainer(max_epochs=epochs)
    fit.fit(module, train_loader(), val_loader(), ckpt_path=resume, weights_only=True)
    fit.save_checkpoint(path)
    return module


def teacher_keys(path: Path) -> list[str]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return [name for name in state if name.startswith("teacher.network.")]


def test_a_resume_with_the_same_teacher_is_exact_and_one_without_is_refused(tmp_path: Path) -> None:
    given = weights_file(tmp_path)
    whole = trained(build(given), tmp_path / "whole.ckpt", 2)
    trained(build(given), tmp_path / "half.ckpt")
    assert teacher_keys(tmp_path / "half.ckpt") == []
    rest = trained(build(given), tmp_path / "rest.ckpt", 2, tmp_path / "half.ckpt")
    assert same(rest.state_dict(), whole.state_dict())
    with pytest.raises(CheckpointError, match=r"The checkpoint leaves out its teacher: give its weights again"):
        trained(build(None), tmp_path / "rest.ckpt", 2, tmp_path / "half.ckpt")


@pytest.mark.parametrize("method", ["kd", "dih"])
def test_the_student_is_deployed_without_the_teacher_and_the_teacher_with_its_weights(
    method: Any, tmp_path: Path
) -> None:
    given, path, images = weights_file(tmp_path), tmp_path / "x.ckpt", torch.randn(2, 3, 8, 8)
    module = trained(build(given, method), path)
    assert teacher_keys(path) == []
    alone = DistillationModule.load_from_checkpoint(path)
    torch.testing.assert_close(alone.deploy("student")(images), module.deploy("student")(images))
    assert same(dict(alone.method.state_dict()), dict(module.method.state_dict()))
    for form in ({"weights": given}, TeacherSettings(weights=given)):
        again = DistillationModule.load_from_checkpoint(path, teacher=form)
        torch.testing.assert_close(again.deploy("teacher")(images), module.deploy("teacher")(images))


def test_a_trained_and_a_learning_teacher_stay_inside(tmp_path: Path) -> None:
    stage = DistillationModule.build(BACKBONE, CLASSES, "baseline", 1, teacher={"update": "none"}, image_size=(8, 8))
    trained(stage, tmp_path / "stage.ckpt")
    for module in (build(str(tmp_path / "stage.ckpt")), build(weights_file(tmp_path), update="gradient")):
        trained(module, tmp_path / "x.ckpt")
        assert teacher_keys(tmp_path / "x.ckpt")
        again = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
        assert same(parameters_of(again.teacher.network), parameters_of(module.teacher.network))


@pytest.mark.slow
def test_tasks_read_the_teacher_again_where_they_are_told_to(tmp_path: Path) -> None:
    given = weights_file(tmp_path, classes=10, channels=1)
    asked = ("method=kd", f"teacher.backbone={BACKBONE}", "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    first = tiny_run(tmp_path / "run", *asked, f"teacher.weights={given}")
    train(first)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert teacher_keys(path) == []
    train(replace(first, resume=path))
    read = {}
    for name, again in {"alone": [], "both": [f"teacher.weights={given}"]}.items():
        said = ["task=evaluate", f"checkpoint={path}", *again]
        values = saved.checkpoint_settings(first.folder, compose(*said), config.typed_keys(said))
        assert values["teacher"]["weights"] == (given if again else None)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            read[name] = evaluate(Run(values, tmp_path / name)).accuracy
        assert any("The teacher of KD has random weights" in str(one.message) for one in warned) == (not again)
    assert read["both"]["student_0"] == read["alone"]["student_0"]
