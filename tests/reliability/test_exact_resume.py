"""A run that is killed or stopped anywhere and gone on with ends as if nothing had happened, bit for bit on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from dkel_lightning import DistillationModule
from dkel_lightning.app import saved
from dkel_lightning.app.callbacks import LastCheckpoint, SaveOnSignal
from dkel_lightning.app.records import RunRecord
from dkel_lightning.app.run import Run
from dkel_lightning.app.tasks.train import train
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, Interrupted
from tests.compose import resumed
from tests.modules.toy import Toy, build, trainer
from tests.reliability.harness import Noise, assert_equal_runs, differences, in_a_child, noisy_run, patched


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once without interruption."""
    folder = tmp_path_factory.mktemp("through") / "run"
    train(noisy_run(folder))
    return folder


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


PLACES = {
    "amid the teacher's initialisation": "initialising:3",
    "between initialisation and training": "init",
    "amid accumulated gradients of the first epoch": "batch:1",
    "between two optimizer steps": "batch:7",
    "amid accumulated gradients": "batch:8",
    "after the last batch of an epoch": "batch:10",
    "in validation": "validation:3",
    "between validation and checkpoint": "validated:2",
    "between row and checkpoint": "row:2",
    "while best.ckpt is written": "writing:3",
    "while last.ckpt is written": "writing:4",
    "between best.ckpt and last.ckpt of an epoch": "best:2",
    "between last.ckpt and the next epoch": "last:2",
    "between best.ckpt and last.ckpt of the last epoch": "best:3",
    "after the last epoch": "last:3",
    "in the test": "test:1",
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_run_killed_there_and_resumed_ends_as_if_nothing_had_happened(
    place: str, through: Path, tmp_path: Path
) -> None:
    run = noisy_run(tmp_path / "run")

    def killed() -> None:
        patched(place)
        train(run)

    assert in_a_child(killed) == -signal.SIGKILL
    resumed(run)
    assert_equal_runs(run.folder, through)


@pytest.mark.parametrize(
    ("number", "place", "step"),
    [*((number, "on_train_batch_end:6", 4) for number in SIGNALS), (SIGNALS[1], "on_validation_batch_end:3", 6)],
)
def test_a_signal_saves_between_two_steps_and_the_resumed_run_ends_as_if_nothing_had_happened(
    number: int, place: str, step: int, through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = noisy_run(tmp_path / "run")
    hook, _, count = place.partition(":")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Noise, hook, signalling(number, int(count)))
        with pytest.raises(Interrupted) as stop:
            train(run)
    assert (stop.value.code, stop.value.step) == (128 + number, step)
    assert signal.getsignal(number) is before
    assert f"Interrupted. Resume with: dkel resume={run.folder}" in capsys.readouterr().out
    resumed(run)
    assert_equal_runs(run.folder, through)


def test_checkpoints_within_an_epoch_go_on_exactly(through: Path, tmp_path: Path) -> None:
    run = noisy_run(tmp_path / "run", "callbacks.checkpoint_every_n_steps=1")

    def killed() -> None:
        patched("batch:10")
        train(run)

    assert in_a_child(killed) == -signal.SIGKILL
    resumed(run)
    assert (run.folder / "metrics.csv").read_bytes() == (through / "metrics.csv").read_bytes()


def stopped(run: Run, monkeypatch: pytest.MonkeyPatch, count: int = 6) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Noise, "on_train_batch_end", signalling(signal.SIGTERM, count))
        with pytest.raises(Interrupted):
            train(run)


@pytest.mark.parametrize("what", ["missing", "torn"])
def test_a_run_whose_best_epoch_is_lost_says_so_and_takes_the_best_of_the_others(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = noisy_run(tmp_path / "run")
    stopped(run, monkeypatch)
    best = run.folder / "checkpoints" / "best.ckpt"
    if what == "torn":
        best.write_bytes(best.read_bytes()[:1000])
    else:
        best.unlink()
    resumed(run)
    assert f"{best} is missing or damaged: the best of the remaining epochs replaces it." in capsys.readouterr().out
    assert file_format.load(best)["epoch"] > 0
    assert RunRecord(run.folder).best is not None


def test_a_finished_run_whose_best_epoch_is_lost_still_tells_of_its_last(tmp_path: Path) -> None:
    run = noisy_run(tmp_path / "run", "trainer.max_epochs=1")
    train(run)
    for name in ("summary.json", "checkpoints/best.ckpt"):
        (run.folder / name).unlink()
    resumed(run)
    summary = RunRecord(run.folder).summary
    assert (summary["test"]["last"]["epoch"], summary["test"]["best"]) == (1, None)


def as_saved(run: Run) -> Run:
    """Return the run with the settings of its folder, as `resume=` reads them."""
    return replace(run, values=saved.resume_settings(run.folder, run.values, {"callbacks"}))


def test_an_edited_configuration_is_refused_and_what_may_change_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = noisy_run(tmp_path / "run")
    stopped(run, monkeypatch)
    path = run.folder / "config.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("lr: 0.1\n", "lr: 0.5\n", 1), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"config\.yaml has been edited since .*last\.ckpt was written: restore it"
    ):
        resumed(as_saved(run))
    path.write_text(before.replace("log_every_n_steps: ", "log_every_n_steps: 1"), encoding="utf-8")
    resumed(as_saved(run))


def signalling(number: int, count: int) -> Any:
    """Make a hook whose n-th call sends this process a signal."""
    calls = [0]

    def hook(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), number)

    return hook


class SignalAtStep(Callback):
    """Send this process a signal in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Send it."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_in_a_users_trainer_a_shuffled_loader_goes_on_in_the_order_it_would_have_had(tmp_path: Path) -> None:
    def fit(path: Path, *more: Callback, resume: Path | None = None) -> DistillationModule:
        last, module = LastCheckpoint(path), build()
        loader = DataLoader(Toy(), batch_size=8, shuffle=True)  # from the global generator, and not stateful
        torch.manual_seed(0)
        settings: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}
        trainer(SaveOnSignal(last), last, *more, **settings).fit(module, loader, ckpt_path=resume, weights_only=True)
        return module

    through = fit(tmp_path / "through.ckpt")
    with pytest.raises(Interrupted) as stop:
        fit(tmp_path / "run.ckpt", SignalAtStep(4))
    # Such a loader cannot go on within an epoch: the signal waits for its end.
    assert stop.value.step == 6
    resumed_module = fit(tmp_path / "run.ckpt", resume=tmp_path / "run.ckpt")
    assert differences(dict(resumed_module.state_dict()), dict(through.state_dict())) == []


def test_a_torn_last_checkpoint_of_a_finished_run_is_stepped_over_and_made_again(tmp_path: Path) -> None:
    run = noisy_run(tmp_path / "run", "trainer.max_epochs=1")
    train(run)
    last = run.folder / "checkpoints" / "last.ckpt"
    before = file_format.load(last)
    last.write_bytes(last.read_bytes()[:1000])
    resumed(run)
    after = file_format.load(last)
    assert after["global_step"] == before["global_step"]
    assert differences(after["state_dict"], before["state_dict"]) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_runs_killed_again_and_again_at_random_moments_end_as_if_nothing_had_happened(
    through: Path, tmp_path: Path
) -> None:
    draws, kills = random.Random(0), 0
    started = time.perf_counter()
    train(noisy_run(tmp_path / "timed"))
    length = time.perf_counter() - started
    for number in range(20):
        run = noisy_run(tmp_path / f"run_{number}")
        run.write_config()
        for _ in range(6):
            sent = signal.SIGTERM if draws.random() < 0.25 else signal.SIGKILL
            kills += interrupted(partial(resumed, run), draws.uniform(0, length), sent) and sent == signal.SIGKILL
        resumed(run)
        assert_equal_runs(run.folder, through)
    assert kills > 20


def interrupted(work: Callable[[], Any], after: float, number: int) -> bool:
    """Run `work` in a forked process, send it a signal after some seconds; return whether that ended it."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(after)
    if child.is_alive():
        assert child.pid is not None
        os.kill(child.pid, number)
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode != 0
