"""Exports and predictions of a small run, as the command line makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.app.cli import saved_settings
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run, saved_values
from dkel_lightning.app.tasks.export import ExportResult, export_checkpoint
from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import DigitsDataModule
from tests.compose import compose, tiny_run

QUICK = ("trainer=cpu", "trainer.limit_test_batches=1", "export.repeats=0", "export.images=40")


def trained(folder: Path) -> Path:
    """Train dkel for a few steps, and return its last checkpoint."""
    train(tiny_run(folder, "method.peers=2"))
    return folder / "checkpoints" / "last.ckpt"


def values_of(checkpoint: Path, *overrides: str) -> dict[str, Any]:
    """Compose as the command line does for a checkpoint of a run, and check."""
    values = saved_settings.of_checkpoint(
        saved_values(checkpoint), compose(*overrides), overrides, checkpoint.parent.parent
    )
    checks.check(values)
    return values


def exported(checkpoint: Path, folder: Path, *overrides: str) -> ExportResult:
    """Run task=export into a folder."""
    given = ("task=export", f"checkpoint='{checkpoint}'", *QUICK, *overrides)
    return export_checkpoint(Run(values_of(checkpoint, *given), folder))


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Return test images of the digits, uint8 [N, 1, 8, 8] and normalised."""
    images = DigitsDataModule()
    images.setup()
    stored = images._splits["test"].read(torch.arange(count))
    return stored, images.augment.normalize(stored)


def logits_of(checkpoint: Path, member: str, images: Tensor) -> Tensor:
    """Ask the training network."""
    module = DistillationModule.load_from_checkpoint(checkpoint).eval()
    with torch.no_grad():
        return module.evaluate(images).logits[module.scores.members.index(member)]
