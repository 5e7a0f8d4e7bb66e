"""A noisy quadratic model of P peers and their teachers: exact second moments (`monte_carlo` simulates runs).

A direction of curvature h has, for peer i with its teacher theta_i,

    s_i     <- s_i - eta (h (s_i - b) + W(e) (s_i - m_i) + noise_i),       m_i = mean_{j != i} theta_j
    theta_i <- a_t theta_i + (1 - a_t) s_i              after the step; or, `gradient`, a step of its own on the labels
    noise_i  = sigma sqrt(h) (sqrt(rho) e_0 + sqrt(1 - rho) e_i)           shared labels against own views

The true optimum is 0; the optimum of the training data is b, drawn once a run with variance `shift / h`. W(e) comes
from the schedules that a training uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import TEACHER_WEIGHTS, Clock, one_of
from dkel_lightning.settings.weights import EnsembleTerm, RampUp
from dkel_lightning.studies.convergence_settings import ConvergenceSettings
from dkel_lightning.studies.recursion import Array, ema_rates, is_stable, total_weight


@dataclass(frozen=True)
class Scheme:
    """How much the teachers pull, and how they start and follow.

    Attributes:
        label: its name in tables and figures.
        scale: lambda; 0 for no distillation.
        k: decay of the ensemble's weight an epoch.
        weights: the pair of teacher weights by name, see `schedules.TEACHER_WEIGHTS`.
        rampup: length of the ramp-up in epochs.
        decay: EMA rate a.
        start: rule of the first updates, see `ema.START_OFFSETS`.
        draw: the teacher's first weights: `independent`, or those of the `student`.
        init_steps: noise-free gradient steps on the teacher before the run, at the learning rate.
        update: `ema`, or `gradient`: the teacher learns from the labels itself, with noise of its own views.
    """

    label: str
    scale: float = 1.0
    k: float = 0.5
    weights: str = "complement"
    rampup: float = 80
    decay: float = 0.98
    start: str = "keep"
    draw: str = "independent"
    init_steps: int = 0
    update: str = "ema"

    def __post_init__(self) -> None:
        one_of("weights", self.weights, TEACHER_WEIGHTS)
        one_of("draw", self.draw, ("independent", "student"))
        one_of("update", self.update, ("ema", "gradient"))

    def weight(self, epoch: int) -> float:
        """Give W in an epoch."""
        ramp = RampUp(scale=self.scale, epochs=self.rampup)
        return total_weight(ramp, EnsembleTerm(decay=self.k, weights=self.weights), Clock(epoch))

    def rates(self, steps: int) -> Array:
        """Give the EMA rate of each step, 1 for a teacher that does not follow: [steps]."""
        return np.ones(steps) if self.update == "gradient" else ema_rates(self.start, self.decay, steps)


@dataclass(frozen=True)
class Curves:
    """Expected values over the recorded moments, each [T]; sums over directions, means over peers.

    Attributes:
        student_risk: `1/2 sum h s_i^2`.
        mean_student_risk: the same of the mean of the students.
        teacher_risk: the same of a teacher.
        diversity: `sum h (s_i - mean s)^2`.
        square_distance: `sum (theta_i - s_i)^2`.
        square_teacher: `sum theta_i^2`, squared distance to the true optimum.
        teacher_spread: `sum (theta_i - mean theta)^2`.
    """

    student_risk: Array
    mean_student_risk: Array
    teacher_risk: Array
    diversity: Array
    square_distance: Array
    square_teacher: Array
    teacher_spread: Array

    @property
    def distance(self) -> Array:
        """Root mean square distance of a teacher and its student."""
        return np.sqrt(self.square_distance)

    @property
    def relative_distance(self) -> Array:
        """That distance over the teacher's to the optimum."""
        return np.sqrt(self.square_distance / self.square_teacher)

    @property
    def relative_spread(self) -> Array:
        """Distance of a teacher to the mean of the teachers, over its distance to the optimum."""
        return np.sqrt(self.teacher_spread / self.square_teacher)


def check(problem: ConvergenceSettings, schemes: Sequence[Scheme]) -> None:
    """Refuse what cannot be computed.

    Raises:
        ConfigError: a scheme whose peers diverge, which their differences do before their mean.
    """
    for scheme in schemes:
        heaviest = max(scheme.weight(epoch) for epoch in range(problem.epochs))
        decay = 1.0 if scheme.update == "gradient" else scheme.decay
        for curvature in problem.curvatures:
            if not is_stable(curvature, heaviest, problem.lr, decay, -heaviest / (problem.peers - 1)):
                raise ConfigError(
                    f"{scheme.label} diverges where the curvature is {curvature:g}: a learning rate of {problem.lr:g} "
                    f"is too large for a teacher weight of {heaviest:.3g}. Lower convergence.lr or convergence.lambda."
                )


def settled(risk: Array, factor: float = 1.1) -> int:
    """Give the first epoch from which on the risk stays at or below `factor` times its last value."""
    above = np.flatnonzero(risk > factor * risk[-1])
    return int(above[-1]) + 1 if above.size else 0


# ---------------------------------------------------------------------- exact moments


def exact(problem: ConvergenceSettings, schemes: Sequence[Scheme], at: Sequence[int] | None = None) -> list[Curves]:
    """Follow the second moments of every scheme; no sampling.

    `C <- M_t C M_t^T + Q_t` for the state (s, theta, b) of the mean mode and of a difference mode of the peers.

    Args:
        problem: what the schemes have in common.
        schemes: what is compared.
        at: steps after which to record; None for the start and the end of every epoch.
    """
    check(problem, schemes)
    wanted = range(0, problem.length + 1, problem.steps_per_epoch) if at is None else at
    record = frozenset(wanted)
    moments = _first_moments(problem, schemes)
    found = [moments] if 0 in record else []
    rates = np.stack([scheme.rates(problem.length) for scheme in schemes])
    free = np.array([float(scheme.update == "gradient") for scheme in schemes])
    for epoch in range(problem.epochs):
        student, teacher, own, shared = _epoch_terms(problem, schemes, epoch, free)
        for step in range(epoch * problem.steps_per_epoch, (epoch + 1) * problem.steps_per_epoch):
            a = rates[:, step, None, None]
            matrix, noise = _one_step(student, teacher, own, shared, a, free[:, None, None])
            moments = matrix @ moments @ matrix.swapaxes(-1, -2) + noise
            if step + 1 in record:
                found.append(moments)
    return [_curves(problem, np.stack([each[number] for each in found])) for number in range(len(schemes))]


def _first_moments(problem: ConvergenceSettings, schemes: Sequence[Scheme]) -> Array:
    """Give the moments of (s, theta, b) at the start: [schemes, 2 modes, directions, 3, 3]."""
    h = np.array(problem.curvatures)
    shares = (1 / problem.peers, 1 - 1 / problem.peers)
    moments = np.zeros((len(schemes), 2, len(h), 3, 3))
    for number, scheme in enumerate(schemes):
        left = (1 - problem.lr * h) ** scheme.init_steps
        initialised = np.tile(np.eye(3), (len(h), 1, 1))
        initialised[:, 1, 1], initialised[:, 1, 2] = left, 1 - left
        for mode, share in enumerate(shares):
            drawn = np.zeros((len(h), 3, 3))
            drawn[:, 0, 0] = drawn[:, 1, 1] = share
            drawn[:, 0, 1] = drawn[:, 1, 0] = share * (scheme.draw == "student")
            # The training optimum is the same for all peers: it lies in the mean mode alone.
            drawn[:, 2, 2] = problem.shift / h if mode == 0 else 0.0
            moments[number, mode] = initialised @ drawn @ initialised.swapaxes(-1, -2)
    return moments


def _epoch_terms(
    problem: ConvergenceSettings, schemes: Sequence[Scheme], epoch: int, free: Array
) -> tuple[Array, Array, Array, Array]:
    """Give what does not change within an epoch.

    The student's row of M [schemes, 2, directions, 3]; what a gradient step adds to a free teacher's [the same]; the
    variance of the noise of a step [1, 2, directions]; and what of it student and free teacher share.
    """
    h = np.array(problem.curvatures)
    lr = problem.rate(epoch)
    weight = np.array([scheme.weight(epoch) for scheme in schemes])[:, None, None]
    coupling = np.concatenate([weight, -weight / (problem.peers - 1)], axis=1)
    student = np.stack(np.broadcast_arrays(1 - lr * (h + weight), lr * coupling, lr * h), axis=-1)
    teacher = free[:, None, None, None] * np.stack([0 * h, -lr * h, lr * h], axis=-1)
    rho, share = problem.correlation, 1 / problem.peers
    variance = lr**2 * problem.noise**2 * h
    own = np.stack([variance * (rho + (1 - rho) * share), variance * (1 - rho) * (1 - share)])[None]
    return student, teacher, own, np.stack([variance * rho, 0 * variance])[None]


def _one_step(student: Array, teacher: Array, own: Array, shared: Array, a: Array, free: Array) -> tuple[Array, Array]:
    """Give M and Q of one step: [schemes, 2, directions, 3, 3] each."""
    matrix = np.zeros((*student.shape, 3))
    matrix[..., 0, :] = student
    matrix[..., 1, :] = (1 - a)[..., None] * student + teacher
    matrix[..., 1, 1] += a
    matrix[..., 2, 2] = 1
    noise = np.zeros_like(matrix)
    noise[..., 0, 0] = own
    noise[..., 0, 1] = noise[..., 1, 0] = (1 - a) * own + free * shared
    noise[..., 1, 1] = ((1 - a) ** 2 + free) * own
    return matrix, noise


def _curves(problem: ConvergenceSettings, moments: Array) -> Curves:
    """Read the curves of one scheme off its moments: [T, 2, directions, 3, 3]."""
    h = np.array(problem.curvatures)
    student, teacher, cross = moments[..., 0, 0], moments[..., 1, 1], moments[..., 0, 1]
    return Curves(
        student_risk=0.5 * (student * h).sum((1, 2)),
        mean_student_risk=0.5 * (student[:, 0] * h).sum(1),
        teacher_risk=0.5 * (teacher * h).sum((1, 2)),
        diversity=(student[:, 1] * h).sum(1),
        square_distance=(student + teacher - 2 * cross).sum((1, 2)),
        square_teacher=teacher.sum((1, 2)),
        teacher_spread=teacher[:, 1].sum(1),
    )
