"""Which network leaves the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import AUTO, choice, either, whole


@dataclass(frozen=True)
class Deploy(Settings, node="deploy"):
    """Which network leaves the training. A negative peer counts from the last."""

    network: Annotated[
        str,
        choice(
            "Network that is deployed; auto: as the method says, mostly the teacher.",
            *("auto", "teacher", "student", "ensemble"),
        ),
        AUTO,
    ] = "teacher"
    peer: Annotated[
        int | str,
        either(
            whole("Peer that is deployed; best: in validation; auto: as the method says.", -64, 63),
            choice("", "auto", "best"),
        ),
        AUTO,
    ] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("network", "peer"):
            if getattr(self, name) == "auto":
                raise ConfigError(f"deploy.{name} is auto, and there is no method to ask: choose one.")
