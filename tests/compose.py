"""Compose configurations as the command line does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dkel_lightning import cli
from dkel_lightning.files import Run

TINY = (
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "callbacks.progress=none",
)


def compose(*overrides: str) -> dict[str, Any]:
    """Compose and resolve a configuration."""
    return cli.resolved(cli.compose(list(overrides)))


def tiny_run(folder: Path, *overrides: str) -> Run:
    """Compose a run of a few steps on the digits."""
    return Run(compose(*TINY, *overrides), folder)
