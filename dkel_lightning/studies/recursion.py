"""The linear recursion of a student and its averaged teacher, and its closed forms.

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
from scipy.linalg import solve_discrete_lyapunov

from dkel_lightning.ema import update_rate
from dkel_lightning.schedules import TEACHER_WEIGHTS, Clock
from dkel_lightning.settings.weights import EnsembleTerm, RampUp

Array = NDArray[np.float64]


# ---------------------------------------------------------------------- what a training uses


def ema_rate(rule: str, decay: float, t: int) -> float:
    """Give `a_t`, the rate of the update after `t` earlier ones, by start rule (see `ema.START_OFFSETS`)."""
    return float(update_rate(torch.tensor(t), decay, rule))


def ema_rates(rule: str, decay: float, steps: int) -> Array:
    """Give the rates `a_0 .. a_{steps - 1}`: [steps]."""
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


def difference_coupling(weight: float, peers: int) -> float:
    """Give the coupling `-W / (P - 1)` of the modes in which peers differ."""
    return -weight / (peers - 1)


def mode_matrix(curvature: float, weight: float, lr: float, decay: float, coupling: float) -> Array:
    """Give the matrix that takes (s, theta) one step further, without noise: [2, 2].

    A negative curvature is a direction that leads away from a saddle.
    """
    kept = 1.0 - lr * (curvature + weight)
    return np.array([[kept, lr * coupling], [(1 - decay) * kept, decay + (1 - decay) * lr * coupling]])


def determinant(curvature: float, weight: float, lr: float, decay: float) -> float:
    """Give the determinant of a mode's matrix, `a (1 - eta (h + W))`, the same for every coupling."""
    return decay * (1.0 - lr * (curvature + weight))


def is_stable(curvature: float, weight: float, lr: float, decay: float) -> bool:
    """Say whether the mean mode converges: `h > 0` and `eta ((1 + a) h + 2 a W) < 2 (1 + a)`."""
    return curvature > 0 and lr * ((1 + decay) * curvature + 2 * decay * weight) < 2 * (1 + decay)


def growth(matrix: Array) -> float:
    """Give the factor a step of the slowest (or fastest growing) mode: the largest modulus of an eigenvalue."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def time_constant(matrix: Array) -> float:
    """Give the exact slow time constant in steps, `-1 / ln(growth)`; infinite where nothing decays."""
    factor = growth(matrix)
    return -1.0 / math.log(factor) if factor < 1 else math.inf


def doubling_steps(matrix: Array) -> float:
    """Give the steps in which a growing mode doubles; infinite where nothing grows."""
    factor = growth(matrix)
    return math.log(2) / math.log(factor) if factor > 1 else math.inf


def common_error_time(curvature: float, weight: float, decay: float) -> float:
    """Approximate the steps in which the common error decays by e: `(1 + W/h) / (1 - a)`, for 1 - a << eta h."""
    return (1 + weight / curvature) / (1 - decay)


def teacher_diversity_time(curvature: float, weight: float, decay: float, peers: int) -> float:
    """Approximate the steps in which teachers forget what they differ in, for 1 - a << eta h.

    `1 / ((1 - a) (1 + W / ((P - 1) (h + W))))`: with W > h about 1 + W/h times sooner than their common error.
    """
    return 1 / ((1 - decay) * (1 + weight / ((peers - 1) * (curvature + weight))))


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


# ---------------------------------------------------------------------- noise


def noise_direction(decay: float) -> Array:
    """Give what unit noise in the student's step moves, (1, 1 - a): the teacher averages the new student."""
    return np.array([1.0, 1.0 - decay])


def moment_step(covariance: Array, matrix: Array, decay: float, step_variance: float) -> Array:
    """Take the exact second moments of (s, theta) one step further: `M C M^T + q b b^T`, b = (1, 1 - a)."""
    direction = noise_direction(decay)
    moved: Array = matrix @ covariance @ matrix.T
    return moved + step_variance * np.outer(direction, direction)


def stationary_covariance(matrix: Array, decay: float, step_variance: float = 1.0) -> Array:
    """Give the second moments that `moment_step` ends in: [2, 2]; the mode must be stable.

    The student's variance is about h / (h + W) of that without a teacher.
    """
    direction = noise_direction(decay)
    solved: Array = solve_discrete_lyapunov(matrix, step_variance * np.outer(direction, direction))
    return solved


def distance_variance(decay: float, step_variance: float) -> float:
    """Give the variance of theta - s behind a student that is a random walk: `a^2 q / (1 - a^2)`.

    From `d <- a (d - step)`: the student's last step is averaged too.
    """
    return decay**2 * step_variance / (1 - decay**2)


# ---------------------------------------------------------------------- between two optima


def half_way_steps(decay: float) -> float:
    """Give the steps after which a teacher that runs from one optimum to another is half way: `ln 2 / -ln a`."""
    return math.log(2) / -math.log(decay)
