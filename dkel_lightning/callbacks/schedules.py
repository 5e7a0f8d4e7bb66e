"""Set what follows a schedule before every training batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn

from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.interface import Coordinator, coordinator
from dkel_lightning.modules.optim import WarmupCosine
from dkel_lightning.schedules import Clock, at_time, time_of

LARGE_REST = 0.05
"""Share of a teacher's initial weights left at the end of a run that is worth a warning."""


class WeightSchedules(Callback):
    """Set the weights of labels, ramp-up and ensemble, the EMA rate and the method's time before every training batch.

    The values are functions of the clock, so there is no state to resume. Warns of a ramp-up that the run does not
    reach, and of a teacher that follows too slowly for it.
    """

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Needed by every module: what its method does not schedule is left alone."""
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, now = coordinator(pl_module), clock(trainer)
        for schedule in [config.scheduler for config in trainer.lr_scheduler_configs]:
            if isinstance(schedule, WarmupCosine) and now.steps is not None:
                schedule.set_run_length(now.steps)
        if now.steps is not None and not getattr(trainer, "fast_dev_run", False):
            _warn_of_ramp_up(module, now, now.steps)
            _warn_of_slow_teacher(module, now, now.steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module, now = coordinator(pl_module), clock(trainer)
        _set_weights(module, now)
        if module.method.needs.time:
            module.method.set_time(now, batch_idx, module.seed)


def set_weights(module: Coordinator, now: Clock) -> None:
    """Set the weights of labels, ramp-up and ensemble, and the EMA rate, to their values at `now`.

    For a training loop of your own: call it before every batch, and `module.follow()` after every optimizer step. A
    schedule given as a share of the run needs `now.steps`.
    """
    method = module.method
    if method.needs.time or method.needs.batches or getattr(method.settings, "checkpoints", None):
        raise ConfigError(f"{type(method).__name__} needs a Trainer: callbacks tell it the time and give it batches.")
    _set_weights(module, now)


def _set_weights(module: Coordinator, now: Clock) -> None:
    labels = module.method.labels
    if isinstance(labels, Mapping):
        module.method.labels_weight.fill_(at_time(labels, time_of(labels, now, "method.labels")))
    if module.method.rampup is not None:
        module.method.rampup_weight.fill_(module.method.rampup.weight(now))
    if module.method.ensemble is not None:
        assert module.ensemble is not None
        module.ensemble.weight.fill_(module.method.ensemble.weight(now))
    if module.teacher is not None and module.teacher.settings.update == "ema":
        module.teacher.set_rate(module.teacher.settings.rate(now))


def clock(trainer: Trainer) -> Clock:
    """Read the clock of a running fit."""
    batches, steps = trainer.num_training_batches, _planned_steps(trainer)
    # A stream has no epochs: its whole run counts as one.
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else steps or 1
    return Clock(trainer.current_epoch, trainer.global_step, max(1, per_epoch), steps)


def _planned_steps(trainer: Trainer) -> int | None:
    """Count the optimizer steps of the whole run; None where it has no planned end."""
    steps, batches, epochs = trainer.estimated_stepping_batches, trainer.num_training_batches, trainer.max_epochs
    if not math.isfinite(steps) or steps <= 0:
        return None
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    changes = [callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)]
    if changes and math.isfinite(batches) and epochs is not None and epochs != -1:
        # Lightning counts all epochs as long as the present one.
        steps = sum(math.ceil(batches / changes[-1].get_accumulate_grad_batches(epoch)) for epoch in range(epochs))
        steps = min(steps, trainer.max_steps) if trainer.max_steps != -1 else steps
    return int(steps)


def _warn_of_ramp_up(module: Coordinator, now: Clock, steps: int) -> None:
    rampup, epochs = module.method.rampup, math.ceil(steps / now.steps_per_epoch)
    if rampup is not None and rampup.epochs is not None and rampup.epochs > epochs:
        rank_zero_warn(
            f"The ramp-up lasts {rampup.epochs:g} epochs and the run {epochs}, so the weight of distillation stays "
            f"below {rampup.weight(Clock(epochs)):.2g} of {rampup.scale:g}: set method.rampup.share (in Python "
            "schedules='shares') to fit it to the run."
        )


def _warn_of_slow_teacher(module: Coordinator, now: Clock, steps: int) -> None:
    teacher = module.teacher
    # Other starts copy the student in their first updates.
    if teacher is None or teacher.settings.update != "ema" or teacher.settings.start != "keep":
        return
    points = min(steps, 500)
    at = [number * steps // points for number in range(points)]
    rates = (teacher.settings.rate(replace(now, epoch=step // now.steps_per_epoch, step=step)) for step in at)
    rest = math.prod(rate ** (steps / points) for rate in rates)
    if rest > LARGE_REST:
        rank_zero_warn(
            f"Over the {steps} steps of this run the teacher keeps {rest:.0%} of the weights it starts with, so it "
            "will classify badly: lower teacher.decay, set teacher.decay_share (in Python schedules='shares'), or "
            "deploy the student."
        )
