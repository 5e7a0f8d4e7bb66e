"""Both landscapes of task=geometry, simulated and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dkel_lightning.errors import ConfigError
from dkel_lightning.studies.bowl import Bowl, DirectionRow, all_directions, simulate_bowls
from dkel_lightning.studies.geometry_settings import GeometrySettings
from dkel_lightning.studies.mirror import Mirror, simulate_mirror
from dkel_lightning.studies.recursion import is_stable


@dataclass(frozen=True)
class Geometry:
    """Both landscapes, simulated and measured."""

    settings: GeometrySettings
    bowls: Sequence[Bowl]
    directions: Sequence[DirectionRow]
    mirror: Mirror


def simulate(settings: GeometrySettings) -> Geometry:
    """Simulate all bowls and the mirror optima.

    Raises:
        ConfigError: a bowl in which the student diverges.
        NonFiniteError: a pair has diverged.
    """
    lr, decay = settings.lr, settings.decay
    for curvature in (1.0, *settings.bowl.curvatures):
        for weight in (0.0, *settings.bowl.weights):
            if not is_stable(curvature, weight, lr, decay, weight):
                raise ConfigError(
                    f"geometry.lr={lr:g} diverges in a direction of curvature {curvature:g} with teacher "
                    f"weight {weight:g}: lower it below about 2 / (curvature + weight)."
                )
    bowls = simulate_bowls(settings.bowl, lr, decay)
    directions = all_directions(settings.bowl, lr, decay, bowls)
    return Geometry(settings, bowls, directions, simulate_mirror(settings.mirror, lr, decay))
