"""Set what follows a schedule before every training batch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn

from dkel_lightning.modules.optim import WarmupCosine
from dkel_lightning.schedules import Clock

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule

LARGE_REST = 0.05
"""Share of a teacher's initial weights left at the end of a run that is worth a warning."""


class WeightSchedules(Callback):
    """Set the weights of labels, ramp-up and ensemble, the EMA rate and the method's time before every training batch.

    The values are functions of the clock, so there is no state to resume. Warns of a ramp-up that the run does not
    reach, and of a teacher that follows too slowly for it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        module: DistillationModule = pl_module
        now = clock(trainer)
        if now.steps is None:
            return
        epochs = math.ceil(round(now.steps / now.steps_per_epoch, 6))  # 17 / (17 / 7) is above 7
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupCosine):
                config.scheduler.set_run_length(now.steps if config.interval == "step" else epochs)
        if not getattr(trainer, "fast_dev_run", False):
            _warn_of_ramp_up(module, epochs)
            _warn_of_slow_teacher(module, now, now.steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.set_time(clock(trainer))


def clock(trainer: Trainer) -> Clock:
    """Read the clock of a running fit."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    planned = trainer.estimated_stepping_batches
    steps = int(planned) if 0 < planned < math.inf else None
    # A stream has no epochs: its whole run counts as one.
    per_epoch: float = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else steps or 1
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    changes = [callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)]
    if changes and math.isfinite(batches) and epochs is not None and epochs > 0:
        # Lightning counts all epochs as long as the present one; here they count as their mean.
        total = sum(math.ceil(batches / changes[-1].get_accumulate_grad_batches(epoch)) for epoch in range(epochs))
        per_epoch = total / epochs
        steps = total if trainer.max_steps == -1 else min(total, trainer.max_steps)
    return Clock(trainer.current_epoch, trainer.global_step, max(1, per_epoch), steps)


def _warn_of_ramp_up(module: DistillationModule, epochs: int) -> None:
    rampup = module.method.rampup
    if rampup is not None and rampup.epochs is not None and rampup.epochs > epochs:
        rank_zero_warn(
            f"The ramp-up lasts {rampup.epochs:g} epochs and the run {epochs}, so the weight of distillation stays "
            f"below {rampup.weight(Clock(epochs)):.2g} of {rampup.scale:g}: set method.rampup.share (in Python "
            "schedules='shares') to fit it to the run."
        )


def _warn_of_slow_teacher(module: DistillationModule, now: Clock, steps: int) -> None:
    teacher = module.teacher
    # Other starts copy the student in their first updates.
    if teacher is None or teacher.settings.update != "ema" or teacher.settings.start != "keep":
        return
    points = min(steps, 500)
    at = [number * steps // points for number in range(points)]
    rates = (teacher.settings.rate(replace(now, epoch=int(step / now.steps_per_epoch), step=step)) for step in at)
    rest = math.prod(rate ** (steps / points) for rate in rates)
    if rest > LARGE_REST:
        rank_zero_warn(
            f"Over the {steps} steps of this run the teacher keeps {rest:.0%} of the weights it starts with, so it "
            "will classify badly: lower teacher.decay, set teacher.decay_share (in Python schedules='shares'), or "
            "deploy the student."
        )
