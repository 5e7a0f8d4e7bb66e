"""The ways to start several processes: this command and torchrun."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from dkel_lightning import DistillationModule
from dkel_lightning.app.build import trainer as build_trainer
from dkel_lightning.app.config.checks import check
from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import ConfigError
from tests.compose import compose, tiny_run
from tests.distributed.processes import TINY, Command, fork
from tests.modules.toy import SGD, parameters_of, train_loader, trainer, val_loader


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("launcher", ["ddp_cpu", "torchrun"])
def test_both_stages_of_kd_train_on_two_processes(launcher: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29531"]
    settings = [item for item in TINY if not item.startswith("method.peers")]
    settings += ["method=kd", "teacher.backbone=resnet8", "trainer.max_epochs=1", "trainer=ddp_cpu"]
    ended = Command(tmp_path, *settings, launcher=torchrun if launcher == "torchrun" else ()).wait()
    assert ended.code == 0, ended.text
    assert ended.text.count("Stage 2 of 2") == 1
    (first,) = tmp_path.glob("outputs/smoke/*/teacher/checkpoints/best.ckpt")
    run = first.parents[2]
    assert (run / "summary.json").is_file()
    trained = file_format.load(first)["state_dict"]
    held = file_format.load(run / "checkpoints" / "last.ckpt")["state_dict"]
    weights = [name for name in held if name.startswith("teacher.network.") and name.endswith("weight")]
    assert weights
    for name in weights:
        assert torch.equal(held[name], trained[name.replace("teacher.", "student.")]), name


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
    ours, theirs = file_format.own_states(held)
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


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("overrides", "seconds", "unused"),
    [
        (["trainer=ddp_cpu"], 600, False),
        (["trainer=cpu", "trainer.devices=2"], 600, False),
        (["trainer=ddp_cpu", "trainer.process_timeout=0.5"], 30, False),
        (["trainer=ddp_cpu", "trainer.strategy=ddp_find_unused_parameters_true"], 600, True),
        (["trainer=ddp_cpu", "trainer.strategy=ddp_find_unused_parameters_false"], 600, False),
    ],
)
def test_plain_ddp_waits_for_a_bounded_time(overrides: list[str], seconds: int, unused: bool) -> None:
    values = compose(*overrides)
    check(values)
    built = build_trainer(values, loggers=[], callbacks=[], plugins=[])
    assert isinstance(built.strategy, DDPStrategy)
    assert built.strategy._timeout.total_seconds() == seconds
    assert built.strategy._ddp_kwargs["find_unused_parameters"] is unused


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_spawn_find_unused_parameters_true"])
def test_other_ways_to_start_processes_are_refused(strategy: str) -> None:
    refusal = rf"trainer\.strategy={strategy} is not supported: use trainer=ddp, alone or under torchrun"
    with pytest.raises(ConfigError, match=refusal):
        build_trainer(compose("trainer=ddp_cpu", f"trainer.strategy={strategy}"), loggers=[], callbacks=[], plugins=[])


def test_one_device_needs_no_group_and_a_wait_of_no_time_is_refused() -> None:
    built = build_trainer(compose("trainer=cpu"), loggers=[], callbacks=[], plugins=[])
    assert not isinstance(built.strategy, DDPStrategy)
    with pytest.raises(ConfigError, match=r"trainer\.process_timeout must be a number above 0"):
        check(compose("trainer=ddp_cpu", "trainer.process_timeout=0"))
