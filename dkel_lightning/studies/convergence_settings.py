"""Settings of the noisy quadratic model and of the collapse experiment. Imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from dkel_lightning.settings.declarations import Settings, number, several, whole


@dataclass(frozen=True)
class HomogenisationSettings(Settings, node="convergence.homogenisation"):
    """The noise-free direction."""

    curvature: Annotated[float, number("Curvature of the noise-free direction.", 0, 1000, above=True)] = 0.1
    decay: Annotated[float, number("EMA rate there.", 0, 0.999999)] = 0.999
    steps_per_epoch: Annotated[int, whole("Steps in an epoch there.", 1, 10_000)] = 391
    at: Annotated[tuple[int, ...], several("Steps that its table shows.", whole("", 1, 1_000_000))] = (
        100,
        300,
        1000,
        3000,
        7900,
    )


@dataclass(frozen=True)
class CollapseSettings(Settings, node="convergence.collapse"):
    """The collapse experiment."""

    runs: Annotated[int, whole("Runs of each weight and start of the collapse experiment.", 1, 1_000_000)] = 10_000
    sweep_runs: Annotated[int, whole("Runs of each value of a sweep.", 1, 1_000_000)] = 2000
    steps: Annotated[int, whole("Steps after which a run that has not left the plateau is stuck.", 1, 100_000)] = 600
    lr: Annotated[float, number("Learning rate there.", 0, 1000, above=True)] = 0.05
    spread: Annotated[float, number("Deviation of a start around the saddle.", 0, 1000, above=True)] = 0.1
    noise: Annotated[float, number("Deviation of the gradient noise there.", 0, 1000)] = 0.3
    solved: Annotated[float, number("Loss at which a run has left the plateau.", 0, 0.5, above=True)] = 0.05
    near: Annotated[float, number("Distance below which student and teacher count as homogenised.", 0, 1000)] = 0.1
    weights: Annotated[
        tuple[float, ...], several("Weights of the teacher; the largest also decaying.", number("", 0, 1000))
    ] = (0, 1, 3)
    weight: Annotated[float, number("Weight from which the sweeps vary one thing.", 0, 1000)] = 3.0
    init_steps: Annotated[
        tuple[int, ...], several("Gradient steps on a teacher before the run.", whole("", 0, 1_000_000), least=0)
    ] = (20, 100)


@dataclass(frozen=True)
class SweepSettings(Settings, node="convergence.sweeps"):
    """Values that are swept, one thing at a time."""

    k: Annotated[tuple[float, ...], several("Values of k that are swept.", number("", 0, 1000))] = (
        0,
        0.05,
        0.1,
        0.2,
        0.5,
        1,
    )
    lambda_: Annotated[tuple[float, ...], several("Values of lambda.", number("", 0, 1000))] = (0, 0.1, 0.5, 1, 2, 3, 5)
    decay: Annotated[tuple[float, ...], several("EMA rates.", number("", 0, 0.999999))] = (0.9, 0.95, 0.98, 0.99, 0.995)
    init_steps: Annotated[tuple[int, ...], several("Steps of the initialisation.", whole("", 0, 1_000_000))] = (
        0,
        2,
        20,
        100,
        200,
    )
    noise: Annotated[tuple[float, ...], several("Factors on the noise.", number("", 0, 1000))] = (0, 0.5, 1, 2)


@dataclass(frozen=True)
class ConvergenceSettings(Settings, node="convergence"):
    """A noisy quadratic model, and a collapse experiment.

    In the notation of `convergence`: h `curvatures`, sigma `noise`, rho `correlation`, P `peers`, eta `lr`, a `decay`.
    """

    runs: Annotated[int, whole("Simulated runs of the noisy quadratic model.", 2, 1_000_000)] = 2000
    epochs: Annotated[int, whole("Length of a run in epochs.", 2, 10_000)] = 300
    steps_per_epoch: Annotated[int, whole("Steps in an epoch.", 1, 10_000)] = 20
    peers: Annotated[int, whole("Peers.", 2, 64)] = 3
    curvatures: Annotated[
        tuple[float, ...], several("Curvature of each direction.", number("", 0, 1000, above=True))
    ] = (1.0, 0.1, 0.01)
    noise: Annotated[float, number("Deviation of the gradient noise where the curvature is 1.", 0, 1000)] = 1.0
    correlation: Annotated[float, number("Share of the noise that all peers have in common.", 0, 1)] = 0.3
    lr: Annotated[float, number("Learning rate of the students.", 0, 1000, above=True)] = 0.1
    milestones: Annotated[
        tuple[int, ...], several("Epochs at which it is multiplied.", whole("", 1, 1_000_000), least=0)
    ] = (150, 225)
    gamma: Annotated[float, number("Factor on it.", 0, 1000)] = 0.1
    decay: Annotated[float, number("EMA rate of the teachers.", 0, 0.999999)] = 0.98
    lambda_: Annotated[float, number("lambda: weight of the teachers at the end of the ramp-up.", 0, 1000)] = 1.0
    rampup: Annotated[float, number("Length of the ramp-up in epochs.", 0, 10_000)] = 80
    k: Annotated[float, number("Decay of the ensemble's weight, an epoch.", 0, 1000)] = 0.5
    slow_k: Annotated[float, number("A slower decay to compare with.", 0, 1000)] = 0.05
    weak_lambda: Annotated[float, number("A smaller lambda to compare with.", 0, 1000)] = 0.1
    init_steps: Annotated[int, whole("Gradient steps that put a teacher ahead before the run.", 0, 1_000_000)] = 200
    shift: Annotated[
        float, number("Variance of the training optimum around the true one, times the curvature.", 0, 1000)
    ] = 0.02
    homogenisation: HomogenisationSettings = field(default_factory=HomogenisationSettings)
    collapse: CollapseSettings = field(default_factory=CollapseSettings)
    sweeps: SweepSettings = field(default_factory=SweepSettings)

    @property
    def length(self) -> int:
        """Steps in the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def first_phase(self) -> int:
        """The last epoch before the learning rate first falls."""
        return min([self.epochs, *(milestone - 1 for milestone in self.milestones)])

    def rate(self, epoch: int) -> float:
        """Give eta in an epoch."""
        return float(self.lr * self.gamma ** sum(milestone <= epoch for milestone in self.milestones))
