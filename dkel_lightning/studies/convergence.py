"""A noisy quadratic model of P peers and their teachers: exact second moments, and simulated runs.

A direction of curvature h has, for peer i with its teacher theta_i,

    s_i     <- s_i - eta (h (s_i - b) + W(e) (s_i - m_i) + noise_i),       m_i = mean_{j != i} theta_j
    theta_i <- a_t theta_i + (1 - a_t) s_i              after the step; or, `gradient`, a step of its own on the labels
    noise_i  = sigma sqrt(h) (sqrt(rho) e_0 + sqrt(1 - rho) e_i)           shared labels against own views

The true optimum is 0; the optimum of the training data is b, drawn once a run with variance `shift / h`. W(e) comes
from the schedules that a training uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import derive_seed
from dkel_lightning.studies.recursion import Array, ema_rates, teacher_weights

Single = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """What schemes have in common, in the notation of the module; `lr` is multiplied by `gamma` at the milestones."""

    epochs: int = 300
    steps_per_epoch: int = 20
    peers: int = 3
    curvatures: tuple[float, ...] = (1.0, 0.1, 0.01)
    noise: float = 1.0
    correlation: float = 0.3
    lr: float = 0.1
    milestones: tuple[int, ...] = (150, 225)
    gamma: float = 0.1
    shift: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.epochs * self.steps_per_epoch

    def lr_in(self, epoch: int) -> float:
        """Compute eta in an epoch."""
        return float(self.lr * self.gamma ** sum(milestone <= epoch for milestone in self.milestones))


@dataclass(frozen=True)
class Scheme:
    """How much the teachers pull, and how they start and follow.

    Attributes:
        label: its name in tables and figures.
        scale: lambda; 0 for no distillation.
        k: decay of the ensemble's weight per epoch.
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

    def weight(self, epoch: int) -> float:
        """Compute W in an epoch: with quadratic losses all teachers pull to one point, so only their sum acts."""
        return sum(teacher_weights(epoch, self.scale, self.rampup, self.k, self.weights))

    def rates(self, steps: int) -> Array:
        """Compute the EMA rate of each step, 1 for a teacher that does not follow: [steps]."""
        return np.ones(steps) if self.update == "gradient" else ema_rates(self.start, self.decay, steps)


@dataclass(frozen=True)
class Curves:
    """Expected values over the recorded moments, each [T]; sums over directions, means over peers.

    Attributes:
        student_risk: `1/2 sum h s_i^2`.
        teacher_risk: the same of a teacher.
        diversity: `sum h (s_i - mean s)^2`.
        square_distance: `sum (theta_i - s_i)^2`.
        square_teacher: `sum theta_i^2`, squared distance to the true optimum.
        teacher_spread: `sum (theta_i - mean theta)^2`.
    """

    student_risk: Array
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


QUANTITIES = tuple(field.name for field in fields(Curves))
DIVERGED = 1e6
"""A second moment that no converging scheme comes to; the starts have 1."""


def settling_epoch(risk: Array, factor: float = 1.1) -> int:
    """Find the first epoch from which on the risk stays at or below `factor` times its last value."""
    above = np.flatnonzero(risk > factor * risk[-1])
    return int(above[-1]) + 1 if above.size else 0


# ---------------------------------------------------------------------- exact moments


def exact(problem: Problem, schemes: Sequence[Scheme], at: Sequence[int] | None = None) -> list[Curves]:
    """Compute the second moments of every scheme; no sampling.

    `C <- M_t C M_t^T + Q_t` for the state (s, theta, b) of the mean mode and of a difference mode of the peers.

    Args:
        problem: what the schemes have in common.
        schemes: what is compared.
        at: steps after which to record; None for the start and the end of every epoch.
    """
    record = frozenset(range(0, problem.steps + 1, problem.steps_per_epoch) if at is None else at)
    moments = _first_moments(problem, schemes)
    recorded = [moments] if 0 in record else []
    rates = np.stack([scheme.rates(problem.steps) for scheme in schemes])[..., None, None]
    free = np.array([float(scheme.update == "gradient") for scheme in schemes])[:, None, None]
    for step in range(problem.steps):
        if step % problem.steps_per_epoch == 0:
            terms = _epoch_terms(problem, schemes, step // problem.steps_per_epoch)
        matrix, noise = _one_step(*terms, rates[:, step], free)
        moments = matrix @ moments @ matrix.swapaxes(-1, -2) + noise
        if moments.max() > DIVERGED:
            label = schemes[int(moments.max((1, 2, 3, 4)).argmax())].label
            raise ConfigError(f"{label} diverges: its teacher weight is too large. Lower convergence.lambda.")
        if step + 1 in record:
            recorded.append(moments)
    return [_curves(problem, curve) for curve in np.stack(recorded, 1)]


def _first_moments(problem: Problem, schemes: Sequence[Scheme]) -> Array:
    """Compute the moments of (s, theta, b) at the start: [schemes, 2 modes, directions, 3, 3]."""
    h = np.array(problem.curvatures)
    moments = np.zeros((len(schemes), 2, len(h), 3, 3))
    for number, scheme in enumerate(schemes):
        kept = (1 - problem.lr * h) ** scheme.init_steps
        initialise = np.tile(np.eye(3), (len(h), 1, 1))
        initialise[:, 1, 1], initialise[:, 1, 2] = kept, 1 - kept
        for mode, share in enumerate((1 / problem.peers, 1 - 1 / problem.peers)):
            drawn = np.zeros((len(h), 3, 3))
            drawn[:, 0, 0] = drawn[:, 1, 1] = share
            drawn[:, 0, 1] = drawn[:, 1, 0] = share * (scheme.draw == "student")
            # The training optimum is the same for all peers: it lies in the mean mode alone.
            drawn[:, 2, 2] = problem.shift / h if mode == 0 else 0.0
            moments[number, mode] = initialise @ drawn @ initialise.swapaxes(-1, -2)
    return moments


def _epoch_terms(problem: Problem, schemes: Sequence[Scheme], epoch: int) -> tuple[Array, Array, Array, Array]:
    """Compute what is constant in an epoch, over modes and directions.

    Returns the student's row of M [schemes, 2, directions, 3], what a gradient step adds to a free teacher's row
    [directions, 3], the variance of a step's noise [2, directions], and the part of it that student and free teacher
    share [2, directions].
    """
    h, lr = np.array(problem.curvatures), problem.lr_in(epoch)
    weight = np.array([scheme.weight(epoch) for scheme in schemes])[:, None, None]
    coupling = np.concatenate([weight, -weight / (problem.peers - 1)], axis=1)
    student = np.stack(np.broadcast_arrays(1 - lr * (h + weight), lr * coupling, lr * h), axis=-1)
    teacher = np.stack([0 * h, -lr * h, lr * h], axis=-1)
    rho, share, variance = problem.correlation, 1 / problem.peers, lr**2 * problem.noise**2 * h
    noise = np.stack([variance * (rho + (1 - rho) * share), variance * (1 - rho) * (1 - share)])
    return student, teacher, noise, np.stack([variance * rho, 0 * variance])


def _one_step(
    student: Array, teacher: Array, variance: Array, shared: Array, a: Array, free: Array
) -> tuple[Array, Array]:
    """Compute M and Q of one step: [schemes, 2, directions, 3, 3] each."""
    matrix = np.zeros((*student.shape, 3))
    matrix[..., 0, :] = student
    matrix[..., 1, :] = (1 - a)[..., None] * student + free[..., None] * teacher
    matrix[..., 1, 1] += a
    matrix[..., 2, 2] = 1
    noise = np.zeros_like(matrix)
    noise[..., 0, 0] = variance
    noise[..., 0, 1] = noise[..., 1, 0] = (1 - a) * variance + free * shared
    noise[..., 1, 1] = ((1 - a) ** 2 + free) * variance
    return matrix, noise


def _curves(problem: Problem, moments: Array) -> Curves:
    """Read the curves of one scheme off its moments [T, 2, directions, 3, 3]."""
    h = np.array(problem.curvatures)
    student, teacher, cross = moments[..., 0, 0], moments[..., 1, 1], moments[..., 0, 1]
    return Curves(
        student_risk=0.5 * (student * h).sum((1, 2)),
        teacher_risk=0.5 * (teacher * h).sum((1, 2)),
        diversity=(student[:, 1] * h).sum(1),
        square_distance=(student + teacher - 2 * cross).sum((1, 2)),
        square_teacher=teacher.sum((1, 2)),
        teacher_spread=teacher[:, 1].sum(1),
    )


# ---------------------------------------------------------------------- simulated runs


@dataclass(frozen=True)
class Simulation:
    """Mean over runs and its standard error after 0, 1, ... epochs, and the student risk [epochs + 1, runs]."""

    mean: Curves
    error: Curves
    risk: Single

    @property
    def band(self) -> Array:
        """The 2.5 % and 97.5 % quantile over runs of the student risk: [2, epochs + 1]."""
        return np.quantile(self.risk, (0.025, 0.975), axis=1)

    def times(self, threshold: float) -> list[float]:
        """Compute the 2.5 %, 50 % and 97.5 % quantile of the epoch at which a run's risk first is at the threshold.

        A quantile is one run's epoch, inf where the run never comes to the threshold.
        """
        below = self.risk <= threshold
        epochs = np.where(below.any(0), below.argmax(0), np.inf)
        return [float(q) for q in np.quantile(epochs, (0.025, 0.5, 0.975), method="lower")]


def monte_carlo(problem: Problem, schemes: Sequence[Scheme], runs: int, seed: int) -> list[Simulation]:
    """Simulate every peer of every run, in float32; all schemes see the same starts and noise."""
    draws = np.random.default_rng(derive_seed(seed, "noise"))
    h = np.array(problem.curvatures, np.float32)[:, None, None]
    shape = (len(h), problem.peers, runs)
    first, other = draws.standard_normal((2, *shape), np.float32)
    optimum = draws.standard_normal((len(h), 1, runs), np.float32) * np.sqrt(np.float32(problem.shift) / h)
    student, teacher = np.repeat(first[None], len(schemes), axis=0), np.empty((len(schemes), *shape), np.float32)
    for number, scheme in enumerate(schemes):
        kept = (1 - np.float32(problem.lr) * h) ** scheme.init_steps
        teacher[number] = kept * (first if scheme.draw == "student" else other) + (1 - kept) * optimum
    rates = np.stack([scheme.rates(problem.steps) for scheme in schemes]).astype(np.float32)[..., None, None, None]
    free = np.flatnonzero([scheme.update == "gradient" for scheme in schemes])
    amount = np.float32(problem.noise) * np.sqrt(h)
    shared, single = np.float32(problem.correlation**0.5), np.float32((1 - problem.correlation) ** 0.5)
    measured = [_measure(h, student, teacher)]
    for epoch in range(problem.epochs):
        lr = np.float32(problem.lr_in(epoch))
        weight = np.array([scheme.weight(epoch) for scheme in schemes], np.float32)[:, None, None, None]
        for step in range(epoch * problem.steps_per_epoch, (epoch + 1) * problem.steps_per_epoch):
            common = shared * draws.standard_normal((len(h), 1, runs), np.float32)
            noise = amount * (common + single * draws.standard_normal(shape, np.float32))
            others = (teacher.sum(2, keepdims=True) - teacher) / np.float32(problem.peers - 1)
            student = student - lr * (h * (student - optimum) + weight * (student - others) + noise)
            a = rates[:, step]
            teacher = a * teacher + (1 - a) * student
            if free.size:
                noise = amount * (common + single * draws.standard_normal(shape, np.float32))
                teacher[free] -= lr * (h * (teacher[free] - optimum) + noise)
        measured.append(_measure(h, student, teacher))
    mean, error, risk = (np.stack(values, 1) for values in zip(*measured, strict=True))
    return [
        Simulation(Curves(*mean[..., number]), Curves(*error[..., number]), risk[number])
        for number in range(len(schemes))
    ]


def _measure(h: Single, student: Single, teacher: Single) -> tuple[Array, Array, Single]:
    """Compute the mean over runs and its standard error of each field of `Curves`, and the student risk of each run.

    Shapes: [quantities, schemes], the same, and [schemes, runs].
    """
    middle, middle_teacher = student.mean(2, keepdims=True), teacher.mean(2, keepdims=True)
    terms = (
        0.5 * h * student**2,
        0.5 * h * teacher**2,
        h * (student - middle) ** 2,
        (teacher - student) ** 2,
        teacher**2,
        (teacher - middle_teacher) ** 2,
    )
    values = np.stack([term.mean(2).sum(1) for term in terms])
    wide = values.astype(np.float64)
    return wide.mean(-1), wide.std(-1, ddof=1) / values.shape[-1] ** 0.5, values[0]
