"""Kills at random moments, and thousands of epochs; `make test-long`, not `make test`."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from dkel_lightning.app import tasks
from dkel_lightning.app.runs.folder import Run, newest_checkpoint
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import CheckpointError
from tests.compose import tiny_run
from tests.reliability.harness import armed, assert_equal_runs, in_a_child, noisy_run, patched, resumed, started
from tests.reliability.record import record

pytestmark = pytest.mark.long

RUNS, KILLS_A_RUN = 20, 6


@pytest.mark.timeout(3600)
def test_runs_killed_again_and_again_at_random_moments_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    through = tmp_path / "through"
    started = time.perf_counter()
    train(noisy_run(through))
    length = time.perf_counter() - started
    draws, kills, signals, anew = random.Random(0), 0, 0, 0
    for number in range(RUNS):
        run = noisy_run(tmp_path / f"run_{number}")
        run.describe()
        for _ in range(KILLS_A_RUN):
            gentle = draws.random() < 0.25
            ended = _interrupt(
                partial(resumed, run), draws.uniform(0, length), signal.SIGTERM if gentle else signal.SIGKILL
            )
            kills += ended and not gentle
            signals += ended and gentle
            anew += not _has_checkpoint(run.folder)
        resumed(run)
        assert_equal_runs(run.folder, through)
    record("kills", runs=RUNS, kills=kills, sigterm=signals, before_the_first_checkpoint=anew, different=0)
    assert kills > RUNS


# In the order of a run, so that each is still ahead of one that was killed in those before.
STAGES = {
    "claim": r"/run_\d+$|/\.claimed$",
    "configuration": r"config\.yaml",
    "provenance.json": r"provenance\.json",
    "classes.json": r"classes\.json",
    "initialisation": "",
    "figures/views.png": r"views\.png",
    "metrics.csv": r"metrics\.csv",
    "best.ckpt": r"best\.ckpt",
    "last.ckpt": r"last\.ckpt",
    "provenance_resumed.json": r"provenance_resumed\.json",
    "confusion.csv": r"confusion\.csv",
    "figures/confusion.png": r"confusion\.png",
    "summary.json": r"summary\.json",
    "figures/curves.png": r"curves\.png",
}
KILLS_A_STAGE = 20


@pytest.mark.timeout(3600)
def test_runs_killed_in_each_of_their_stages_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    through = tmp_path / "through"
    started(noisy_run(through))
    draws, kills = random.Random(1), dict.fromkeys(STAGES, 0)
    for number in range(KILLS_A_STAGE):
        run = noisy_run(tmp_path / f"run_{number}")
        for stage, name in STAGES.items():
            # Before, amid or after one of its three operations: opened under another name, renamed, that name removed.
            count, after = draws.randint(1, 3), draws.choice((0.0, draws.uniform(1e-5, 5e-3)))

            def killed(name: str = name, count: int = count, after: float = after, run: Run = run) -> None:
                armed(name, count, after) if name else patched(f"initialising:{count}")
                started(run)
                time.sleep(2 * after)  # of the last stage, whose end may come first

            kills[stage] += in_a_child(killed) in (-signal.SIGKILL, -signal.SIGALRM)
        started(run)
        assert_equal_runs(run.folder, through)
        assert files(run.folder) - {"provenance_resumed.json"} == files(through)
    record("kills_by_stage", runs=KILLS_A_STAGE, kills=sum(kills.values()), by_stage=kills, different=0, files_left=0)
    assert min(kills.values()) >= KILLS_A_STAGE, kills


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _has_checkpoint(folder: Path) -> bool:
    try:
        return newest_checkpoint(folder).is_file()
    except CheckpointError:
        return False


def _interrupt(work: Callable[[], Any], after: float, number: int) -> bool:
    """Run `work` in a forked process, send it a signal after some seconds; tell whether that ended it."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(after)
    if child.is_alive():
        assert child.pid is not None
        os.kill(child.pid, number)
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode != 0


EPOCHS = 2000


class Watch(Callback):
    """Note the process's memory and the processor time of every epoch, which other programs do not lengthen."""

    memory: list[int]
    seconds: list[float]

    def __init__(self) -> None:
        Watch.memory, Watch.seconds = [], []
        self._started = time.process_time()

    def on_train_epoch_start(self, *args: Any) -> None:
        """Read the clocks, and now and then the memory."""
        now = time.process_time()
        Watch.seconds.append(now - self._started)
        self._started = now
        if len(Watch.seconds) % 50 == 0:
            gc.collect()
            Watch.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.timeout(3600)
def test_thousands_of_epochs_neither_grow_nor_slow_down(tmp_path: Path) -> None:
    run = tiny_run(
        tmp_path,
        f"trainer.max_epochs={EPOCHS}",
        "trainer.limit_train_batches=1",
        "data.batch_size=4",
        "data.eval_batch_size=4",
        "method.peers=2",
    )
    run.values["callbacks"]["extra"] = {"watch": {"_target_": f"{__name__}.Watch"}}
    started = time.perf_counter()
    tasks.run(run)
    hours = (time.perf_counter() - started) / 3600
    half = len(Watch.memory) // 2
    grown = max(Watch.memory[-3:]) - min(Watch.memory[half - 1 : half + 2])
    early, late = _median(Watch.seconds[200:700]), _median(Watch.seconds[-500:])
    record(
        "soak", epochs=EPOCHS, hours=round(hours, 3), megabytes=round(Watch.memory[-1] / 1e6),
        megabytes_grown_in_the_second_half=round(grown / 1e6, 1),
        milliseconds_an_epoch_early=round(early * 1e3, 1), milliseconds_an_epoch_late=round(late * 1e3, 1),
    )  # fmt: skip
    assert grown < 20e6
    assert late < 1.25 * early


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
