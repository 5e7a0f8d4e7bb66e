"""Weights and rates as pure functions of training time. Imports no torch.

Time is a `Clock`: the whole epoch, the fractional epoch and the length of the run. A length given in epochs is
read on whole epochs, as the family's reference code does; one given as a share of the run is read on the
fractional epoch, because on whole epochs a short run would lose a fast decay at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dkel_lightning.errors import ConfigError

FEW_STEPS = 3
"""The shortest time constant that a share of the run means; less would end a schedule with the first step."""


@dataclass(frozen=True)
class Clock:
    """The progress of a run in epochs and optimizer steps.

    Attributes:
        epoch: the epoch, from 0.
        step: optimizer steps done.
        steps_per_epoch: optimizer steps in an epoch, or their mean.
        steps: optimizer steps in the whole run; None when it has no planned end.
    """

    epoch: int
    step: int = 0
    steps_per_epoch: float = 1
    steps: int | None = None

    @property
    def fraction(self) -> float:
        return self.step / self.steps_per_epoch

    def share_in_steps(self, share: float, key: str) -> float:
        """Turn a share of the run into optimizer steps; `key` names it in an error."""
        if self.steps is None:
            raise ConfigError(
                f"{key} is a share of the run, but the run has no end: set max_epochs or max_steps (max_steps where "
                "the training loader has no length)."
            )
        return share * self.steps

    def time_constant(self, share: float, key: str) -> float:
        """Turn a share of the run into optimizer steps, at least `FEW_STEPS` of them."""
        return max(self.share_in_steps(share, key), FEW_STEPS)

    def share_in_epochs(self, share: float, key: str) -> float:
        return self.share_in_steps(share, key) / self.steps_per_epoch


def ensemble_weight(epoch: float, decay: float, cutoff: float = 0.01) -> float:
    """Weigh the assembled teachers: `v(e) = exp(-k e)`, and 0 once it is at or below `cutoff`.

    Source: DKEL, released code.
    """
    weight = math.exp(-decay * epoch)
    return weight if weight > cutoff else 0.0


def rampup(epoch: float, scale: float, length: float) -> float:
    """Ramp up to `scale`: `lambda exp(-5 (1 - min(e, a) / a)^2)`.

    Source: Laine & Aila 2017; Mean Teacher; the form that ONE, OKDDip and PCL describe.
    """
    if length <= 0:
        return scale
    return scale * math.exp(-5.0 * (1.0 - min(epoch, length) / length) ** 2)


def rampup_released(epoch: float, scale: float, length: float) -> float:
    """Ramp up as the released code of PCL and DKEL does: it divides by lambda, not by the length.

    `lambda exp(-5 (1 - e / lambda)^2)` up to and including epoch `length`, then `lambda`: next to nothing during
    the ramp-up, then a jump.
    """
    if epoch > length:
        return scale
    if scale == 0:
        return 0.0
    distance = 1.0 - epoch / scale
    exponent = -5.0 * (distance * distance)  # a power would overflow for a tiny lambda
    return scale * math.exp(exponent) if exponent > -745.0 else 0.0


RAMPUP_FORMS = {"correct": rampup, "released": rampup_released}


TEACHER_WEIGHTS = ("complement", "decay", "ramp", "constant")


def teacher_weights(rule: str, v: Any, r: Any, g: Any, scale: float) -> tuple[Any, Any]:
    """Return (G, H), the weights of DKEL's assembled and individual teachers; v, r and g are floats or tensors.

    `complement` is DKEL's: G = g v, H = r (1 - v). `decay`: only the assembled teachers. `ramp`: only the individual
    ones, as in PCL. `constant`: the individual ones at lambda throughout.
    """
    if rule == "complement":
        return g * v, r * (1 - v)
    if rule == "decay":
        return g * v, 0.0
    return 0.0, r if rule == "ramp" else scale


SWAPS = ("uniform", "linear", "review")
"""Schedules of the chance of the student's own block (IAKD)."""


def swap_rate(schedule: str, time: float, length: float | None, start: float, period: float) -> float:
    """Return q, the probability of the student's own block (IAKD). Time, length and period are of one unit.

    `uniform`: `start`. `linear`: from `start` to 1 at half the length. `review`: `start + (1 - start) (t mod P) / P`.

    Source: IAKD has the names; the shapes are our reading.
    """
    if schedule == "uniform":
        return start
    if schedule == "review":
        return start + (1 - start) * (time % period) / period
    if length is None:
        raise ConfigError("method.schedule=linear needs the end of the run: set max_epochs or max_steps.")
    return min(1.0, start + (1 - start) * time / (length / 2))


CONSISTENCY_RAMPS = ("linear", "cosine", "cycle", "step")


def consistency_ramp(form: str, epoch: int, epochs: float, start: float = 0.0) -> float:
    """Return the share of c_max in an epoch, counted from 0: 0 in epoch 0, 1 in the last, with x = (e + 1) / epochs.

    `linear` is x, `cosine` sin(pi x / 2), `cycle` a quarter of a circle, `step` 1 from the epoch `start` on.

    Source: SoTeacher, released code.
    """
    if epoch == 0:
        return 0.0
    share = min((epoch + 1) / epochs, 1.0)
    if form == "cosine":
        return math.sin(math.pi / 2 * share)
    if form == "cycle":
        return math.sqrt(1 - (1 - share) ** 2)
    return float(epoch >= start) if form == "step" else share


def at_time(values: float | Mapping[float, float], time: float) -> float:
    """Return a number as it is, or the value of a schedule `{from: value}` at `time`."""
    if not isinstance(values, Mapping):
        return values
    return values[max((start for start in values if start <= time), default=min(values))]


def are_shares(times: Iterable[float]) -> bool:
    """Whether times of a schedule are shares of the run: all lie below 1, and not all are 0."""
    return 0 < max(times, default=0) < 1


def milestones_in_epochs(milestones: Sequence[float], epochs: int) -> list[int]:
    """Turn shares of the run into epochs; milestones in epochs stay."""
    if not are_shares(milestones):
        return [int(milestone) for milestone in milestones]
    # Rounded up, so that each stage of the rate has an epoch where there are enough; 0 would skip the first one.
    return [math.ceil(round(milestone * epochs, 6)) for milestone in milestones]


def time_of(values: float | Mapping[float, float], clock: Clock, key: str) -> float:
    """Return the time of a schedule `{from: value}` in its unit: the whole epoch, or the share of the run."""
    if isinstance(values, Mapping) and are_shares(values):
        return clock.step / clock.share_in_steps(1.0, key)
    return clock.epoch


def ema_rate(time_constant: float) -> float:
    """Turn a time constant tau in steps into the rate of a moving average, `a = 1 - 1 / tau`, never below 0."""
    return max(0.0, 1.0 - 1.0 / time_constant) if time_constant > 0 else 0.0


def one_of(where: str, value: str, choices: Mapping[str, object] | tuple[str, ...]) -> None:
    """Raise a ConfigError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise ConfigError(f"{where} is {value!r}: choose one of {', '.join(choices)}.")
