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

from dkel_lightning.runtime.seeding import derive_seed
from dkel_lightning.studies.convergence import Scheme
from dkel_lightning.studies.geometry import mirror_gradient, mirror_loss
from dkel_lightning.studies.pairs import Pull
from dkel_lightning.studies.seed_statistics import wilson

STEPS_PER_EPOCH = 20
LR, SOLVED, NEAR = 0.05, 0.05, 0.1
"""A run leaves the plateau at a loss of SOLVED; student and teacher closer than NEAR are homogenised."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of the runs of a scheme.

    Attributes:
        runs: their number.
        stuck: how many never left the plateau.
        share: the same as a share.
        low: lower end of its 95 % Wilson interval.
        high: upper end.
        median_exit: median step at which the others left; nan if none did.
        homogenised: share of the time on the plateau during which student and teacher were close and both poor.
    """

    runs: int
    stuck: int
    share: float
    low: float
    high: float
    median_exit: float
    homogenised: float


def simulate(
    scheme: Scheme, runs: int, seed: int, *, steps: int = 600, spread: float = 0.1, noise: float = 0.3
) -> Outcome:
    """Simulate a scheme; equal seeds give all schemes the same starts and noise.

    The teacher weight is the scheme's `scale`, constant where its k is 0, else decaying at every step; there is no
    ramp-up. `spread` and `noise` are the standard deviations of the starts and of the gradient noise.
    """
    draws = np.random.default_rng(derive_seed(seed, "collapse"))
    student, other = np.float32(spread) * draws.standard_normal((2, 2, runs), np.float32).swapaxes(1, 2)
    teacher = student.copy() if scheme.draw == "student" else other
    lr = np.float32(LR)
    for _ in range(scheme.init_steps):
        teacher = teacher - lr * mirror_gradient(teacher)
    pull = Pull(scheme.scale, STEPS_PER_EPOCH / scheme.k if scheme.k else None)
    weights = pull.weights(steps).astype(np.float32)
    rates = scheme.rates(steps).astype(np.float32)
    exits = np.full(runs, np.inf)
    plateau = homogenised = 0
    for step in range(steps):
        push = np.float32(noise) * draws.standard_normal((2, runs), np.float32).T
        student = student - lr * (mirror_gradient(student) + weights[step] * (student - teacher) + push)
        teacher = rates[step] * teacher + (1 - rates[step]) * student
        exits[np.isinf(exits) & (mirror_loss(student) <= SOLVED)] = step + 1
        waiting = np.isinf(exits)
        close = ((student - teacher) ** 2).sum(-1) < NEAR**2
        plateau += int(waiting.sum())
        homogenised += int((waiting & close & (mirror_loss(teacher) > SOLVED)).sum())
    stuck = int(np.isinf(exits).sum())
    median = float(np.median(exits[np.isfinite(exits)])) if stuck < runs else float("nan")
    return Outcome(runs, stuck, stuck / runs, *wilson(stuck, runs), median, homogenised / plateau if plateau else 0.0)
