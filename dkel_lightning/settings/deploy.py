"""Which network leaves the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import choice, either, whole


@dataclass(frozen=True)
class Deploy(Settings, node="deploy"):
    """Which network leaves the training. A negative peer counts from the last."""

    network: Annotated[
        str,
        choice(
            "Network that is deployed; auto: of teacher and student, what validation chooses.",
            *("auto", "teacher", "student", "ensemble"),
        ),
    ] = "auto"
    peer: Annotated[
        int | str,
        either(
            whole("Peer that is deployed; best: in validation; auto: best, or the one the method names.", -64, 63),
            choice("", "auto", "best"),
        ),
    ] = "auto"
