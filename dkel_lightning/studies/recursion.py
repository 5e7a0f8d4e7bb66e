"""The linear recursion of a student and its averaged teacher.

One direction of a quadratic loss of curvature h, the optimum at 0, learning rate eta, total teacher weight W, EMA
rate a:

    s     <- s - eta (h s + W (s - m) + noise)        m: the teacher, or the mean of the other peers' teachers
    theta <- a theta + (1 - a) s                      after the step, with the new s

P peers split into one mean mode and P - 1 difference modes that do not interact. In a mode the other teachers pull
with `coupling * theta`: W in the mean mode, -W / (P - 1) in a difference mode.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from dkel_lightning import schedules
from dkel_lightning.ema import update_rate

Array = NDArray[np.float64]


def ema_rates(rule: str, decay: float, steps: int) -> Array:
    """Compute the rates of the first updates, a_0 .. a_{steps - 1}, of a start rule (`ema.START_OFFSETS`): [steps]."""
    rates = update_rate(torch.arange(steps), decay, rule)
    return np.full(steps, rates) if isinstance(rates, float) else rates.double().numpy()


def teacher_weights(epoch: float, scale: float, length: float, k: float, weights: str) -> tuple[float, float]:
    """Compute (G, H) of `schedules.teacher_weights` for lambda `scale`, a ramp-up of `length` epochs, and decay k."""
    v, r = schedules.ensemble_weight(epoch, k), schedules.rampup(epoch, scale, length)
    return schedules.teacher_weights(weights, v, r, scale, scale)


def mode_matrix(curvature: float, weight: float, lr: float, decay: float, coupling: float) -> Array:
    """Compute the matrix of one noise-free step of (s, theta): [2, 2]; a saddle has a negative curvature."""
    kept = 1.0 - lr * (curvature + weight)
    return np.array([[kept, lr * coupling], [(1 - decay) * kept, decay + (1 - decay) * lr * coupling]])


def relative_distance(matrix: Array) -> float:
    """Compute the final `|theta - s| / |theta - o|` exactly, from the slow eigenvector of a mode."""
    values, vectors = np.linalg.eig(matrix)
    student, teacher = vectors[:, np.argmax(np.abs(values))]
    return float(abs(teacher - student) / abs(teacher))


def half_way_steps(decay: float) -> float:
    """Compute after how many steps a teacher on its way from one optimum to another is half way: `ln 2 / -ln a`."""
    return math.log(2) / -math.log(decay)
