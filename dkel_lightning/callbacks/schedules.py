"""Callbacks that put the schedules' values in force.

They are functions of the clock and hold no state, so a resume loses nothing. They derive from no class that a user may
take, because a model's callback replaces those of the user whose class it derives from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn

from dkel_lightning.errors import ConfigError
from dkel_lightning.modules.interface import Coordinator, coordinator
from dkel_lightning.schedules import Clock

_MUCH = 0.05
"""Share of a teacher's first weights that is worth a warning at the end of a run."""


def set_weights(module: Coordinator, now: Clock) -> None:
    """Put in force what the schedules say of this moment: ramp-up, ensemble weight and EMA rate.

    A Trainer's callbacks do it before every training batch; a loop of one's own calls this there, and `module.follow()`
    after every step of its optimizer.

    Args:
        module: a DistillationModule.
        now: where the training stands.

    Raises:
        ConfigError: a schedule is a share of the run, and `now` has no end; or the method needs a Trainer, whose
            callbacks tell it the time, give it batches or change its teacher.
    """
    method = module.method
    if method.needs.time or method.needs.batches or getattr(method.settings, "checkpoints", None):
        raise ConfigError(f"{type(method).__name__} needs a Trainer: callbacks tell it the time and give it batches.")
    put_in_force(module, now)


def put_in_force(module: Coordinator, now: Clock) -> None:
    """Do what `set_weights` does, also of a method that needs more than schedules."""
    for schedule in (RampUpSchedule, EnsembleDecaySchedule, EMARateSchedule):
        if schedule.needed_by(module):
            schedule.put_in_force(module, now)


def clock(trainer: Trainer) -> Clock:
    """Read the clock of a running fit."""
    batches = trainer.num_training_batches
    planned = _planned(trainer)
    # A stream has no epochs: its whole run counts as one.
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else planned or 1
    return Clock(
        epoch=trainer.current_epoch, step=trainer.global_step, steps_per_epoch=max(1, per_epoch), steps=planned
    )


def _planned(trainer: Trainer) -> int | None:
    """Count the optimizer steps of the whole run; None where it has no planned end."""
    steps, batches, epochs = trainer.estimated_stepping_batches, trainer.num_training_batches, trainer.max_epochs
    if not math.isfinite(steps) or steps <= 0:
        return None
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    changes = [each for each in callbacks if isinstance(each, GradientAccumulationScheduler)]
    if changes and math.isfinite(batches) and epochs is not None and epochs != -1:
        # Lightning counts all epochs as long as the present one.
        steps = sum(math.ceil(batches / changes[-1].get_accumulate_grad_batches(epoch)) for epoch in range(epochs))
        steps = min(steps, trainer.max_steps) if trainer.max_steps != -1 else steps
    return int(steps)


class _Schedule(Callback, ABC):
    """Puts what it says of the moment in force before every training batch."""

    @staticmethod
    @abstractmethod
    def put_in_force(module: Coordinator, now: Clock) -> None:
        """Put in force what holds at this moment."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put in force what holds now."""
        self.put_in_force(coordinator(pl_module), clock(trainer))


class RampUpSchedule(_Schedule):
    """Set the method's ramp-up weight r before every training batch, and warn of one that the run does not reach."""

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Needed by a method with a ramp-up."""
        return module.method.rampup is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the ramp-up with the length of the run."""
        rampup = coordinator(pl_module).method.rampup
        assert rampup is not None
        now = clock(trainer)
        if _tries(trainer) or now.steps is None or rampup.epochs is None:
            return
        epochs = math.ceil(now.steps / now.steps_per_epoch)
        if rampup.epochs > epochs:
            rank_zero_warn(
                f"The ramp-up lasts {rampup.epochs:g} epochs and the run {epochs}, so the weight of distillation stays "
                f"below {rampup.weight(Clock(epochs)):.2g} of {rampup.scale:g}: set method.rampup.share (in Python "
                "schedules='shares') to fit it to the run."
            )

    @staticmethod
    def put_in_force(module: Coordinator, now: Clock) -> None:
        """Put r of this moment in force."""
        module.method.rampup_weight.fill_(module.method.rampup.weight(now))


class EnsembleDecaySchedule(_Schedule):
    """Set the ensemble's decaying weight v before every training batch."""

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Needed by a method with a decaying ensemble."""
        return module.method.ensemble is not None

    @staticmethod
    def put_in_force(module: Coordinator, now: Clock) -> None:
        """Put v of this moment in force."""
        assert module.ensemble is not None
        module.ensemble.weight.fill_(module.method.ensemble.weight(now))


class EMARateSchedule(_Schedule):
    """Set the teacher's EMA rate before every training batch, and warn of a teacher too slow for the run."""

    @staticmethod
    def needed_by(module: Coordinator) -> bool:
        """Needed where a teacher follows its student."""
        return module.teacher is not None and module.teacher.settings.update == "ema"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell how much of the teacher's first weights is left at the end of the run."""
        teacher = coordinator(pl_module).teacher
        assert teacher is not None
        now = clock(trainer)
        # Where the first updates copy the student, nothing is left of them.
        if _tries(trainer) or now.steps is None or teacher.settings.start != "keep":
            return
        points = min(now.steps, 500)
        times = (
            replace(now, epoch=step // now.steps_per_epoch, step=step)
            for step in (number * now.steps // points for number in range(points))
        )
        left = math.prod(teacher.settings.rate(time) ** (now.steps / points) for time in times)
        if left > _MUCH:
            rank_zero_warn(
                f"Over the {now.steps} steps of this run the teacher keeps {left:.0%} of the weights it starts with, "
                "so it will classify badly: lower teacher.decay, set teacher.decay_share (in Python "
                "schedules='shares'), or deploy the student."
            )

    @staticmethod
    def put_in_force(module: Coordinator, now: Clock) -> None:
        """Put the rate of this moment in force."""
        assert module.teacher is not None
        module.teacher.set_rate(module.teacher.settings.rate(now))


def _tries(trainer: Trainer) -> bool:
    """Whether the run is but a trial of the code, whose length says nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))
