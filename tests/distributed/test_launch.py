"""The ways to start several processes: this command and torchrun."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from dkel_lightning import DistillationModule
from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from tests.compose import tiny_run
from tests.distributed.processes import fork
from tests.modules.toy import SGD, parameters_of, train_loader, trainer, val_loader


@pytest.mark.slow
def test_kd_in_two_processes_has_the_same_frozen_teacher_on_both(tmp_path: Path) -> None:
    short = (
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
        "method=kd",
        "teacher.backbone=resnet8",
        "data.batch_size=8",
    )

    def work(rank: int) -> None:
        train(tiny_run(tmp_path / "run", "backbone=resnet8", *short, "trainer=ddp_cpu"))

    assert fork(2, work) == [0, 0]
    teacher = file_format.load(tmp_path / "run" / "teacher" / "checkpoints" / "best.ckpt")["state_dict"]
    held = file_format.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    name = "network.trunk.stem.0.weight"
    assert torch.equal(held["state_dict"][f"teacher.{name}"], teacher[f"student.{name}"])
    ours, theirs = held[file_format.KEY]["processes"]
    statistics = [key for key in ours["tensors"] if key.startswith("teacher.") and key.endswith("running_mean")]
    assert statistics
    assert all(torch.equal(ours["tensors"][key], theirs["tensors"][key]) for key in statistics)


@pytest.mark.long
def test_a_module_trains_under_lightnings_own_spawn_and_comes_back(tmp_path: Path) -> None:
    module = DistillationModule.build(
        "resnet8", 3, "dkel", 2, optimizer=SGD, scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    )
    before = parameters_of(module)
    run = trainer(default_root_dir=tmp_path, devices=2, strategy=DDPStrategy(start_method="spawn"))
    run.fit(module, train_loader(), val_loader())
    changed = [name for name, value in parameters_of(module).items() if not torch.equal(value, before[name])]
    assert any(name.startswith("student.") for name in changed)
    assert any(name.startswith("teacher.") for name in changed)
    assert module.scores.validation_accuracy.isfinite().all()
