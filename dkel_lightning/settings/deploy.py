"""Settings of the deployed network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings, choice, either, whole


@dataclass(frozen=True)
class Deploy(Settings, node="deploy"):
    """The choice of the deployed network. A negative peer counts from the last."""

    network: Annotated[
        str,
        choice(
            "Network that is deployed; auto: teacher or student, the better one in validation.",
            *("auto", "teacher", "student", "ensemble"),
        ),
    ] = "auto"
    peer: Annotated[
        int | str,
        either(
            whole("Peer that is deployed; best: in validation; auto: best, or the one that the method names.", -64, 63),
            choice("", "auto", "best"),
        ),
    ] = "auto"
