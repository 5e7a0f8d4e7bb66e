"""Training batches for a method before and after an epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer

from dkel_lightning.callbacks.initialisation import extra_batches, forward_context, isolated_rng
from dkel_lightning.callbacks.schedules import clock

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule


class MethodBatches(Callback):
    """Call `on_epoch_start` and `on_epoch_end` of the method, which may draw training batches from a second loader.

    `on_epoch_end` comes after the last batch, before the validation and the checkpoint; also at the last step of the
    run and before a validation within an epoch.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # Lightning leaves out `on_train_epoch_start` after a checkpoint of the epoch's last batch
            self._call(trainer, pl_module, pl_module.method.on_epoch_start)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if last or validates_after(trainer):
            self._call(trainer, pl_module, pl_module.method.on_epoch_end)

    def _call(self, trainer: Trainer, module: DistillationModule, hook: Callable[..., None]) -> None:
        with isolated_rng(module, trainer.global_rank), forward_context(trainer):
            hook(module.student, module.teacher, clock(trainer), partial(extra_batches, trainer, module))


def validates_after(trainer: Trainer) -> bool:
    """Whether a validation follows this batch, as Lightning's own loop decides it."""
    batches = trainer.fit_loop._data_fetcher
    return batches is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(batches)
