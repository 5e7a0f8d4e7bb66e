"""The ways to start several processes: this command and torchrun."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from tests.compose import tiny_run
from tests.distributed.processes import fork


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
