"""Compose configurations as the command line does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dkel_lightning.app.cli import main
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
    """Compose and resolve a configuration."""
    return main.resolved(main.compose(list(overrides)))


def tiny_run(folder: Path, *overrides: str) -> Run:
    """Compose a run of a few steps on the digits."""
    return Run(compose(*TINY, *overrides), folder)
