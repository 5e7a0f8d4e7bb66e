"""Both landscapes of task=geometry: their settings together, simulated and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dkel_lightning.errors import ConfigError
from dkel_lightning.studies.bowl import Bowl, BowlSettings, DirectionRow, all_directions, simulate_bowls
from dkel_lightning.studies.mirror import Mirror, MirrorSettings, simulate_mirror
from dkel_lightning.studies.recursion import is_stable


@dataclass(frozen=True)
class Settings:
    """Both landscapes, and what they share: the learning rate of the student and the EMA rate of the teacher."""

    lr: float = 0.05
    decay: float = 0.98
    bowl: BowlSettings = field(default_factory=BowlSettings)
    mirror: MirrorSettings = field(default_factory=MirrorSettings)

    def __post_init__(self) -> None:
        for curvature in (1.0, *self.bowl.curvatures):
            for weight in (0.0, *self.bowl.weights):
                if not is_stable(curvature, weight, self.lr, self.decay):
                    raise ConfigError(
                        f"geometry.lr={self.lr:g} diverges in a direction of curvature {curvature:g} with teacher "
                        f"weight {weight:g}: lower it below about 2 / (curvature + weight)."
                    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Read the node `geometry` of a configuration.

        Raises:
            ConfigError: values that do not fit together.
        """
        shared = {name: value for name, value in values.items() if name not in ("bowl", "mirror")}
        return cls(**shared, bowl=BowlSettings(**values["bowl"]), mirror=MirrorSettings(**values["mirror"]))


@dataclass(frozen=True)
class Geometry:
    """Both landscapes, simulated and measured."""

    settings: Settings
    bowls: Sequence[Bowl]
    directions: Sequence[DirectionRow]
    mirror: Mirror


def simulate(settings: Settings) -> Geometry:
    """Simulate all bowls and the mirror optima.

    Raises:
        NonFiniteError: a pair has diverged.
    """
    shared = settings.lr, settings.decay
    bowls = simulate_bowls(settings.bowl, *shared)
    directions = all_directions(settings.bowl, *shared, bowls)
    return Geometry(settings, bowls, directions, simulate_mirror(settings.mirror, *shared))
