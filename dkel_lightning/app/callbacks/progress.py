"""What a run shows while it goes: two live lines on a terminal, a line an epoch elsewhere; and its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

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


SHOWN = (
    ("loss", "train/loss", ".4f"),
    ("student", "val/acc/student_best", ".4f"),
    ("ensemble", "val/acc/ensemble", ".4f"),
    ("teacher", "val/acc/teacher_best", ".4f"),
    ("r", "weights/rampup", ".2f"),
    ("v", "weights/ensemble_decay", ".2f"),
)
"""What is shown of an epoch: label, metric, form. Of student and teacher the best peer, as validation sees it; r and v
are the two weights in force. All of it fits into 80 columns."""


def epoch_figures(metrics: Mapping[str, Any]) -> str:
    """Write the figures of the last epoch; empty before there are any. Reads them from the device."""
    found = {label: (float(metrics[name]), form) for label, name, form in SHOWN if name in metrics}
    # A loss that runs away would push the rest out of sight.
    return "  ".join(f"{label} {value:{form if abs(value) < 1e4 else '.3g'}}" for label, (value, form) in found.items())


class EpochLines(Callback):
    """Print a line an epoch, for logs and terminals without a progress bar.

    Args:
        throughput: knows the images a second; left out without.
    """

    def __init__(self, throughput: Throughput | None = None) -> None:
        self.throughput = throughput

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch before: a module logs its epoch after the callbacks' hooks have run."""
        if trainer.current_epoch > 0 and "train/loss" in trainer.callback_metrics:
            self._print(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch."""
        self._print(trainer, trainer.current_epoch)

    @rank_zero_only
    def _print(self, trainer: Trainer, epoch: int) -> None:
        parts = [f"epoch {epoch}/{trainer.max_epochs}", f"step {trainer.global_step}"]
        parts.append(epoch_figures(trainer.callback_metrics))
        speed = self.throughput.images_per_second if self.throughput is not None else None
        if speed:
            parts.append(f"{speed:,.0f} images/s")
        print("  ".join(part for part in parts if part), flush=True)


class LiveProgressBar(ProgressBar):
    """Show on a terminal where the run is, and below it the figures of the last epoch, in two lines that stay in place.

    A step reads nothing from the device for it; an epoch does once.
    """

    REFRESHES = 4
    """A second."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console
        self._enabled = True
        self._live: Live | None = None
        self._figures = ""
        self._began = self._epoch_began = 0.0
        self._steps_before = self._images = 0

    def enable(self) -> None:
        """Show something from the next fit on."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; so in all processes but the first."""
        self._enabled = False
        self._stop()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to show."""
        if not self._enabled:
            return
        self._began, self._steps_before = time.perf_counter(), trainer.global_step
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("step {task.fields[step]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[left]}"),
            expand=True,
        )
        self._task = self._bar.add_task("", total=None, epoch="", step=trainer.global_step, speed="", left="")
        self._live = Live(
            get_renderable=self._shown,
            console=self._console,
            refresh_per_second=self.REFRESHES,
            transient=True,  # the run's closing table says more than its last state
        )
        self._live.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the next epoch, with the figures of the one before."""
        if self._live is None:
            return
        self._figures = epoch_figures(trainer.callback_metrics)
        self._epoch_began, self._images = time.perf_counter(), 0
        batches = trainer.num_training_batches
        of = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        self._bar.update(
            self._task,
            completed=0,
            total=batches if math.isfinite(batches) else None,
            epoch=f"{trainer.current_epoch + 1}{of}",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show another step."""
        if self._live is None:
            return
        self._images += len(unpack(batch).labels) * trainer.world_size
        speed = self._images / max(1e-9, time.perf_counter() - self._epoch_began)
        self._bar.update(
            self._task,
            completed=batch_idx + 1,
            step=trainer.global_step,
            speed=f"{speed:,.0f} images/s",
            left=self._left(trainer),
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that it validates."""
        if self._live is not None:
            self._bar.update(self._task, speed="validating")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it away, and leave the last epoch's figures."""
        if self._live is not None:
            self._stop()
            figures = epoch_figures(trainer.callback_metrics)
            (self._console or get_console()).print(f"epoch {trainer.current_epoch}/{trainer.max_epochs}  {figures}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _shown(self) -> Group:
        return Group(self._bar, Text(self._figures, overflow="ellipsis", no_wrap=True))

    def _left(self, trainer: Trainer) -> str:
        planned = trainer.estimated_stepping_batches
        done = trainer.global_step - self._steps_before
        if done < 1 or not math.isfinite(planned) or planned < 1:
            return ""
        seconds = (time.perf_counter() - self._began) / done * max(0, planned - trainer.global_step)
        return f"{timedelta(seconds=round(seconds))} left"
