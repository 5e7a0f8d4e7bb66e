"""Student and teacher between two mirror optima, `L = (u v - 1)^2 / 2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.studies.geometry_settings import MirrorSettings
from dkel_lightning.studies.pairs import COPY, Pair, Pull, Start, first_below, follow, settled

Points = TypeVar("Points", NDArray[np.float32], NDArray[np.float64])


@dataclass(frozen=True)
class MirrorRow:
    """What is measured on one pair between the mirror optima.

    Attributes:
        arrival: steps until the student's loss stays below the threshold; None if not in the simulation.
        teacher_arrival: the first step at which the teacher's loss is below it.
        teacher_first: loss of the teacher before the first step.
        teacher_peak: largest loss of the teacher, and the step at which it has it.
        crossed: whether the student ends in the branch that it did not start in.
    """

    start: str
    weight: float
    arrival: int | None
    teacher_arrival: int | None
    teacher_first: float
    teacher_peak: float
    peak_step: int
    crossed: bool


@dataclass(frozen=True)
class Mirror:
    """The landscape of two mirror optima: its pairs, and a row for each."""

    pairs: Sequence[Pair]
    rows: Sequence[MirrorRow]

    @property
    def starts(self) -> list[str]:
        """The starts, in order."""
        return list(dict.fromkeys(row.start for row in self.rows))

    @property
    def weights(self) -> list[float]:
        """The weights, rising; the first is 0."""
        return sorted({row.weight for row in self.rows})


UNTRAINED_MIRROR = "untrained, mirror branch"
TRAINED_SAME = "trained, same branch"
TRAINED_MIRROR = "trained, mirror branch"


def mirror_loss(positions: Points) -> Points:
    """Give `(u v - 1)^2 / 2` at positions [..., 2]."""
    return 0.5 * (positions[..., 0] * positions[..., 1] - 1) ** 2


def mirror_gradient(positions: Points) -> Points:
    """Give its gradient, `(u v - 1) (v, u)`."""
    return (positions[..., :1] * positions[..., 1:] - 1) * positions[..., ::-1]


def simulate_mirror(mirror: MirrorSettings, lr: float, decay: float) -> Mirror:
    """Follow every start under every weight, 0 among them."""
    student, trained, untrained = (
        (float(point[0]), float(point[1])) for point in (mirror.student, mirror.trained, mirror.untrained)
    )
    starts = [
        Start(COPY, student, "copy"),
        Start(UNTRAINED_MIRROR, untrained, "keep"),
        Start(TRAINED_SAME, trained, "keep"),
        Start(TRAINED_MIRROR, (-trained[0], -trained[1]), "keep"),
    ]
    wanted = [(start, Pull(weight)) for start in starts for weight in sorted({0.0, *mirror.weights})]
    pairs = follow(mirror_gradient, student, wanted, mirror.steps, lr, decay)
    return Mirror(pairs, [_between(pair, mirror.threshold) for pair in pairs])


def _between(pair: Pair, threshold: float) -> MirrorRow:
    losses = mirror_loss(pair.teacher)
    return MirrorRow(
        start=pair.start.label,
        weight=pair.pull.weight,
        arrival=settled(mirror_loss(pair.student), threshold),
        teacher_arrival=first_below(losses, threshold),
        teacher_first=float(losses[0]),
        teacher_peak=float(losses.max()),
        peak_step=int(losses.argmax()),
        crossed=bool(pair.student[0].sum() * pair.student[-1].sum() < 0),
    )
