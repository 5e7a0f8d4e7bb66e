"""A student and its teacher as two points of a plane, followed step by step and measured; the optimum is 0.

`recursion` has the formula. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dkel_lightning.errors import NonFiniteError
from dkel_lightning.studies.recursion import Array, ema_rates

COPY = "copy"
"""The start of a teacher that is its student's copy."""


@dataclass(frozen=True)
class Start:
    """How a teacher begins: where, and by which rule of the first EMA updates."""

    label: str
    teacher: tuple[float, float]
    rule: str


@dataclass(frozen=True)
class Pull:
    """The total teacher weight over time: constant, or decaying with `time` steps."""

    weight: float
    time: float | None = None

    @property
    def label(self) -> str:
        """Name it: `W = 1`, `W = 3 exp(-t/40)`."""
        return f"W = {self.weight:g}" + ("" if self.time is None else f" exp(-t/{self.time:g})")

    def over(self, steps: int) -> Array:
        """Give the weights at the steps 0 .. steps - 1: [steps]."""
        times = np.arange(steps)
        return np.full(steps, float(self.weight)) if self.time is None else self.weight * np.exp(-times / self.time)


@dataclass(frozen=True)
class Pair:
    """A student and its teacher, followed.

    Attributes:
        start: how the teacher began.
        pull: the teacher's weight.
        student: positions after 0, 1, ... steps: [steps + 1, 2].
        teacher: the same of the teacher.
    """

    start: Start
    pull: Pull
    student: Array
    teacher: Array

    @property
    def distance(self) -> Array:
        """Give |theta - s| at every step."""
        return length_of(self.teacher - self.student)


Gradient = Callable[[Array], Array]


def walk(
    gradient: Gradient,
    student: Sequence[float],
    pairs: Sequence[tuple[Start, Pull]],
    steps: int,
    lr: float,
    decay: float,
) -> Iterator[tuple[Array, Array]]:
    """Give the positions of all students and teachers, [N, 2] each, after 0, 1, ... `steps` steps.

    `gradient` maps positions [N, 2] to gradients [N, 2].

    Raises:
        NonFiniteError: a pair has diverged.
    """
    rates = np.stack([ema_rates(start.rule, decay, steps) for start, _ in pairs], 1)[..., None]
    weights = np.stack([pull.over(steps) for _, pull in pairs], 1)[..., None]
    students = np.tile(np.asarray(student, dtype=np.float64), (len(pairs), 1))
    teachers = np.array([start.teacher for start, _ in pairs], dtype=np.float64)
    yield students, teachers
    with np.errstate(over="ignore", invalid="ignore"):
        for rate, weight in zip(rates, weights, strict=True):
            students = students - lr * (gradient(students) + weight * (students - teachers))
            teachers = rate * teachers + (1 - rate) * students
            yield students, teachers
    for (start, pull), end in zip(pairs, students, strict=True):
        if not np.isfinite(end).all():
            raise NonFiniteError(f"The student diverges ({start.label}, {pull.label}): lower geometry.lr={lr:g}.")


def follow(
    gradient: Gradient,
    student: Sequence[float],
    pairs: Sequence[tuple[Start, Pull]],
    steps: int,
    lr: float,
    decay: float,
) -> list[Pair]:
    """Follow all pairs side by side, see `walk`."""
    moments = list(walk(gradient, student, pairs, steps, lr, decay))
    students, teachers = (np.stack(points, 1) for points in zip(*moments, strict=True))
    return [Pair(*pair, *paths) for pair, paths in zip(pairs, zip(students, teachers, strict=True), strict=True)]


def settled(values: Array, bound: float) -> int | None:
    """Find the step from which all values lie below the bound; None if the last one does not."""
    outside = np.flatnonzero(values >= bound)
    step = int(outside[-1]) + 1 if outside.size else 0
    return step if step < len(values) else None


def first_below(values: Array, bound: float) -> int | None:
    """Find the first step at which a value lies below the bound; None if there is none."""
    found = np.flatnonzero(values < bound)
    return int(found[0]) if found.size else None


def length_of(vectors: Array) -> Array:
    """Give the lengths of vectors [..., 2]."""
    return np.linalg.norm(vectors, axis=-1)


def alignment(pair: Pair) -> Array:
    """Give cos between the teacher's pull (theta - s) and the way to the optimum (-s): nan where they coincide."""
    pull = pair.teacher - pair.student
    length = length_of(pull)
    # Rounding leaves a distance of some 1e-16 where copy and student are the same.
    apart = length > 1e-12
    scale = np.where(apart, length * length_of(pair.student), 1.0)
    return np.where(apart, -(pull * pair.student).sum(-1) / scale, np.nan)


def swept_area(pair: Pair) -> float:
    """Add up the areas over which the line between student and teacher passes, from the start on."""
    s, t = pair.student, pair.teacher
    first, second = _triangles(s[:-1], s[1:], t[1:]), _triangles(s[:-1], t[1:], t[:-1])
    return float(np.abs(first).sum() + np.abs(second).sum())


def _triangles(a: Array, b: Array, c: Array) -> Array:
    u, v = b - a, c - a
    return 0.5 * (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
