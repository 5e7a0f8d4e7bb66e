"""The ways to start several processes: this command, torchrun, and spawned ones in a sweep."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from dkel_lightning import DistillationModule
from dkel_lightning.app.build import processes
from dkel_lightning.app.build import trainer as build_trainer
from dkel_lightning.app.config.checks import check
from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import format
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.process_group import ProcessGroup
from tests.compose import compose, tiny_run
from tests.distributed.processes import TINY, Command, fork
from tests.modules.toy import SGD, parameters_of, train_loader, trainer, val_loader

SPAWN = ("trainer=ddp_spawn", "trainer.accelerator=cpu", "trainer.devices=2")


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_sweep_spawns_its_processes_and_gives_what_ddp_gives(tmp_path: Path) -> None:
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "callbacks.progress=none")
    command = Command(tmp_path, "-m", *SPAWN, *TINY, *short, "seed=0,1")
    ended = command.wait()
    assert ended.code == 0, ended.text
    (sweep,) = tmp_path.glob("outputs/smoke/sweep_*")
    assert sorted(path.name for path in sweep.iterdir() if path.name.isdigit()) == ["0", "1"]
    assert [summary(sweep / job)["seed"] for job in "01"] == [0, 1]

    def work(rank: int) -> None:
        # Without a spawning parent it is plain DDP.
        train(tiny_run(tmp_path / "ddp", *TINY, *short, "trainer=ddp_cpu"))

    assert fork(2, work) == [0, 0]
    ours, theirs = (format.load(folder / "checkpoints" / "last.ckpt") for folder in (sweep / "0", tmp_path / "ddp"))
    assert all(torch.equal(ours["state_dict"][name], value) for name, value in theirs["state_dict"].items())
    assert summary(sweep / "0")["test"] == summary(tmp_path / "ddp")["test"]
    seeds = [format.load(sweep / job / "checkpoints" / "last.ckpt")["state_dict"] for job in "01"]
    assert not torch.equal(*(state["student.network.trunk.stem.0.weight"] for state in seeds))


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
    trained = format.load(first)["state_dict"]
    held = format.load(run / "checkpoints" / "last.ckpt")["state_dict"]
    weights = [name for name in held if name.startswith("teacher.network.") and name.endswith("weight")]
    assert weights
    for name in weights:
        assert torch.equal(held[name], trained[name.replace("teacher.", "student.")]), name


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
    teacher = format.load(tmp_path / "run" / "teacher" / "checkpoints" / "best.ckpt")["state_dict"]
    held = format.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    name = "network.trunk.stem.0.weight"
    assert torch.equal(held["state_dict"][f"teacher.{name}"], teacher[f"student.{name}"])
    ours, theirs = format.own_states(held)
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
    assert module.validation_accuracy.isfinite().all()


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        (["trainer=ddp_cpu"], 600),
        (["trainer=cpu", "trainer.devices=2"], 600),
        ([*SPAWN, "trainer.process_timeout=0.5"], 30),
    ],
)
def test_plain_ddp_waits_for_a_bounded_time(overrides: list[str], seconds: int) -> None:
    values = compose(*overrides)
    check(values)
    built = build_trainer(values, loggers=[], callbacks=[], plugins=[])
    assert isinstance(built.strategy, ProcessGroup)
    assert built.strategy._timeout is not None
    assert built.strategy._timeout.total_seconds() == seconds
    assert built.strategy._ddp_kwargs["find_unused_parameters"] is False


def test_one_device_needs_no_group_and_other_ways_to_start_processes_are_refused() -> None:
    built = build_trainer(compose("trainer=cpu"), loggers=[], callbacks=[], plugins=[])
    assert not isinstance(built.strategy, DDPStrategy)
    assert processes(compose(*SPAWN)) == 2
    with pytest.raises(ConfigError, match=r"trainer\.strategy=ddp_fork is not supported: choose ddp or ddp_spawn"):
        build_trainer(compose("trainer=ddp_cpu", "trainer.strategy=ddp_fork"), loggers=[], callbacks=[], plugins=[])
    with pytest.raises(ConfigError, match=r"trainer\.process_timeout must be a number above 0"):
        check(compose("trainer=ddp_cpu", "trainer.process_timeout=0"))
    with pytest.raises(ConfigError, match="starts processes on one machine"):
        processes(compose(*SPAWN, "trainer.num_nodes=2"))
