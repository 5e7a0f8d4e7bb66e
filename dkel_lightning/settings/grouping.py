"""Into which groups the parameters of an optimizer are put."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings, number, switch


@dataclass(frozen=True)
class Grouping(Settings, node="optimizer"):
    """What an optimizer treats otherwise than the rest."""

    decay_all: Annotated[
        bool, switch("Let weight decay hold for normalisation layers and biases, all that has one axis, too.")
    ] = True
    layer_decay: Annotated[
        float, number("Factor on the learning rate from each layer to the one before it.", 0.1, 1)
    ] = 1.0
