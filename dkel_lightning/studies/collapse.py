"""Runs that never leave a plateau: collapse by its outcome, in a landscape with a saddle and two mirror optima.

    L(u, v) = 1/2 (u v - 1)^2;  student and teacher start around the saddle at 0, the gradient is noisy
    s     <- s - eta (grad L(s) + W (s - theta) + noise)
    theta <- a_t theta + (1 - a_t) s

A run is stuck when its student's loss has not once fallen to the threshold by the end. Homogenisation (teacher and
student close while both are poor) is counted beside it and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import derive_seed
from dkel_lightning.studies.convergence_settings import CollapseSettings
from dkel_lightning.studies.mirror import mirror_gradient, mirror_loss
from dkel_lightning.studies.pairs import Pull
from dkel_lightning.studies.recursion import Array, ema_rates
from dkel_lightning.studies.seed_statistics import wilson


@dataclass(frozen=True)
class Case:
    """One choice of weight and start.

    Attributes:
        scale: teacher weight W at the start.
        k: its decay an epoch, read at every step; 0 for a constant weight.
        decay: EMA rate a.
        start: rule of the first updates.
        draw: `independent`, or `student`: the teacher starts as its copy.
        init_steps: noise-free gradient steps on the teacher before the run.
    """

    scale: float = 3.0
    k: float = 0.0
    decay: float = 0.98
    start: str = "keep"
    draw: str = "independent"
    init_steps: int = 0

    def weights(self, steps: int, per_epoch: int) -> Array:
        """Give W at every step: [steps]."""
        return Pull(self.scale, per_epoch / self.k if self.k else None).over(steps)


@dataclass(frozen=True)
class Outcome:
    """What the runs of a case ended in.

    Attributes:
        runs: their number.
        stuck: how many never left the plateau.
        low: lower end of the 95 % Wilson interval of the share of stuck runs.
        high: upper end.
        median_exit: median step at which the others left; nan if none did.
        homogenised: share of the time on the plateau during which student and teacher were close and both poor.
    """

    runs: int
    stuck: int
    low: float
    high: float
    median_exit: float
    homogenised: float

    @property
    def share(self) -> float:
        """Share of stuck runs."""
        return self.stuck / self.runs


def simulate(landscape: CollapseSettings, case: Case, runs: int, seed: int, steps_per_epoch: int = 20) -> Outcome:
    """Run a case; equal seeds give every case the same starts and noise.

    Args:
        landscape: what all cases have in common.
        case: weight and start.
        runs: how many.
        seed: of starts and noise.
        steps_per_epoch: steps in the epoch in which a decaying weight counts.

    Raises:
        ConfigError: the loss overflows, because the learning rate is too large.
    """
    draws = np.random.default_rng(derive_seed(seed, "collapse"))
    student, other = np.float32(landscape.spread) * draws.standard_normal((2, 2, runs), np.float32).swapaxes(1, 2)
    teacher = student.copy() if case.draw == "student" else other
    lr, noise = np.float32(landscape.lr), np.float32(landscape.noise)
    for _ in range(case.init_steps):
        teacher = teacher - lr * mirror_gradient(teacher)
    weights = case.weights(landscape.steps, steps_per_epoch).astype(np.float32)
    rates = ema_rates(case.start, case.decay, landscape.steps).astype(np.float32)
    left = np.full(runs, np.inf)
    plateau = homogenised = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(landscape.steps):
            pull = weights[step] * (student - teacher)
            push = noise * draws.standard_normal((2, runs), np.float32).T
            student = student - lr * (mirror_gradient(student) + pull + push)
            teacher = rates[step] * teacher + (1 - rates[step]) * student
            left[np.isinf(left) & (mirror_loss(student) <= landscape.solved)] = step + 1
            waiting = np.isinf(left)
            close = ((student - teacher) ** 2).sum(-1) < landscape.near**2
            plateau += int(waiting.sum())
            homogenised += int((waiting & close & (mirror_loss(teacher) > landscape.solved)).sum())
    if not np.isfinite(student).all():
        raise ConfigError(
            f"convergence.collapse.lr is {landscape.lr:g}, and runs with a teacher weight of {case.scale:g} and noise "
            f"of {landscape.noise:g} overflow: lower it."
        )
    stuck = int(np.isinf(left).sum())
    low, high = wilson(stuck, runs)
    exits = left[np.isfinite(left)]
    median = float(np.median(exits)) if exits.size else float("nan")
    return Outcome(runs, stuck, low, high, median, homogenised / plateau if plateau else 0.0)
