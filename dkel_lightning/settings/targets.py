"""How labels are changed before a loss is computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings, choice, either, number, several


@dataclass(frozen=True)
class Targets(Settings, node="targets"):
    """How labels are changed before a loss of the training is computed from them, in every method."""

    label_smoothing: Annotated[float, number("Share of a label that is spread evenly over all classes.", 0, 0.99)] = 0.0
    mixup: Annotated[
        float, number("alpha of mixup; 0: none. With cutmix too, each batch draws one of them.", 0, 100)
    ] = 0.0
    cutmix: Annotated[float, number("alpha of cutmix; 0: none.", 0, 100)] = 0.0
    class_weights: Annotated[
        tuple[float, ...] | str | None,
        either(
            several(
                "Weight of each class in the losses on labels; balanced: inverse frequency; null: 1.",
                number("", 0, 1e6),
                least=2,
            ),
            choice("", "balanced"),
        ),
    ] = None
