"""A run of two processes goes on exactly, each with its own statistics and random numbers; the first one writes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning.app.callbacks.saving import SaveOnSignal
from dkel_lightning.app.run import Run, find_checkpoint
from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import Interrupted
from tests.distributed.processes import fork
from tests.reliability.harness import Noise, assert_equal_runs, differences, noisy_run, patched, without_times

pytestmark = pytest.mark.slow
TWO = ("trainer=ddp_cpu", "trainer.accumulate_grad_batches=2", "method.peers=2")


def two(run: Run, before: Callable[[int], None] = lambda rank: None) -> list[int]:
    """Train in two processes, and go on where a checkpoint lies."""

    def work(rank: int) -> None:
        before(rank)
        started = (run.folder / "config.yaml").is_file()
        train(replace(run, resume=find_checkpoint(run.folder) if started else None))

    return fork(2, work)


def run_of_two(folder: Path, *overrides: str) -> Run:
    # The overrides of `noisy_run` come first, and with them one process.
    return noisy_run(folder, *TWO, *overrides)


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once without interruption."""
    folder = tmp_path_factory.mktemp("two") / "run"
    assert two(run_of_two(folder)) == [0, 0]
    return folder


def holds_what_each_process_has(checkpoint: dict[str, Any]) -> None:
    """Assert random numbers and, within an epoch, running statistics that differ between the processes."""
    ours, theirs = checkpoint[file_format.KEY]["processes"]
    assert not torch.equal(ours["random"]["torch"], theirs["random"]["torch"])
    unequal = [name for name, value in ours["tensors"].items() if not torch.equal(value, theirs["tensors"][name])]
    assert any(name.startswith("student.") and name.endswith("running_mean") for name in unequal)
    assert any(name.startswith("teacher.") and name.endswith("running_var") for name in unequal)


@pytest.mark.parametrize(
    "place", ["batch:8", *(pytest.param(place, marks=pytest.mark.long) for place in ("validation:3", "writing:3"))]
)
def test_a_run_killed_within_an_epoch_goes_on_bit_for_bit(place: str, through: Path, tmp_path: Path) -> None:
    run = run_of_two(tmp_path / "run", "callbacks.checkpoint_every_n_steps=1")

    def die(rank: int) -> None:
        if rank == 0:
            patched(place)

    codes = two(run, die)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] != 0
    before = file_format.load(run.folder / "checkpoints" / "last.ckpt")
    if place == "batch:8":
        # Within the second epoch of three steps.
        assert before["global_step"] == 4
        holds_what_each_process_has(before)
    assert two(run) == [0, 0]
    assert (run.folder / "metrics.csv").read_bytes() == (through / "metrics.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        ours, others = (file_format.load(folder / "checkpoints" / name) for folder in (run.folder, through))
        assert differences(without_times(ours), without_times(others)) == []


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_they_go_on_bit_for_bit(
    through: Path, tmp_path: Path
) -> None:
    run = run_of_two(tmp_path / "run")

    def work(rank: int) -> None:
        calls = [0]

        def signalled(*_: Any) -> None:
            calls[0] += 1
            if rank == 1 and calls[0] == 6:
                os.kill(os.getpid(), signal.SIGTERM)

        patch = pytest.MonkeyPatch()
        patch.setattr(Noise, "on_train_batch_end", signalled, raising=False)
        patch.setattr("dkel_lightning.app.tasks.train.SaveOnSignal", partial(SaveOnSignal, every_n_batches=2))
        try:
            train(run)
        except Interrupted as stop:
            (tmp_path / f"stopped{rank}").write_text(f"{stop.step} {stop.code}")

    assert fork(2, work) == [0, 0]
    # Its sixth batch is the second epoch's first. Asked at every border of two accumulated batches, both answer there.
    assert [(tmp_path / f"stopped{rank}").read_text() for rank in (0, 1)] == [f"4 {128 + signal.SIGTERM}"] * 2
    assert file_format.load(run.folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert two(run) == [0, 0]
    assert_equal_runs(run.folder, through)
