"""Where a teacher pulls its student: two points in a bowl and between two mirror optima.

The losses are `(x^2 + h y^2) / 2` and `(u v - 1)^2 / 2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.studies.pairs import (
    Pair,
    Pull,
    Start,
    alignment,
    first_below,
    norm,
    settling_step,
    simulate_pairs,
)
from dkel_lightning.studies.recursion import Array
from dkel_lightning.studies.settings import GeometrySettings

Points = TypeVar("Points", NDArray[np.float32], NDArray[np.float64])

NO_TEACHER, COPY, OWN = "no teacher", "copy", "own draw, keep"
UNTRAINED_MIRROR, TRAINED_MIRROR = "untrained, mirror branch", "trained, mirror branch"

CURVATURES = (1.0, 0.3, 0.05)
"""Of the second direction of each bowl."""
PULLS = tuple(Pull(weight, time) for weight in (1.0, 3.0) for time in (None, 40.0))
ALONE = Pull(0.0)
RADIUS, STUDENT_ANGLE = 2.0, 200.0
"""Where the student starts; an independent teacher starts at the same radius."""
MAX_STEPS = 12_000
ARRIVED, ARRIVED_LOSS = 0.05, 0.001
"""Shares of the first distance, and of the first loss, at which a student has arrived."""

MIRROR_STUDENT, MIRROR_WEIGHTS, MIRROR_STEPS = (0.3, 0.1), (0.0, 0.5, 1.0, 3.0), 600
TRAINED_LOSS = 0.01


Row = Mapping[str, Any]
"""Measurements of a pair, by the columns of its table."""


@dataclass(frozen=True)
class Geometry:
    """The pairs of both landscapes, and their measurements under the same keys.

    Bowls have the keys (curvature, start, pull), the mirror optima (start, weight).
    """

    settings: GeometrySettings
    bowls: Mapping[tuple[float, str, Pull], Pair]
    bowl_rows: Mapping[tuple[float, str, Pull], Row]
    mirror: Mapping[tuple[str, float], Pair]
    mirror_rows: Mapping[tuple[str, float], Row]


# ---------------------------------------------------------------------- the bowl


def bowl_loss(positions: Array, curvature: float) -> Array:
    """Compute `(x^2 + h y^2) / 2` at positions [..., 2]."""
    return 0.5 * (positions[..., 0] ** 2 + curvature * positions[..., 1] ** 2)


def _on_circle(degrees: float) -> tuple[float, float]:
    return RADIUS * math.cos(math.radians(degrees)), RADIUS * math.sin(math.radians(degrees))


def trained_label(steps: int, lr_scale: float = 1) -> str:
    """Name an independent start that is trained for some steps."""
    return f"own draw, {steps} step{'s' * (steps != 1)} at {'' if lr_scale == 1 else f'{lr_scale:g} '}lr"


def bowl_starts(settings: GeometrySettings, curvature: float, angle: float) -> list[Start]:
    """List the starts of the teacher in a bowl; its own draw lies in the direction `angle`."""
    own = _on_circle(angle)
    starts = [Start(COPY, _on_circle(STUDENT_ANGLE), "copy")]
    starts += [Start(f"own draw, {rule}", own, rule) for rule in ("copy", "mean_teacher", "keep")]
    # Two steps at a hundredth of the learning rate are the initialisation of the released code.
    for steps, scale in dict.fromkeys([(2, 0.01), (2, 1), (settings.init_steps, 1)]):
        kept = [(1 - scale * settings.lr * h) ** steps for h in (1.0, curvature)]
        starts.append(Start(trained_label(steps, scale), (own[0] * kept[0], own[1] * kept[1]), "keep"))
    return starts


def simulate_bowls(settings: GeometrySettings) -> dict[tuple[float, str, Pull], Pair]:
    """Simulate the student alone, and every start under every weight, in every bowl."""
    student = _on_circle(STUDENT_ANGLE)
    cases = [
        (curvature, start, pull)
        for curvature in CURVATURES
        for start, pull in [
            (Start(NO_TEACHER, student, "copy"), ALONE),
            *product(bowl_starts(settings, curvature, settings.teacher_angle), PULLS),
        ]
    ]
    scale = np.array([(1.0, curvature) for curvature, *_ in cases])
    pairs = simulate_pairs(
        lambda x: x * scale, student, [case[1:] for case in cases], MAX_STEPS, settings.lr, settings.decay
    )
    return {(curvature, start.label, pull): pair for (curvature, start, pull), pair in zip(cases, pairs, strict=True)}


def _measure_in_bowl(curvature: float, start: str, pull: Pull, pair: Pair) -> Row:
    """Measure a pair: cos between (theta - s) and (o - s), distances, and the steps until the student has arrived."""
    cosines = alignment(pair) if start != NO_TEACHER else np.full(len(pair.student), np.nan)
    helpful = np.flatnonzero(cosines > 0)
    reach, losses = norm(pair.student), bowl_loss(pair.student, curvature)
    return {
        "curvature": curvature,
        "start": start,
        "weight": pull.weight,
        "weight_time": pull.time,
        **{f"cosine_{step}": float(cosines[step]) for step in (1, 5, 20)},
        "last_helpful_step": int(helpful[-1]) if helpful.size else None,
        **{f"distance_{step}": float(pair.distance[step]) for step in (1, 10, 50)},
        "steps_to_distance": settling_step(reach, ARRIVED * reach[0]),
        "steps_to_loss": settling_step(losses, ARRIVED_LOSS * losses[0]),
    }


# ---------------------------------------------------------------------- two mirror optima


def mirror_loss(positions: Points) -> Points:
    """Compute `(u v - 1)^2 / 2` at positions [..., 2]."""
    return 0.5 * (positions[..., 0] * positions[..., 1] - 1) ** 2


def mirror_gradient(positions: Points) -> Points:
    """Compute its gradient `(u v - 1) (v, u)`: [..., 2]."""
    return (positions[..., :1] * positions[..., 1:] - 1) * positions[..., ::-1]


def simulate_mirror(settings: GeometrySettings) -> dict[tuple[str, float], Pair]:
    """Simulate every start under every weight, 0 among them."""
    starts = [
        Start(COPY, MIRROR_STUDENT, "copy"),
        Start(UNTRAINED_MIRROR, (-0.2, -0.5), "keep"),
        Start("trained, same branch", (1.0, 1.0), "keep"),
        Start(TRAINED_MIRROR, (-1.0, -1.0), "keep"),
    ]
    cases = [(start, Pull(weight)) for start in starts for weight in MIRROR_WEIGHTS]
    pairs = simulate_pairs(mirror_gradient, MIRROR_STUDENT, cases, MIRROR_STEPS, settings.lr, settings.decay)
    return {(start.label, pull.weight): pair for (start, pull), pair in zip(cases, pairs, strict=True)}


def _measure_between(start: str, weight: float, pair: Pair) -> Row:
    losses = mirror_loss(pair.teacher)
    return {
        "start": start,
        "weight": weight,
        "student_steps": settling_step(mirror_loss(pair.student), TRAINED_LOSS),
        "teacher_steps": first_below(losses, TRAINED_LOSS),
        "teacher_first_loss": float(losses[0]),
        "teacher_peak_loss": float(losses.max()),
        "teacher_peak_step": int(losses.argmax()),
        "ends_in_other_branch": bool(pair.student[0].sum() * pair.student[-1].sum() < 0),
    }


# ---------------------------------------------------------------------- the study


def simulate(settings: GeometrySettings) -> Geometry:
    """Simulate and measure both landscapes."""
    bowls, mirror = simulate_bowls(settings), simulate_mirror(settings)
    bowl_rows = {key: _measure_in_bowl(*key, pair) for key, pair in bowls.items()}
    return Geometry(settings, bowls, bowl_rows, mirror, {key: _measure_between(*key, mirror[key]) for key in mirror})
