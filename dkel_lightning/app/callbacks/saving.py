"""The two checkpoints of a run, `best.ckpt` and `last.ckpt`, and the signals that ask for one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dkel_lightning.app.loggers.metrics_file import MetricsFile
from dkel_lightning.checkpoints.archive import is_whole
from dkel_lightning.errors import Interrupted
from dkel_lightning.runtime.atomic_files import text_of
from dkel_lightning.runtime.processes import any_process, print_once

Handler = Callable[[int, FrameType | None], Any] | int | None


class BestCheckpoint(ModelCheckpoint):
    """Keep the best epoch, and of equally good ones the latest: a small validation set has many ties.

    An epoch without a validation is no candidate; the score that Lightning still shows belongs to another one.
    """

    _validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has a score of its own."""
        self._validated = not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this epoch with the best one, if it was validated."""
        if self._validated:
            super().on_train_epoch_end(trainer, pl_module)
        self._validated = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score also where the folder of the run has been moved: Lightning would forget it.

        Not where best.ckpt is missing or torn: nothing could be tested in the end that no later epoch beats.
        """
        path = str(Path(str(self.dirpath)) / "best.ckpt")
        score = state_dict["best_model_score"]
        if score is not None and not is_whole(Path(path)):
            what = "torn" if Path(path).is_file() else "missing"
            print_once(f"{path} is {what}: the best of the epochs to come replaces it.")
            gone = {"best_model_path": "", "best_model_score": None, "kth_best_model_path": "", "kth_value": None}
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": {}, **gone}
        elif score is not None:
            places = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
            state_dict = {**state_dict, **places, "best_k_models": {path: score}}
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Tell whether this epoch replaces the best one."""
        tied = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        return tied or super().check_monitor_top_k(trainer, current)


class SettingsKept(Callback):
    """Keep the text of config.yaml in every checkpoint: a resume can then tell what was edited in the file since.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the file, which this run has written or begun with; only the first process writes checkpoints."""
        if trainer.is_global_zero:
            self.text = text_of(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the text."""
        return {"text": self.text}


class RowBeforeCheckpoint(Checkpoint):
    """Write the epoch's row of metrics.csv before the epoch's checkpoints.

    Lightning writes it after them. A run that is killed in between would go on after the epoch and lack its row; the
    other way round the row is dropped on resume and made again. Must come before the checkpoints in the list.

    Args:
        rows: the logger that keeps the file.
    """

    def __init__(self, rows: MetricsFile) -> None:
        self.rows = rows
        self._before: dict[str, Any] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what was logged so far: Lightning keeps showing values of earlier epochs."""
        self._before = dict(trainer.logged_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what this epoch has logged."""
        logged = trainer.logged_metrics
        row = {name: float(value) for name, value in logged.items() if self._before.get(name) is not value}
        self.rows.log_metrics({"epoch": float(trainer.current_epoch), **row}, trainer.global_step - 1)
        self.rows.save()


class LastCheckpoint(Checkpoint):
    """Keep the newest state: every n epochs, the one with which the run ends, and every n steps where asked.

    Within an epoch it saves only between two optimizer steps, never amid accumulated gradients, which no checkpoint
    holds; and never after the last batch, whose epoch ends with a checkpoint anyway.

    Args:
        path: the file, replaced each time.
        every_n_epochs: epochs between two of them.
        every_n_steps: optimizer steps between two of them within an epoch; None for none.

    Attributes:
        asked: whether the end of this epoch must be saved in any case.
    """

    def __init__(self, path: str | Path, every_n_epochs: int = 1, every_n_steps: int | None = None) -> None:
        self.path = Path(path)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.asked = False
        self._step_before = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the step, to see whether this batch completes another one."""
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write if it is time."""
        every = self.every_n_steps
        if every is not None and self.at_border(trainer) and trainer.global_step % every == 0:
            self.save(trainer)

    def at_border(self, trainer: Trainer) -> bool:
        """Tell whether a training can be interrupted after this batch and go on as if it had not been.

        Loaders without a `state_dict`, torch's own among them, cannot go on within an epoch.
        """
        if trainer.global_step == self._step_before or trainer.is_last_batch:
            return False
        return all(hasattr(loader, "state_dict") for loader in tree_leaves(trainer.train_dataloader))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write if it is time."""
        done = trainer.current_epoch + 1
        ends = trainer.should_stop or done == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        if ends or self.asked or done % self.every_n_epochs == 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint; all processes must call this."""
        trainer.save_checkpoint(self.path, weights_only=False)


class SaveOnSignal(Callback):
    """Save and end the training on SIGINT (Ctrl-C), SIGTERM or SIGUSR1 (which SLURM sends before it preempts).

    The signal is honoured between two optimizer steps; in validation, at the end of the epoch. Several processes agree
    every `every_n_batches` batches, since the signal may reach only one of them.

    Args:
        last: writes the checkpoint.
        every_n_batches: batches between two agreements of several processes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))

    def __init__(self, last: LastCheckpoint, every_n_batches: int = 10) -> None:
        self.last = last
        self.every_n_batches = every_n_batches
        self.received: int | None = None
        self._before: dict[int, Handler] = {}
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's own handlers stop amid accumulated gradients.
        self.received, self._batches = None, 0
        self._before = install_handlers(self._receive)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if not self.last.at_border(trainer) or (trainer.world_size > 1 and self._batches < self.every_n_batches):
            return
        self._batches = 0
        if self._asked(pl_module):
            self.last.save(trainer)
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last.asked = self._asked(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last.asked:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here too: what comes after the training is left to the resumed run."""
        restore_handlers(self._before)
        if self.last.asked:
            self._stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        restore_handlers(self._before)

    def _asked(self, module: LightningModule) -> bool:
        return any_process(self.received is not None, module.device)

    def _stop(self, trainer: Trainer) -> None:
        raise Interrupted(self.received or signal.SIGTERM, self.last.path, trainer.global_step)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number


def install_handlers(handler: Callable[[int, FrameType | None], None]) -> dict[int, Handler]:
    """Handle the signals of `SaveOnSignal`, and return the handlers before; nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in SaveOnSignal.SIGNALS}


def restore_handlers(handlers: Mapping[int, Handler]) -> None:
    """Install what `install_handlers` has returned."""
    for number, handler in handlers.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Interrupted` on the signals of `SaveOnSignal` outside of the training, where nothing has to be saved."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, None, None)

    before = install_handlers(end)
    try:
        yield
    finally:
        restore_handlers(before)
