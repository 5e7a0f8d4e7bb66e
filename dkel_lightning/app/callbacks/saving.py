"""Write `best.ckpt` and `last.ckpt`, and handle signals."""

from __future__ import annotations

import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dkel_lightning.app.loggers import MetricsFile
from dkel_lightning.checkpoints.file_format import is_whole
from dkel_lightning.errors import Interrupted
from dkel_lightning.runtime.processes import print_once


class BestCheckpoint(ModelCheckpoint):
    """Keep the latest epoch whose accuracy is at most one standard error below the highest so far.

    On few validation images the highest accuracy is mostly luck, and later epochs are usually better. The standard
    error is sqrt(p (1 - p) / n), of the highest accuracy p on n images (the one-standard-error rule, Breiman et al.,
    Classification and Regression Trees, 1984, section 3.4.3).

    Epochs without a validation are skipped; Lightning's score is then that of an earlier epoch.

    Args:
        images: number of validation images, or None to keep the best epoch, the latest in a tie.
    """

    def __init__(self, *args: Any, images: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.images = images
        self.highest = -math.inf  # of the negated metric where lower is better
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validated:
            super().on_train_epoch_end(trainer, pl_module)
        self._validated = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, also if the run's folder was moved, unless best.ckpt is missing or damaged."""
        path = str(Path(str(self.dirpath)) / "best.ckpt")
        score = state_dict["best_model_score"]
        if score is not None and not is_whole(Path(path)):
            print_once(f"{path} is missing or damaged: the best of the remaining epochs replaces it.")
            gone = {"best_model_path": "", "best_model_score": None, "kth_best_model_path": "", "kth_value": None}
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": {}, "highest": -math.inf, **gone}
        elif score is not None:
            places = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
            state_dict = {**state_dict, **places, "best_k_models": {path: score}}
        super().load_state_dict(state_dict)
        self.current_score, self.highest = state_dict["current_score"], state_dict["highest"]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "highest": self.highest}

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        if current is None:
            return False
        score = float(current) if self.mode == "max" else -float(current)
        self.highest = max(self.highest, score)
        error = math.sqrt(max(self.highest * (1 - self.highest), 0.0) / self.images) if self.images else 0.0
        keep = not self.best_k_models or score >= self.highest - error
        return bool(trainer.strategy.reduce_boolean_decision(keep))


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but a run that was stopped early stays stopped when it is resumed."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class SettingsHash(Callback):
    """Store a hash of the run's settings in every checkpoint, to detect edits of config.yaml on a resume."""

    def __init__(self, settings_hash: str) -> None:
        self.hash = settings_hash

    def state_dict(self) -> dict[str, Any]:
        return {"hash": self.hash}


class MetricsRow(Checkpoint):
    """Write the epoch's row of metrics.csv before the epoch's checkpoints; must come before them in the list.

    Lightning writes it after them: a run killed in between would resume after the epoch and lack its row. In this order
    the row is dropped on a resume and written again.
    """

    def __init__(self, rows: MetricsFile) -> None:
        self.rows = rows
        self._before: dict[str, Any] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = dict(trainer.logged_metrics)  # Lightning keeps showing values of earlier epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.logged_metrics
        row = {name: float(value) for name, value in logged.items() if self._before.get(name) is not value}
        self.rows.log_metrics({"epoch": float(trainer.current_epoch), **row}, trainer.global_step - 1)
        self.rows.save()


class LastCheckpoint(Checkpoint):
    """Save the current state every n epochs, at the end of the run, and optionally every n steps.

    Within an epoch it saves only between two optimizer steps, since checkpoints do not hold accumulated gradients, and
    never after the last batch.

    Args:
        path: the file, replaced each time.
        every_n_epochs: epochs between two checkpoints.
        every_n_steps: optimizer steps between two checkpoints within an epoch, or None.

    Attributes:
        requested: whether to save at the end of this epoch in any case.
    """

    def __init__(self, path: str | Path, every_n_epochs: int = 1, every_n_steps: int | None = None) -> None:
        self.path = Path(path)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.requested = False
        self._step_before = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps
        if every is not None and self.between_steps(trainer) and trainer.global_step % every == 0:
            self.save(trainer)

    def between_steps(self, trainer: Trainer) -> bool:
        """Return whether the training can be resumed exactly after this batch.

        Loaders without a `state_dict`, such as torch's, cannot resume within an epoch.
        """
        if trainer.global_step == self._step_before or trainer.is_last_batch:
            return False
        return all(hasattr(loader, "state_dict") for loader in tree_leaves(trainer.train_dataloader))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        ends = trainer.should_stop or done == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        if ends or self.requested or done % self.every_n_epochs == 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint; all processes must call this."""
        trainer.save_checkpoint(self.path, weights_only=False)


class SaveOnSignal(Callback):
    """Save a checkpoint and stop on Ctrl-C, SIGTERM and SIGUSR1 (which SLURM sends before it preempts).

    The training stops between two optimizer steps, or at the end of the epoch if the signal arrives in validation. A
    second Ctrl-C stops at once without a checkpoint. The signal may reach only one of several processes, so they
    communicate every `every_n_batches` batches.

    Args:
        last: writes the checkpoint.
        every_n_batches: batches between two communications.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()))

    def __init__(self, last: LastCheckpoint, every_n_batches: int = 10) -> None:
        self.last = last
        self.every_n_batches = every_n_batches
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which may stop within accumulated gradients."""
        self.received, self._batches = None, 0
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            self._handlers = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        waits = trainer.world_size > 1 and self._batches < self.every_n_batches
        if waits or not self.last.between_steps(trainer):
            return
        self._batches = 0
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            self.last.save(trainer)
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last.requested = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last.requested:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers; if a signal was received, leave the test to the resumed run."""
        self._restore_handlers()
        if self.last.requested:
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _stop(self, trainer: Trainer) -> None:
        raise Interrupted(self.received or signal.SIGTERM, self.last.path, trainer.global_step)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._handlers = {}
