"""Runs that kill themselves at a chosen place, and what it means that two runs ended equal."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from dkel_lightning.app.callbacks import BestCheckpoint, LastCheckpoint, MetricsRow
from dkel_lightning.app.run import Run
from dkel_lightning.checkpoints import file_format
from dkel_lightning.modules import teacher
from dkel_lightning.runtime import processes
from tests.compose import tiny_run, with_callback

# Three epochs of five batches, two accumulated: every epoch ends in a window of one.
SHORT = (
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=2",
    "trainer.accumulate_grad_batches=2",
    "teacher.init_steps=4",
    "method.peers=2",
    "data.batch_size=8",
    "data.eval_batch_size=32",
)


class Noise(Callback):
    """Draw from every global generator, as dropout and a user's transforms do."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Disturb the images."""
        batch[0].mul_(1 + 0.01 * torch.randn(()) + 0.01 * random.random() + 0.01 * float(np.random.rand()))


def noisy_run(folder: Path, *overrides: str) -> Run:
    """Compose a run whose results depend on the global generators."""
    return with_callback(tiny_run(folder, *SHORT, *overrides), f"{__name__}.Noise")


def in_a_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process and return its exit code, negative for a signal."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def kill() -> None:
    """End this process as a pulled plug does."""
    os.kill(os.getpid(), signal.SIGKILL)


def nth(count: int, work: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """Wrap `work` so that its n-th call kills the process, before or after it is done."""
    calls = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if before and calls[0] == count:
            kill()
        result = work(*args, **kwargs)
        if calls[0] == count:
            kill()
        return result

    return wrapped


def torn_write(count: int) -> Callable[..., Any]:
    """Wrap torch.save so that its n-th call writes half a file and kills the process."""
    calls, save = [0], torch.save

    def wrapped(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(content, file, *args, **kwargs)
        if isinstance(file, io.BytesIO):  # tensors on their way to another process
            return
        calls[0] += 1
        if calls[0] == count:
            file.flush()
            file.truncate(file.tell() // 2)
            kill()

    return wrapped


def patched(place: str) -> None:
    """Arm this process to die at a place; called in the child."""
    patch = pytest.MonkeyPatch()
    name, _, count = place.partition(":")
    n = int(count or 1)
    hooks: dict[str, tuple[Any, str]] = {
        "batch": (Noise, "on_train_batch_end"),
        "validation": (Noise, "on_validation_batch_end"),
        "validated": (Noise, "on_validation_epoch_end"),
        "test": (Noise, "on_test_batch_end"),
        "row": (MetricsRow, "on_train_epoch_end"),
        "best": (BestCheckpoint, "on_train_epoch_end"),
        "last": (LastCheckpoint, "on_train_epoch_end"),
        "init": (teacher.TeacherModule, "initialise"),
    }
    if name == "writing":
        patch.setattr(torch, "save", torn_write(n))
    elif name == "initialising":
        # Once for each of its steps.
        patch.setattr(teacher, "average_over_processes", nth(n, processes.average_over_processes))
    else:
        owner, hook = hooks[name]
        patch.setattr(owner, hook, nth(n, getattr(owner, hook)))


def assert_equal_runs(mine: Path, theirs: Path) -> None:
    """Compare two finished runs: metrics, both checkpoints and the figures, bit for bit; not times and paths."""
    assert (mine / "metrics.csv").read_bytes() == (theirs / "metrics.csv").read_bytes()
    assert (mine / "config.yaml").read_bytes() == (theirs / "config.yaml").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        ours, others = (file_format.load(folder / "checkpoints" / name) for folder in (mine, theirs))
        assert differences(without_times(ours), without_times(others)) == []
    # Nor is there anything that the killed process has left half-written.
    assert sorted(path.name for path in (mine / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert [*mine.rglob("*.part")] == []


def without_times(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Leave out what measures time, where the run's folder lies and what it was asked for."""
    kept = {name: value for name, value in checkpoint.items() if name != "callbacks"}
    places = ("dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models")
    kept["callbacks"] = {
        name: {key: value for key, value in state.items() if key not in places}
        for name, state in checkpoint["callbacks"].items()
        if not name.startswith("Throughput")
    }
    return kept


def differences(mine: Any, theirs: Any, where: str = "") -> list[str]:
    """Name what differs between two nested structures."""
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = mine.shape == theirs.shape and bool(((mine == theirs) | (mine.isnan() & theirs.isnan())).all())
        return [] if same else [where]
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        found = [f"{where}.{key}" for key in mine.keys() ^ theirs.keys()]
        return found + [
            line
            for key in mine.keys() & theirs.keys()
            for line in differences(mine[key], theirs[key], f"{where}.{key}")
        ]
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple) and len(mine) == len(theirs):
        return [
            line
            for i, pair in enumerate(zip(mine, theirs, strict=True))
            for line in differences(*pair, f"{where}[{i}]")
        ]
    return [] if mine == theirs else [f"{where}: {mine!r} and {theirs!r}"]
