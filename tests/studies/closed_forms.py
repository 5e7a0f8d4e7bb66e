"""What theory says of a student and its averaged teacher, in the notation of `recursion`, to hold simulations to."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from dkel_lightning.studies.recursion import Array


def relative_distance_floor(curvature: float, weight: float) -> float:
    """Approximate the final `|theta - s| / |theta - o|` for 1 - a << eta h: `h / (h + W)`, whatever the start rule."""
    return curvature / (curvature + weight)


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


def difference_coupling(weight: float, peers: int) -> float:
    """Compute the coupling `-W / (P - 1)` of the modes in which peers differ."""
    return -weight / (peers - 1)
