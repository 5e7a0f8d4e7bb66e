"""Progress of a run: a bar on a terminal, one line per epoch, and the throughput."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from dkel_lightning.distillation import DistillationModule
from dkel_lightning.modules.batch import unpack


class Throughput(Callback):
    """Measure training images a second, all processes together, without validation.

    The first epoch, which holds warm-up and allocation, counts only where there is no other. Epochs before a resume
    count too, and so does their time.
    """

    def __init__(self) -> None:
        self._start, self._seconds_before = time.perf_counter(), 0.0
        self._epochs: list[tuple[int, float]] = []  # images, seconds
        self._images = 0
        self._epoch_start: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._start = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._epoch_start is None:
            self._epoch_start, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._images += len(unpack(pl_module.read(batch)).labels)
        if trainer.is_last_batch and self._epoch_start is not None:
            self._epochs.append((self._images * trainer.world_size, time.perf_counter() - self._epoch_start))
            self._epoch_start = None

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self._epochs, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epochs = [*state_dict["epochs"]]
        self._seconds_before = state_dict["seconds"]

    @property
    def seconds(self) -> float:
        """Wall time since the fit began, and of the processes before a resume up to the checkpoint."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def images_per_second(self) -> float | None:
        """Training images a second, None before the first epoch has ended."""
        images, seconds = map(sum, zip(*(self._epochs[1:] or self._epochs), strict=True)) if self._epochs else (0, 0.0)
        return images / seconds if seconds > 0 else None


SHOWN = (
    ("loss", "train/loss", ".4f"),
    ("student", "val/acc/student_best", ".4f"),
    ("ensemble", "val/acc/ensemble", ".4f"),
    ("teacher", "val/acc/teacher_best", ".4f"),
    ("r", "weights/rampup", ".2f"),
    ("v", "weights/ensemble_decay", ".2f"),
)
"""Label, metric and format of the values in an epoch's line. Student and teacher are the best peers in validation,
r and v the weights of the ramp-up and the ensemble."""


def epoch_figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Format the values of the last epoch by label. Synchronises with the device."""
    shown = {label: (float(metrics[name]), form) for label, name, form in SHOWN if name in metrics}
    # A diverging loss would push the rest off the line.
    return {label: f"{value:{form if abs(value) < 1e4 else '.3g'}}" for label, (value, form) in shown.items()}


def epoch_line(trainer: Trainer, *more: str) -> str:
    """Format epoch, step and the values of the last epoch."""
    figures = [f"{label} {value}" for label, value in epoch_figures(trainer.callback_metrics).items()]
    return "  ".join(
        [f"epoch {trainer.current_epoch}/{trainer.max_epochs}", f"step {trainer.global_step}", *figures, *more]
    )


class EpochLines(Callback):
    """Print one line per epoch, above the bar if there is one.

    Args:
        throughput: measures the images per second, which are omitted without it.
        bar: the progress bar, through which the lines are printed.
    """

    def __init__(self, throughput: Throughput | None = None, bar: EpochProgressBar | None = None) -> None:
        self.throughput = throughput
        self.write: Callable[[str], None] = functools.partial(print, flush=True) if bar is None else bar.print

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the previous epoch: modules log an epoch after the hooks of callbacks have run."""
        if trainer.current_epoch > 0 and "train/loss" in trainer.callback_metrics:
            self.on_train_end(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        speed = self.throughput.images_per_second if self.throughput is not None else None
        self.write(epoch_line(trainer, *([f"{speed:,.0f} images/s"] if speed else [])))


class EpochProgressBar(TQDMProgressBar):
    """Lightning's bar without metrics, so that no step synchronises with the device; `EpochLines` prints them."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Count from 1."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}")

    def get_metrics(self, *_: Any) -> dict[str, Any]:
        return {}
