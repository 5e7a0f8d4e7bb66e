"""What a method is told and given around its training batches: the time, and batches of its own."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dkel_lightning.callbacks.initialisation import drawn_batches, forward_context, own_random_numbers
from dkel_lightning.callbacks.schedules import clock
from dkel_lightning.modules.interface import Coordinator, coordinator


class MethodTime(Callback):
    """Tell the method the time before every training batch. It keeps no state, so a resume loses nothing."""

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Needed by a method that asks for it."""
        return bool(module.method.needs.time)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell it."""
        module = coordinator(pl_module)
        module.method.tell_time(clock(trainer), batch_idx, module.seed)


class MethodBatches(Callback):
    """Give the method training batches of its own at an epoch's start and end, from a loader of their own.

    The end is after its last batch, before its validation and its checkpoint; the same are given at the run's last step
    and before a validation within an epoch, where these come earlier.
    """

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Needed by a method that asks for them."""
        return bool(module.method.needs.batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give those of the start."""
        self._give(trainer, coordinator(pl_module), "start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Give those of the end."""
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if last or validates_after(trainer):
            self._give(trainer, coordinator(pl_module), "end")

    def _give(self, trainer: Trainer, module: Coordinator, when: str) -> None:
        count = module.method.wants_batches(when, clock(trainer))
        if count is not None:
            with own_random_numbers(trainer.lightning_module, trainer.global_rank), forward_context(trainer):
                module.method.take_batches(when, module, drawn_batches(trainer, module, count))


def validates_after(trainer: Trainer) -> bool:
    """Whether a validation follows this batch, as Lightning's own loop decides it."""
    batches = trainer.fit_loop._data_fetcher
    return batches is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(batches)
