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
from dkel_lightning.studies.convergence import Scheme
from dkel_lightning.studies.convergence_settings import CollapseSettings
from dkel_lightning.studies.mirror import mirror_gradient, mirror_loss
from dkel_lightning.studies.pairs import Pull
from dkel_lightning.studies.seed_statistics import wilson


@dataclass(frozen=True)
class Outcome:
    """What the runs of a scheme ended in.

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


def simulate(landscape: CollapseSettings, scheme: Scheme, runs: int, seed: int, steps_per_epoch: int = 20) -> Outcome:
    """Run a scheme; equal seeds give all of them the same starts and noise.

    Args:
        landscape: what all schemes have in common.
        scheme: its W is `scale`, constant where k is 0, else decaying at every step; it has no ramp-up.
        runs: how many.
        seed: of starts and noise.
        steps_per_epoch: steps in the epoch in which a decaying weight counts.

    Raises:
        ConfigError: the loss overflows, because the learning rate is too large.
    """
    draws = np.random.default_rng(derive_seed(seed, "collapse"))
    student, other = np.float32(landscape.spread) * draws.standard_normal((2, 2, runs), np.float32).swapaxes(1, 2)
    teacher = student.copy() if scheme.draw == "student" else other
    lr, noise = np.float32(landscape.lr), np.float32(landscape.noise)
    for _ in range(scheme.init_steps):
        teacher = teacher - lr * mirror_gradient(teacher)
    course = Pull(scheme.scale, steps_per_epoch / scheme.k if scheme.k else None)
    weights = course.over(landscape.steps).astype(np.float32)
    rates = scheme.rates(landscape.steps).astype(np.float32)
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
            f"convergence.collapse.lr is {landscape.lr:g}, and runs with a teacher weight of {scheme.scale:g} and "
            f"noise of {landscape.noise:g} overflow: lower it."
        )
    stuck = int(np.isinf(left).sum())
    low, high = wilson(stuck, runs)
    exits = left[np.isfinite(left)]
    median = float(np.median(exits)) if exits.size else float("nan")
    return Outcome(runs, stuck, low, high, median, homogenised / plateau if plateau else 0.0)
