"""Callbacks that put the schedules' values in force.

They are functions of the clock and hold no state, so a resume loses nothing. Each derives from Lightning's Callback
by a class of its own, because a model's callback replaces those of the user whose class it derives from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dkel_lightning.schedules import Clock

if TYPE_CHECKING:
    from dkel_lightning.modules.distillation import DistillationModule


def clock(trainer: Trainer) -> Clock:
    """Read the clock of a running fit."""
    steps = trainer.estimated_stepping_batches
    batches = trainer.num_training_batches
    accumulated = trainer.accumulate_grad_batches
    planned = int(steps) if math.isfinite(steps) and steps > 0 else None
    # A stream has no epochs: its whole run counts as one.
    per_epoch = math.ceil(batches / accumulated) if math.isfinite(batches) else planned or 1
    return Clock(
        epoch=trainer.current_epoch, step=trainer.global_step, steps_per_epoch=max(1, per_epoch), steps=planned
    )


class RampUpSchedule(Callback):
    """Set the method's ramp-up weight r before every training batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put r in force."""
        module = _distillation(pl_module)
        assert module.method.rampup is not None
        module.method.rampup_weight.fill_(module.method.rampup.weight(clock(trainer)))


class EnsembleDecaySchedule(Callback):
    """Set the ensemble's decaying weight v before every training batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put v in force."""
        module = _distillation(pl_module)
        assert module.method.ensemble is not None
        assert module.ensemble is not None
        module.ensemble.weight.fill_(module.method.ensemble.weight(clock(trainer)))


class EMARateSchedule(Callback):
    """Set the teacher's EMA rate before every training batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the rate in force."""
        teacher = _distillation(pl_module).teacher
        assert teacher is not None
        teacher.set_rate(teacher.settings.rate(clock(trainer)))


def _distillation(module: LightningModule) -> DistillationModule:
    from dkel_lightning.modules.distillation import DistillationModule

    assert isinstance(module, DistillationModule)
    return module
