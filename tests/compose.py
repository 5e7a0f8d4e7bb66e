"""Compose configurations as the command line does, and give runs of a few steps."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from dkel_lightning.app import config
from dkel_lightning.app.main import execute
from dkel_lightning.app.records import RunRecord
from dkel_lightning.app.run import Run, find_checkpoint
from dkel_lightning.app.tasks.train import train

TINY = (
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "callbacks.progress=none",
)


def compose(*overrides: str) -> dict[str, Any]:
    """Compose and resolve a configuration; the same one is composed once."""
    return copy.deepcopy(_compose(*overrides))


@functools.cache
def _compose(*overrides: str) -> dict[str, Any]:
    return config.resolve(config.compose(overrides))


def with_callback(run: Run, target: str, **settings: Any) -> Run:
    """Return the same run with a callback of the test's."""
    extra = {"of_the_test": {"_target_": target, **settings}}
    return replace(run, values={**run.values, "callbacks": {**run.values["callbacks"], "extra": extra}})


def interrupted_at(epoch: int, run: Run) -> Run:
    """Return the same run with an interruption at the start of an epoch, counted from 0."""
    return with_callback(run, "tests.modules.toy.Interrupt", epoch=epoch)


def tiny_run(folder: Path, *overrides: str) -> Run:
    """Compose a run of a few steps on the digits."""
    return Run(compose(*TINY, *overrides), folder)


def run_task(folder: Path, *overrides: str) -> float | None:
    """Run a task in this process as the command line does."""
    return execute(compose(*overrides), folder, config.typed_keys(overrides))


def resumed(run: Run) -> RunRecord:
    """Go on with a run as `resume=FOLDER` does."""
    return train(replace(run, resume=find_checkpoint(run.folder)))
