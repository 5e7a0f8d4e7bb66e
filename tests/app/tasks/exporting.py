"""Exports and predictions of a small run, as the command line makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dkel_lightning import DistillationModule
from dkel_lightning.app import config, saved
from dkel_lightning.app.run import Run, run_of
from dkel_lightning.app.tasks.export import export_checkpoint
from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import DigitsDataModule
from dkel_lightning.export import Exported
from tests.compose import compose, tiny_run

QUICK = ("trainer=cpu",)


def trained(folder: Path) -> Path:
    """Train dkel for a few steps, and return its last checkpoint."""
    train(tiny_run(folder, "method.peers=2"))
    return folder / "checkpoints" / "last.ckpt"


def values_of(checkpoint: Path, *overrides: str) -> dict[str, Any]:
    """Compose as the command line does for a checkpoint of a run."""
    return saved.checkpoint_settings(run_of(checkpoint), compose(*overrides), config.typed_keys(overrides))


def exported(checkpoint: Path, folder: Path, *overrides: str) -> Exported:
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
