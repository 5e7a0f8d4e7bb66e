"""What theory says of a student and its averaged teacher, in the notation of `recursion`, to hold simulations to."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from dkel_lightning.studies.recursion import Array, mode_matrix

SADDLE = -1.0
"""Curvature of the direction that leads away from the saddle of the collapse experiment."""


def determinant(curvature: float, weight: float, lr: float, decay: float) -> float:
    """Compute the determinant of a mode's matrix, `a (1 - eta (h + W))`, the same for every coupling."""
    return decay * (1.0 - lr * (curvature + weight))


def is_stable(curvature: float, weight: float, lr: float, decay: float, coupling: float) -> bool:
    """Tell whether a mode converges: `h + W > c` and `eta ((1 + a) (h + W) - (1 - a) c) < 2 (1 + a)`, c its coupling.

    In the mean mode, c = W: `h > 0` and `eta ((1 + a) h + 2 a W) < 2 (1 + a)`. In a bowl the others diverge first.
    """
    kept = (1 + decay) * (curvature + weight) - (1 - decay) * coupling
    return curvature + weight > coupling and lr * kept < 2 * (1 + decay)


def relative_distance_floor(curvature: float, weight: float) -> float:
    """Approximate the final `|theta - s| / |theta - o|` for 1 - a << eta h: `h / (h + W)`, whatever the start rule."""
    return curvature / (curvature + weight)


def time_constant(matrix: Array) -> float:
    """Compute the exact slow time constant in steps, `-1 / ln(growth)`; infinite where nothing decays."""
    factor = growth(matrix)
    return -1.0 / math.log(factor) if factor < 1 else math.inf


def doubling_steps(matrix: Array) -> float:
    """Compute the steps in which a growing mode doubles; infinite where nothing grows."""
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


def noise_direction(decay: float) -> Array:
    """Compute what unit noise in the student's step moves, (1, 1 - a): the teacher averages the new student."""
    return np.array([1.0, 1.0 - decay])


def moment_step(covariance: Array, matrix: Array, decay: float, step_variance: float) -> Array:
    """Take the exact second moments of (s, theta) one step further: `M C M^T + q b b^T`, b = (1, 1 - a)."""
    direction = noise_direction(decay)
    moved: Array = matrix @ covariance @ matrix.T
    return moved + step_variance * np.outer(direction, direction)


def stationary_covariance(matrix: Array, decay: float, step_variance: float = 1.0) -> Array:
    """Compute the second moments that `moment_step` ends in: [2, 2]; the mode must be stable.

    The student's variance is about h / (h + W) of that without a teacher.
    """
    direction = noise_direction(decay)
    return solve_discrete_lyapunov(matrix, step_variance * np.outer(direction, direction))


def distance_variance(decay: float, step_variance: float) -> float:
    """Compute the variance of theta - s behind a student that is a random walk: `a^2 q / (1 - a^2)`.

    From `d <- a (d - step)`: the student's last step is averaged too.
    """
    return decay**2 * step_variance / (1 - decay**2)


def growth(matrix: Array) -> float:
    """Compute the factor a step of the slowest (or fastest growing) mode: the largest modulus of an eigenvalue."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def difference_coupling(weight: float, peers: int) -> float:
    """Compute the coupling `-W / (P - 1)` of the modes in which peers differ."""
    return -weight / (peers - 1)


def independent_amplitude(weight: float, lr: float, decay: float) -> float:
    """Compute the escaping amplitude of two independent starts over that of two equal ones, root mean square.

    Two independent starts add incoherently along the left eigenvector (l_s, l_theta) of the escaping mode:
    `sqrt(l_s^2 + l_theta^2) / |l_s + l_theta|`.
    """
    values, vectors = np.linalg.eig(mode_matrix(SADDLE, weight, lr, decay, weight).T)
    left = np.real(vectors[:, np.argmax(np.abs(values))])
    return float(np.hypot(*left) / abs(left.sum()))


def first_alignment(degrees: float, shrunk: float = 1.0) -> float:
    """Compute the cosine before the first step for a teacher drawn `degrees` away at the same radius.

    `shrunk` is the share of that radius which is left after its initialisation. For 1 it is sin(angle / 2).
    """
    cosine = math.cos(math.radians(degrees))
    return (1 - shrunk * cosine) / math.sqrt(1 + shrunk**2 - 2 * shrunk * cosine)
