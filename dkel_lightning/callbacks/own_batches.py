"""Extra training batches for a method, around an epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dkel_lightning.callbacks.initialisation import extra_batches, forward_context, isolated_rng
from dkel_lightning.callbacks.schedules import clock
from dkel_lightning.modules.interface import Coordinator, coordinator


class MethodBatches(Callback):
    """Give the method training batches from a second loader at an epoch's start and end.

    The end is after its last batch, before its validation and its checkpoint; also at the run's last step and before a
    validation within an epoch, where these come earlier.
    """

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Needed by a method that asks for them."""
        return bool(module.method.needs.batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give(trainer, coordinator(pl_module), "start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if last or validates_after(trainer):
            self._give(trainer, coordinator(pl_module), "end")

    def _give(self, trainer: Trainer, module: Coordinator, when: str) -> None:
        count = module.method.wants_batches(when, clock(trainer))
        if count is not None:
            with isolated_rng(trainer.lightning_module, trainer.global_rank), forward_context(trainer):
                module.method.take_batches(when, module, extra_batches(trainer, module, count))


def validates_after(trainer: Trainer) -> bool:
    """Whether a validation follows this batch, as Lightning's own loop decides it."""
    batches = trainer.fit_loop._data_fetcher
    return batches is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(batches)
