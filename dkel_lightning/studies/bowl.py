"""Student and teacher in a bowl `L = (x^2 + h y^2) / 2`, from every start and over all directions of the draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np

from dkel_lightning.studies.geometry_settings import BowlSettings
from dkel_lightning.studies.pairs import (
    COPY,
    Pair,
    Pull,
    Start,
    alignment,
    follow,
    length_of,
    settled,
    swept_area,
    walk,
)
from dkel_lightning.studies.recursion import Array

NO_TEACHER = "no teacher"
OWN = "own draw, keep"
RELEASED_STEPS, RELEASED_LR_SCALE = 2, 0.01
"""The initialisation of the released code: two steps at a hundredth of the learning rate."""
COSINES_AT = (1, 5, 20)
DISTANCES_AT = (1, 10, 50)


@dataclass(frozen=True)
class BowlRow:
    """What is measured on one pair in one bowl.

    Attributes:
        cosines: cos between (theta - s) and (o - s) at the steps `COSINES_AT`; None where the two coincide.
        last_helpful: the last step after which the teacher lies less than 90 degrees off the way to the
            optimum; None if there is none.
        distances: |theta - s| at the steps `DISTANCES_AT`.
        swept: area over which the line between student and teacher passes.
        arrival: steps until the student's distance stays below the tolerance; None if not in max_steps.
        loss_arrival: the same for its loss.
    """

    curvature: float
    start: str
    pull: Pull
    cosines: tuple[float | None, ...]
    last_helpful: int | None
    distances: tuple[float, ...]
    swept: float
    arrival: int | None
    loss_arrival: int | None


@dataclass(frozen=True)
class Bowl:
    """One bowl: its pairs, and a row for each. The first pair has no teacher's weight."""

    curvature: float
    pairs: Sequence[Pair]
    rows: Sequence[BowlRow]

    def pair(self, start: str, pull: Pull) -> Pair:
        """Find the pair of a start and a weight."""
        return next(p for p in self.pairs if (p.start.label, p.pull) == (start, pull))

    def row(self, start: str, pull: Pull) -> BowlRow:
        """Find the row of a start and a weight."""
        return next(row for row in self.rows if (row.start, row.pull) == (start, pull))

    @property
    def alone(self) -> BowlRow:
        """The row without a teacher."""
        return self.rows[0]

    def loss(self, positions: Array) -> Array:
        """Give the loss at positions [..., 2]."""
        return bowl_loss(positions, self.curvature)


def bowl_loss(positions: Array, curvature: float) -> Array:
    """Give `(x^2 + h y^2) / 2` at positions [..., 2]."""
    return 0.5 * (positions[..., 0] ** 2 + curvature * positions[..., 1] ** 2)


def on_circle(radius: float, degrees: float) -> tuple[float, float]:
    """Give the point of the circle around the optimum in this direction."""
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def initialised_label(steps: int, lr_scale: float) -> str:
    """Name an own draw that is trained for some steps before."""
    rate = "lr" if lr_scale == 1 else f"{lr_scale:g} lr"
    return f"own draw, {steps} step{'s' * (steps != 1)} at {rate}"


def bowl_starts(settings: BowlSettings, curvature: float, lr: float) -> list[Start]:
    """Give the ways in which the teacher begins in this bowl."""
    student = on_circle(settings.radius, settings.student_angle)
    own = on_circle(settings.radius, settings.teacher_angle)

    def trained(steps: int, lr_scale: float) -> Start:
        kept = [(1 - lr_scale * lr * h) ** steps for h in (1.0, curvature)]
        return Start(initialised_label(steps, lr_scale), (own[0] * kept[0], own[1] * kept[1]), "keep")

    starts = [Start(COPY, student, "copy")]
    starts += [Start("own draw, copy", own, "copy"), Start("own draw, mean_teacher", own, "mean_teacher")]
    starts += [Start(OWN, own, "keep"), trained(RELEASED_STEPS, RELEASED_LR_SCALE)]
    return starts + [trained(steps, settings.init_lr_scale) for steps in settings.init_steps]


def pulls(settings: BowlSettings) -> list[Pull]:
    """Give every weight, constant and decaying."""
    return [Pull(weight, time) for weight in settings.weights for time in (None, settings.weight_time)]


def simulate_bowls(bowl: BowlSettings, lr: float, decay: float) -> list[Bowl]:
    """Follow every start under every weight, and the student alone, in every bowl; all of them side by side."""
    student = on_circle(bowl.radius, bowl.student_angle)
    alone = (Start(NO_TEACHER, student, "copy"), Pull(0.0))
    wanted = [[alone, *product(bowl_starts(bowl, curvature, lr), pulls(bowl))] for curvature in bowl.curvatures]
    scale = np.repeat([(1.0, curvature) for curvature in bowl.curvatures], len(wanted[0]), axis=0)
    pairs = iter(follow(lambda x: x * scale, student, [*chain(*wanted)], bowl.max_steps, lr, decay))
    found = [(curvature, [next(pairs) for _ in own]) for curvature, own in zip(bowl.curvatures, wanted, strict=True)]
    return [Bowl(curvature, own, [_measured(pair, bowl, curvature) for pair in own]) for curvature, own in found]


def _measured(pair: Pair, settings: BowlSettings, curvature: float) -> BowlRow:
    reach = length_of(pair.student)
    losses = bowl_loss(pair.student, curvature)
    alone = pair.start.label == NO_TEACHER
    cosines = alignment(pair)
    helpful = np.flatnonzero(cosines > 0)
    seen = [float(cosines[step]) if step < len(cosines) else math.nan for step in COSINES_AT]
    return BowlRow(
        curvature=curvature,
        start=pair.start.label,
        pull=pair.pull,
        cosines=tuple(None if alone or math.isnan(value) else value for value in seen),
        last_helpful=int(helpful[-1]) if helpful.size and not alone else None,
        distances=tuple(float(pair.distance[min(step, len(reach) - 1)]) for step in DISTANCES_AT),
        swept=swept_area(pair),
        arrival=settled(reach, settings.tolerance * reach[0]),
        loss_arrival=settled(losses, settings.loss_tolerance * losses[0]),
    )


@dataclass(frozen=True)
class DirectionRow:
    """How long it takes over all directions in which a teacher can be drawn.

    Attributes:
        median: median of the steps until the student's distance stays below the tolerance; infinite if it is later
            than max_steps.
        sooner: share of the directions in which the student arrives sooner than without a teacher.
    """

    curvature: float
    start: str
    pull: Pull
    median: float
    sooner: float


def all_directions(bowl: BowlSettings, lr: float, decay: float, bowls: Sequence[Bowl]) -> list[DirectionRow]:
    """Draw the teacher in every direction: what one direction shows may be its luck."""
    around = [replace(bowl, teacher_angle=360 * i / bowl.directions) for i in range(bowl.directions)]
    # Bowl by bowl, start by start, weight by weight, and within these the directions.
    wanted = [
        (each, start, pull)
        for each in bowls
        for same in zip(*(bowl_starts(one, each.curvature, lr)[1:] for one in around), strict=True)
        for pull in pulls(bowl)
        for start in same
    ]
    scale = np.array([(1.0, each.curvature) for each, *_ in wanted])
    arrivals = np.zeros(len(wanted))
    student = on_circle(bowl.radius, bowl.student_angle)
    moments = walk(
        lambda x: x * scale, student, [(start, pull) for _, start, pull in wanted], bowl.max_steps, lr, decay
    )
    for step, (students, _) in enumerate(moments):
        arrivals[length_of(students) >= bowl.tolerance * bowl.radius] = step + 1
    arrivals[arrivals > bowl.max_steps] = np.inf
    rows = []
    for (each, start, pull), steps in zip(
        wanted[:: bowl.directions], arrivals.reshape(-1, bowl.directions), strict=True
    ):
        alone = math.inf if each.alone.arrival is None else each.alone.arrival
        rows.append(
            DirectionRow(each.curvature, start.label, pull, float(np.median(steps)), float((steps < alone).mean()))
        )
    return rows
