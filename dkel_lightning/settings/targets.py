"""What the labels become before a loss is taken of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import choice, either, number, several


@dataclass(frozen=True)
class Targets(Settings, node="targets"):
    """What the labels become before a loss is taken of them, in every method."""

    label_smoothing: Annotated[float, number("Share of a label that is spread evenly over all classes.", 0, 0.99)] = 0.0
    mixup: Annotated[
        float, number("alpha of mixup; 0: none. With cutmix too, each batch draws one of the two.", 0, 100)
    ] = 0.0
    cutmix: Annotated[float, number("alpha of cutmix; 0: none.", 0, 100)] = 0.0
    mixing: Annotated[
        str,
        choice(
            "Whether the peers' views of a batch are mixed alike, or those of each peer otherwise.",
            "shared",
            "per_peer",
        ),
    ] = "shared"
    class_weights: Annotated[
        tuple[float, ...] | str | None,
        either(
            several(
                "Weight of each class in the losses on labels; balanced: as much in all as any other; null: 1.",
                number("", 0, 1e6),
                least=2,
            ),
            choice("", "balanced"),
        ),
    ] = None
