"""Compose configurations as the command line does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dkel_lightning.app.cli import checks, composition, main
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.runs.folder import Run

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
    return copy.deepcopy(plain(*overrides))


@functools.cache
def plain(*overrides: str) -> dict[str, Any]:
    """Compose and resolve a configuration of what is shipped or registered."""
    return composition.resolved(composition.compose(list(overrides)))


def prepare(arguments: Sequence[str]) -> list[str]:
    """Do what is done before Hydra runs, and return what is handed to it."""
    return [*main.prepared(arguments).arguments]


def check_arguments(given: Sequence[str], config_dir: Path | None = None, multirun: bool = False) -> None:
    """Check the arguments without looking for folders."""
    flags = [*(["-m"] if multirun else []), *([] if config_dir is None else [f"--config-dir={config_dir}"])]
    checks.check(checks.with_hydra(Invocation.of([*flags, *given])))


def with_callback(run: Run, target: str, **settings: Any) -> Run:
    """Give the same run with a callback of the test's."""
    extra = {"of_the_test": {"_target_": target, **settings}}
    return replace(run, values={**run.values, "callbacks": {**run.values["callbacks"], "extra": extra}})


def interrupted_at(epoch: int, run: Run) -> Run:
    """Give the same run with an interruption at the start of an epoch, counted from 0."""
    return with_callback(run, "tests.modules.toy.Interrupt", epoch=epoch)


def tiny_run(folder: Path, *overrides: str) -> Run:
    """Compose a run of a few steps on the digits."""
    return Run(compose(*TINY, *overrides), folder)
