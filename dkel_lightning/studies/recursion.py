"""The linear recursion of a student and its averaged teacher.

One direction of a quadratic loss of curvature h, the optimum at 0, learning rate eta, total teacher weight W, EMA
rate a:

    s     <- s - eta (h s + W (s - m) + noise)        m: the teacher, or the mean of the other peers' teachers
    theta <- a theta + (1 - a) s                      after the step, with the new s

P peers split into one mean mode and P - 1 difference modes that do not see each other. In a mode the other
teachers' pull is `coupling * theta`: W in the mean mode, -W / (P - 1) in a difference mode.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from dkel_lightning.ema import update_rate
from dkel_lightning.schedules import TEACHER_WEIGHTS, Clock
from dkel_lightning.settings.weights import EnsembleTerm, RampUp

Array = NDArray[np.float64]


# ---------------------------------------------------------------------- what a training uses


def ema_rates(rule: str, decay: float, steps: int) -> Array:
    """Give the rates of the first updates, `a_0 .. a_{steps - 1}`, by start rule (see `ema.START_OFFSETS`): [steps]."""
    rates = update_rate(torch.arange(steps), decay, rule)
    return np.full(steps, rates) if isinstance(rates, float) else rates.double().numpy()


def teacher_weights(rampup: RampUp, ensemble: EnsembleTerm, clock: Clock) -> tuple[float, float]:
    """Give (G, H), the weights of the assembled and of the individual teachers at this moment, as DKEL does."""
    r, v = rampup.weight(clock), ensemble.weight(clock)
    assembled, individual = TEACHER_WEIGHTS[ensemble.weights](
        v, r, r if ensemble.ramped else rampup.scale, rampup.scale
    )
    return float(assembled), float(individual)


def total_weight(rampup: RampUp, ensemble: EnsembleTerm, clock: Clock) -> float:
    """Give W = G + H: with quadratic losses both pull to the same point, so only their sum acts."""
    return sum(teacher_weights(rampup, ensemble, clock))


# ---------------------------------------------------------------------- one direction, constant W and a


def mode_matrix(curvature: float, weight: float, lr: float, decay: float, coupling: float) -> Array:
    """Give the matrix that takes (s, theta) one step further, without noise: [2, 2].

    A negative curvature is a direction that leads away from a saddle.
    """
    kept = 1.0 - lr * (curvature + weight)
    return np.array([[kept, lr * coupling], [(1 - decay) * kept, decay + (1 - decay) * lr * coupling]])


def is_stable(curvature: float, weight: float, lr: float, decay: float, coupling: float) -> bool:
    """Say whether a mode converges: `h + W > c` and `eta ((1 + a) (h + W) - (1 - a) c) < 2 (1 + a)`, c its coupling.

    Of the mean mode, c = W: `h > 0` and `eta ((1 + a) h + 2 a W) < 2 (1 + a)`. In a bowl the others diverge first.
    """
    kept = (1 + decay) * (curvature + weight) - (1 - decay) * coupling
    return curvature + weight > coupling and lr * kept < 2 * (1 + decay)


def relative_distance_floor(curvature: float, weight: float) -> float:
    """Approximate `|theta - s| / |theta - o|` once the fast mode has died: `h / (h + W)`, whatever the start rule.

    For 1 - a << eta h; `relative_distance` is exact.
    """
    return curvature / (curvature + weight)


def relative_distance(matrix: Array) -> float:
    """Give `|theta - s| / |theta - o|` once the fast mode has died, from the slow eigenvector."""
    values, vectors = np.linalg.eig(matrix)
    student, teacher = vectors[:, np.argmax(np.abs(values))]
    return float(abs(teacher - student) / abs(teacher))


# ---------------------------------------------------------------------- between two optima


def half_way_steps(decay: float) -> float:
    """Give the steps after which a teacher that runs from one optimum to another is half way: `ln 2 / -ln a`."""
    return math.log(2) / -math.log(decay)
