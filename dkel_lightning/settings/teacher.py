"""How a teacher is drawn, initialised and updated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import (
    Clock,
    at_time,
    ema_rate,
    exactly_one,
    length_in_batches,
    non_negative,
    one_of,
    time_of,
)

START_RULES = ("keep", "mean_teacher", "copy")


@dataclass(frozen=True)
class TeacherSettings:
    """How a teacher is drawn, initialised and updated.

    Attributes:
        draw: `independent`, a second random initialisation, or `student`, a copy.
        start: rule of the first updates: `keep` (constant rate: its own start fades slowly), `mean_teacher`, or
            `copy` (the first update makes it its student: the released behaviour).
        init_steps: mini-batches of plain SGD before training starts, or epochs of them as in `3epochs`.
        init_lr_scale: their learning rate as a share of the run's.
        init_weight_decay: their weight decay.
        decay: EMA rate a, or a schedule `{from epoch: rate}`, `{from share of the run: rate}` if all lie below 1;
            None when `decay_share` is given.
        decay_share: the time constant 1 / (1 - a) as a share of the run, or `{from share: time constant}`.
        batchnorm: running statistics are its `own`, a `copy` of the student's, or their `ema`.
        update: `ema`; `gradient` (it learns from the labels itself, and never from the student); `frozen`.
        backbone: network of a teacher of its own with one peer, for methods with a `foreign_teacher`: a registered
            name, `torchvision:NAME` or `timm:NAME`; None for the student's.
        weights: file of its first weights, see `assembly.teacher_weights.load_teacher`; they replace draw and
            initialisation.
    """

    draw: str = "independent"
    start: str = "keep"
    init_steps: int | str = 2
    init_lr_scale: float = 0.01
    init_weight_decay: float = 5e-4
    decay: float | Mapping[float, float] | None = 0.999
    decay_share: float | Mapping[float, float] | None = None
    batchnorm: str = "own"
    update: str = "ema"
    backbone: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        one_of("teacher.draw", self.draw, ("independent", "student"))
        one_of("teacher.start", self.start, START_RULES)
        one_of("teacher.batchnorm", self.batchnorm, ("own", "copy", "ema"))
        one_of("teacher.update", self.update, ("ema", "gradient", "frozen"))
        exactly_one("teacher", decay=self.decay, decay_share=self.decay_share)
        self.batches_of_initialisation(1)
        non_negative("teacher.init_lr_scale", self.init_lr_scale)
        non_negative("teacher.init_weight_decay", self.init_weight_decay)
        for key, values in (("decay", self.decay), ("decay_share", self.decay_share)):
            if isinstance(values, Mapping) and not values:
                raise ConfigError(f"teacher.{key} is a schedule without entries: give {{0: value}} at least.")
            if isinstance(values, Mapping) and 0 not in values:
                raise ConfigError(
                    f"teacher.{key} is a schedule that starts at {min(values)}: say what holds from 0 on."
                )
        for rate in values_of(self.decay):
            if not 0 <= rate <= 1:
                raise ConfigError(f"teacher.decay is a rate between 0 and 1, got {rate}.")
        for share in values_of(self.decay_share):
            if not share > 0:
                raise ConfigError(f"teacher.decay_share must be a positive share of the run, got {share}.")

    def rate(self, clock: Clock) -> float:
        """Give the EMA rate a at this moment, before the start rule."""
        if self.decay_share is not None:
            share = at_time(self.decay_share, clock.step / clock.steps if clock.steps else 0.0)
            return ema_rate(clock.share_in_steps(share, "teacher.decay_share"))
        assert self.decay is not None
        return at_time(self.decay, time_of(self.decay, clock, "teacher.decay"))

    def batches_of_initialisation(self, batches_per_epoch: float) -> int:
        """Give the length of the initialisation in mini-batches."""
        return length_in_batches(self.init_steps, batches_per_epoch, "teacher.init_steps")


def values_of(setting: float | Mapping[float, float] | None) -> list[float]:
    """List the values of a number or schedule; none of None."""
    if setting is None:
        return []
    return list(setting.values()) if isinstance(setting, Mapping) else [setting]
