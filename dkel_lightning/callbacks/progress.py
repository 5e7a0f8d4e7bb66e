"""What a run shows while it goes: speed, and a line an epoch where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from dkel_lightning.modules.batch import unpack


class Throughput(Callback):
    """Measure training images a second, all processes together, without validation and without the first epoch.

    The first epoch holds warm-up and allocation; it counts only where there is no other. Epochs before a resume
    count too.

    Attributes:
        measured: epochs measured by this process itself.
    """

    def __init__(self) -> None:
        self.measured = 0
        self._first: tuple[int, float] | None = None
        self._images_after, self._seconds_after = 0, 0.0
        self._images = 0
        self._started: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock with the first batch."""
        if self._started is None:
            self._started, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images, and stop the clock with the last batch."""
        self._images += len(unpack(batch).labels)
        if trainer.is_last_batch and self._started is not None:
            self._add(self._images * trainer.world_size, time.perf_counter() - self._started)
            self._started = None

    def state_dict(self) -> dict[str, Any]:
        """Keep what was measured in the checkpoint."""
        return {"first": self._first and list(self._first), "after": [self._images_after, self._seconds_after]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was measured before."""
        if "after" in state_dict:
            self._first = state_dict["first"] and tuple(state_dict["first"])
            self._images_after, self._seconds_after = state_dict["after"]

    @property
    def images_per_second(self) -> float | None:
        """Training images a second, None before the first epoch has ended."""
        images, seconds = self._images_after, self._seconds_after
        if seconds == 0 and self._first is not None:
            images, seconds = self._first
        return images / seconds if seconds > 0 else None

    def _add(self, images: int, seconds: float) -> None:
        self.measured += 1
        if self._first is None:
            self._first = (images, seconds)
        else:
            self._images_after += images
            self._seconds_after += seconds


class EpochLines(Callback):
    """Print a line an epoch, for logs and terminals without a progress bar."""

    SHOWN = (
        ("loss", "train/loss"),
        ("student", "val/acc/student_mean"),
        ("teacher", "val/acc/teacher_mean"),
        ("ensemble", "val/acc/ensemble"),
        ("r", "weights/rampup"),
        ("v", "weights/ensemble_decay"),
    )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch before: a module logs its epoch after the callbacks' hooks have run."""
        if trainer.current_epoch > 0 and "train/loss" in trainer.callback_metrics:
            self._print(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch."""
        self._print(trainer, trainer.current_epoch)

    @rank_zero_only
    def _print(self, trainer: Trainer, epoch: int) -> None:
        metrics = trainer.callback_metrics
        parts = [f"{label} {float(metrics[name]):.4f}" for label, name in self.SHOWN if name in metrics]
        print(f"epoch {epoch}/{trainer.max_epochs}  " + "  ".join(parts), flush=True)
