"""Peers and teachers of any kind through the command line's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning import DistillationModule
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.evaluate import evaluate
from dkel_lightning.app.tasks.train import train
from dkel_lightning.networks import IndependentPeers
from tests.compose import compose, tiny_run
from tests.modules.toy import parameters_of, same

MIXED = ("method.peers=[resnet8,resnet32,densenet40_12]", "data.batch_size=8")
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dkel", "pcl", "baseline"])
def test_peers_of_three_architectures_train_resume_evaluate_and_deploy(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tiny_run(tmp_path, f"method={method}", *MIXED, *SHORT))
    assert "peers resnet8, resnet32, densenet40_12" in capsys.readouterr().out
    path = tmp_path / "checkpoints" / "last.ckpt"
    module = DistillationModule.load_from_checkpoint(path)
    assert module.student.network.feature_dims == (64, 64, 132)
    assert module.teacher is not None
    shapes = [[p.shape for p in part.network.parameters()] for part in (module.student, module.teacher)]
    assert shapes[0] == shapes[1]
    assert module.ensemble is not None
    images = torch.randn(4, 1, 8, 8)
    module.eval()
    for network in ("student", "teacher"):
        logits = (module.student if network == "student" else module.teacher)(images).logits
        for peer in range(3):
            torch.testing.assert_close(module.deploy(network, peer)(images), logits[peer])
    torch.testing.assert_close(module.deploy("ensemble")(images), module(images).ensemble_logits)
    again = evaluate(Run(compose(*TEST, f"method={method}", *MIXED, "task=evaluate", f"checkpoint={path}"), tmp_path))
    assert again.scores.accuracy == result.last.accuracy


TEST = ("trainer=cpu", "trainer.limit_test_batches=1", "callbacks.progress=none")


def test_equal_networks_that_share_nothing(tmp_path: Path) -> None:
    train(tiny_run(tmp_path, "method=dkel", "method.sharing=nothing", "method.peers=2"))
    module = DistillationModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert isinstance(module.student.network, IndependentPeers)
    first, second = (parameters_of(module.student.network.peer(i)) for i in range(2))
    assert first.keys() == second.keys()
    assert not same(first, second)


def built(values: Any) -> DistillationModule:
    from dkel_lightning.app import build
    from dkel_lightning.app.tasks.train import prepared

    return build.distillation(values, prepared(values))


# ---------------------------------------------------------------------- the teacher of DKEL


def trained(folder: Path, *overrides: str) -> tuple[DistillationModule, DistillationModule]:
    """Return the module at the start and at the end of a run."""
    run = tiny_run(folder, "method=dkel", "method.peers=2", *overrides)
    start = built(run.values)
    train(run)
    return start, DistillationModule.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")


def test_a_frozen_teacher_of_dkel_stays_the_draw_that_it_was(tmp_path: Path) -> None:
    start, end = trained(tmp_path, "teacher=frozen")
    assert start.teacher is not None
    assert end.teacher is not None
    ours, theirs = start.teacher.network.state_dict(), end.teacher.network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not same(parameters_of(start.teacher.network), parameters_of(end.student.network))
    assert int(end.teacher.updates) == 0


def test_a_frozen_teacher_may_be_initialised_first(tmp_path: Path) -> None:
    start, end = trained(tmp_path, "teacher=frozen", "teacher.init_steps=2")
    assert start.teacher is not None
    assert end.teacher is not None
    assert not same(parameters_of(start.teacher.network), parameters_of(end.teacher.network))
    assert int(end.teacher.updates) == 0


@pytest.mark.slow
def test_a_teacher_that_learns_by_gradient_never_sees_its_student(tmp_path: Path) -> None:
    _, plain = trained(tmp_path / "a", "teacher=gradient", "optimizer.momentum=0", "optimizer.nesterov=false")
    _, other = trained(
        tmp_path / "b", "teacher=gradient", "optimizer.momentum=0", "optimizer.nesterov=false", "method.temperature=5"
    )
    assert plain.teacher is not None
    assert other.teacher is not None
    # What the students learn differs, what the teachers learn does not.
    assert not same(parameters_of(plain.student.network), parameters_of(other.student.network))
    assert same(parameters_of(plain.teacher.network), parameters_of(other.teacher.network))
    assert int(plain.teacher.updates) == 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert "teacher_0" in summary["test"]["last"]["accuracy"]


@pytest.mark.slow
def test_a_frozen_teacher_of_dkel_may_be_the_teacher_of_another_run(tmp_path: Path) -> None:
    _, first = trained(tmp_path / "a")
    path = tmp_path / "a" / "checkpoints" / "last.ckpt"
    _, second = trained(tmp_path / "b", "teacher=frozen", f"teacher.weights={path}")
    assert first.teacher is not None
    assert second.teacher is not None
    assert same(parameters_of(first.teacher.network), parameters_of(second.teacher.network))
