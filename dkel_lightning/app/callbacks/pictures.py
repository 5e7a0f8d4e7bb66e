"""Draw a few augmented training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from dkel_lightning.app import figures
from dkel_lightning.distillation import DistillationModule
from dkel_lightning.modules.batch import unpack

IMAGES = 8


class AugmentedViews(Callback):
    """Draw the views of the first `IMAGES` images of the first training batch, once per run.

    Args:
        path: the PNG; an existing one is kept.
        mean: channel means of the normalisation.
        std: channel deviations of the normalisation.
    """

    def __init__(self, path: Path, mean: Sequence[float], std: Sequence[float]) -> None:
        self.path = path
        self.mean, self.std = mean, std
        self._done = path.is_file()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._done or not trainer.is_global_zero:
            return
        self._done = True
        assert isinstance(pl_module, DistillationModule)
        views = unpack(pl_module.read(batch)).views[:IMAGES]
        figures.draw_views(to_pixels(views if views.dim() == 5 else views.unsqueeze(1), self.mean, self.std), self.path)


def to_pixels(views: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Undo the normalisation of `views` [..., C, H, W]; return uint8."""
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    pixels = (views.detach().float().cpu() * scale + shift).clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.numpy())
