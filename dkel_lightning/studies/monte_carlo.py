"""Runs of the noisy quadratic model of `convergence`, simulated: for bands, and for what happens to a single run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import derive_seed
from dkel_lightning.studies.convergence import Curves, Scheme, check
from dkel_lightning.studies.convergence_settings import ConvergenceSettings
from dkel_lightning.studies.recursion import Array

Single = NDArray[np.float32]
EXPECTED = tuple(field.name for field in fields(Curves))


@dataclass(frozen=True)
class Simulation:
    """What the runs of one scheme gave.

    Attributes:
        mean: mean over runs at the start and at the end of every epoch.
        error: standard error of each of these means.
        low: 2.5 % quantile over runs of the student risk (mean over a run's peers): [epochs + 1].
        high: 97.5 % quantile.
        risk: student risk of every run: [epochs + 1, runs].
    """

    mean: Curves
    error: Curves
    low: Array
    high: Array
    risk: Single

    def first_below(self, threshold: float) -> Array:
        """Give the first epoch at which each run's student risk is at or below `threshold`; inf where never: [runs]."""
        below = self.risk <= threshold
        return np.where(below.any(0), below.argmax(0), np.inf)

    def times(self, threshold: float) -> tuple[float, float, float]:
        """Give 2.5 % quantile, median and 97.5 % quantile of these epochs, each that of a run; inf for never."""
        low, middle, high = np.quantile(self.first_below(threshold), (0.025, 0.5, 0.975), method="lower")
        return float(low), float(middle), float(high)


CHUNK = 500
"""Runs that are stepped together: few enough for a core's cache, many enough to outweigh numpy's calls."""

MOST_KEPT = 2 << 30
"""Bytes that the risks of all runs may take."""


def monte_carlo(
    problem: ConvergenceSettings, schemes: Sequence[Scheme], runs: int, seed: int, workers: int = 1
) -> list[Simulation]:
    """Simulate every peer of every run, in float32; all schemes see the same starts and noise.

    The number of threads, `workers`, changes no result.

    Raises:
        ConfigError: see `check`; or the risks of so many runs would fill the memory.
    """
    check(problem, schemes)
    kept = 4 * runs * (problem.epochs + 1) * len(schemes)
    if kept > MOST_KEPT:
        raise ConfigError(
            f"convergence.runs={runs}: the risks of all runs would take {kept / 2**30:,.0f} GiB, and may take "
            f"{MOST_KEPT >> 30}. Take fewer runs or epochs."
        )
    sizes = [min(CHUNK, runs - start) for start in range(0, runs, CHUNK)]
    seeds = [derive_seed(seed, "noise", part) for part in range(len(sizes))]
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(partial(_simulate, problem, schemes), sizes, seeds))
    totals, squares = (np.sum([part[which] for part in parts], axis=0) for which in (0, 1))
    risks = np.concatenate([part[2] for part in parts], axis=-1)
    mean: Array = totals / runs
    error = np.sqrt(np.maximum(squares / runs - mean**2, 0) / (runs - 1))
    found = []
    for number in range(len(schemes)):
        risk = risks[:, number]
        low, high = np.quantile(risk, (0.025, 0.975), axis=1)
        curves = [Curves(**dict(zip(EXPECTED, each[:, :, number], strict=True))) for each in (mean, error)]
        found.append(Simulation(curves[0], curves[1], low, high, risk))
    return found


def _simulate(
    problem: ConvergenceSettings, schemes: Sequence[Scheme], runs: int, seed: int
) -> tuple[Array, Array, Single]:
    """Simulate some runs.

    Returns sums and sums of squares over runs [quantities, epochs + 1, schemes], and the student risks
    [epochs + 1, schemes, runs].
    """
    draws = np.random.default_rng(seed)
    h = np.array(problem.curvatures, np.float32)[:, None, None]
    shape = (len(problem.curvatures), problem.peers, runs)
    student, teacher, optimum = _first_states(problem, schemes, draws, shape)
    rates = np.stack([scheme.rates(problem.length) for scheme in schemes]).astype(np.float32)[..., None, None, None]
    free = np.flatnonzero([scheme.update == "gradient" for scheme in schemes])
    values = np.empty((len(EXPECTED), problem.epochs + 1, len(schemes), runs), np.float32)
    values[:, 0] = _measure(h, student, teacher)
    buffer = np.empty_like(student)
    amount = problem.noise * np.sqrt(h)
    shared_part, own_part = np.float32(problem.correlation**0.5), np.float32((1 - problem.correlation) ** 0.5)
    for epoch in range(problem.epochs):
        lr = np.float32(problem.rate(epoch))
        weight = np.array([s.weight(epoch) for s in schemes], np.float32)[:, None, None, None]
        kept, pull = 1 - lr * (h + weight), lr * weight / np.float32(problem.peers - 1)
        towards = lr * h * optimum
        for step in range(epoch * problem.steps_per_epoch, (epoch + 1) * problem.steps_per_epoch):
            common = shared_part * draws.standard_normal((shape[0], 1, runs), np.float32)
            push = draws.standard_normal(shape, np.float32)
            push *= own_part
            push += common
            push *= -lr * amount
            push += towards
            np.subtract(teacher.sum(2, keepdims=True), teacher, out=buffer)
            buffer *= pull
            student *= kept
            student += buffer
            student += push
            a = rates[:, step]
            np.multiply(student, 1 - a, out=buffer)
            teacher *= a
            teacher += buffer
            if free.size:
                own = common + own_part * draws.standard_normal(shape, np.float32)
                teacher[free] += towards - lr * (h * teacher[free] + amount * own)
        values[:, epoch + 1] = _measure(h, student, teacher)
    wide = values.astype(np.float64)
    return wide.sum(-1), (wide**2).sum(-1), values[0]


def _first_states(
    problem: ConvergenceSettings, schemes: Sequence[Scheme], draws: np.random.Generator, shape: tuple[int, int, int]
) -> tuple[Single, Single, Single]:
    """Draw students and teachers [schemes, directions, peers, runs] and training optima [directions, 1, runs]."""
    h = np.array(problem.curvatures, np.float32)[:, None, None]
    first, other = draws.standard_normal((2, *shape), np.float32)
    optimum = draws.standard_normal((shape[0], 1, shape[2]), np.float32) * np.sqrt(np.float32(problem.shift) / h)
    teachers = []
    for scheme in schemes:
        left = (1 - np.float32(problem.lr) * h) ** scheme.init_steps
        teachers.append(left * (first if scheme.draw == "student" else other) + (1 - left) * optimum)
    return np.repeat(first[None], len(schemes), axis=0), np.stack(teachers).astype(np.float32), optimum


def _measure(h: Single, student: Single, teacher: Single) -> Single:
    """Give what `Curves` names, of every run: [quantities, schemes, runs]."""
    middle, middle_teacher = student.mean(2, keepdims=True), teacher.mean(2, keepdims=True)

    def summed(values: Single) -> Single:
        return values.mean(2).sum(1)

    return np.stack(
        [
            0.5 * summed(h * student**2),
            0.5 * summed(h * middle**2),
            0.5 * summed(h * teacher**2),
            summed(h * (student - middle) ** 2),
            summed((teacher - student) ** 2),
            summed(teacher**2),
            summed((teacher - middle_teacher) ** 2),
        ]
    )
