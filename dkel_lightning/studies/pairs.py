"""A student and its teacher as two points of a plane, simulated and measured; see `recursion`. Nothing is random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dkel_lightning.errors import NonFiniteError
from dkel_lightning.studies.recursion import Array, ema_rates


@dataclass(frozen=True)
class Start:
    """Initial position of a teacher, and the start rule of its EMA."""

    label: str
    teacher: tuple[float, float]
    rule: str


@dataclass(frozen=True)
class Pull:
    """The total teacher weight over time: constant, or `weight * exp(-t / time)` at step t."""

    weight: float
    time: float | None = None

    @property
    def label(self) -> str:
        """The weight as text: `W = 3 exp(-t/40)`."""
        return f"W = {self.weight:g}" + ("" if self.time is None else f" exp(-t/{self.time:g})")

    def weights(self, steps: int) -> Array:
        """Compute the weights at the steps 0 .. steps - 1: [steps]."""
        return self.weight * (np.ones(steps) if self.time is None else np.exp(-np.arange(steps) / self.time))


@dataclass(frozen=True)
class Pair:
    """The positions [steps + 1, 2] of a student and its teacher after 0, 1, ... steps."""

    student: Array
    teacher: Array

    @property
    def distance(self) -> Array:
        """|theta - s| at every step."""
        return norm(self.teacher - self.student)


def simulate_pairs(
    gradient: Callable[[Array], Array],
    student: Sequence[float],
    cases: Sequence[tuple[Start, Pull]],
    steps: int,
    lr: float,
    decay: float,
) -> list[Pair]:
    """Simulate all cases side by side, from one position of the student [2].

    `gradient` maps positions [N, 2] to gradients [N, 2].
    """
    rates = np.stack([ema_rates(start.rule, decay, steps) for start, _ in cases])
    weights = np.stack([pull.weights(steps) for _, pull in cases])
    students, teachers = np.empty((2, len(cases), steps + 1, 2))
    students[:, 0], teachers[:, 0] = student, [start.teacher for start, _ in cases]
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps):
            s, theta = students[:, step], teachers[:, step]
            s = students[:, step + 1] = s - lr * (gradient(s) + weights[:, step, None] * (s - theta))
            rate = rates[:, step, None]
            teachers[:, step + 1] = rate * theta + (1 - rate) * s
    for (start, pull), end in zip(cases, students[:, -1], strict=True):
        if not np.isfinite(end).all():
            raise NonFiniteError(f"The student diverges ({start.label}, {pull.label}): lower geometry.lr={lr:g}.")
    return [Pair(*paths) for paths in zip(students, teachers, strict=True)]


def norm(vectors: Array) -> Array:
    """Compute the lengths of vectors [..., 2]."""
    return np.linalg.norm(vectors, axis=-1)


def settling_step(values: Array, bound: float) -> int | None:
    """Return the step from which all values are below the bound, or None."""
    outside = np.flatnonzero(values >= bound)
    step = int(outside[-1]) + 1 if outside.size else 0
    return step if step < len(values) else None


def first_below(values: Array, bound: float) -> int | None:
    """Return the first step with a value below the bound, or None."""
    below = np.flatnonzero(values < bound)
    return int(below[0]) if below.size else None


def alignment(pair: Pair) -> Array:
    """Compute cos between the teacher's pull (theta - s) and the direction of the optimum (-s); nan for a zero pull."""
    pull = pair.teacher - pair.student
    length = norm(pull)
    # A copy differs from its student by rounding errors.
    apart = length > 1e-12
    scale = np.where(apart, length * norm(pair.student), 1.0)
    return np.where(apart, -(pull * pair.student).sum(-1) / scale, np.nan)
