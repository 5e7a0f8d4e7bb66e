"""Settings of task=geometry and task=convergence. Imports neither torch nor numpy: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings, number, whole

DECAY = number("EMA rate a of the teacher.", 0, 0.999999)


@dataclass(frozen=True)
class GeometrySettings(Settings, node="geometry"):
    """A student and its teacher as two points of a plane."""

    lr: Annotated[float, number("Learning rate of the student.", 0, 1000, above=True)] = 0.05
    decay: Annotated[float, DECAY] = 0.98
    teacher_angle: Annotated[float, number("Direction of the teacher's independent start, in degrees.", -360, 360)] = (
        110
    )
    init_steps: Annotated[int, whole("Gradient steps of the teacher that is trained before the run.", 1, 100_000)] = 20


@dataclass(frozen=True)
class ConvergenceSettings(Settings, node="convergence"):
    """A noisy quadratic model of peers and teachers, and a model of collapse."""

    runs: Annotated[
        int, whole("Simulated runs per setting; the collapse table has five times as many.", 2, 100_000)
    ] = 2000
    epochs: Annotated[int, whole("Length of a run; the learning rate falls at 1/2 and 3/4 of it.", 4, 1000)] = 300
    lambda_: Annotated[float, number("lambda: weight of the teachers after the ramp-up.", 0, 1000)] = 1.0
    k: Annotated[float, number("Decay of the ensemble's weight per epoch.", 0, 1000)] = 0.5
    decay: Annotated[float, DECAY] = 0.98
