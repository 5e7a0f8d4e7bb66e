"""What the settings of methods that distil logits have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import choice, number, switch

Temperature = Annotated[float, number("Temperature T of the softened predictions.", 0.01, 100)]
Weight = Annotated[float, number("Weight of what is distilled, from the first step on.", 0, 1e6)]
LabelsWeight = Annotated[float, number("Weight of the labels.", 0, 1e6)]
Detach = Annotated[bool, switch("Keep the gradient out of the peers that teach.")]

LOSSES = ("kd", "dkd", "nkd", "standardised")
"""Divergences that `methods.distilling` knows."""


@dataclass(frozen=True)
class LossOptions(Settings, node="method.loss_options"):
    """What the losses other than `kd` weigh."""

    alpha: Annotated[float, number("dkd: weight of the true class against all others.", 0, 1e6)] = 1.0
    beta: Annotated[float, number("dkd: weight of the other classes among themselves.", 0, 1e6)] = 8.0
    gamma: Annotated[float, number("nkd: weight of the other classes among themselves.", 0, 1e6)] = 1.5


@dataclass(frozen=True)
class Distils(Settings, node="method"):
    """Settings of a method that distils logits: each of its terms is the same divergence."""

    temperature: Temperature = 3.0
    loss: Annotated[str, choice("What a term of distillation computes.", *LOSSES)] = "kd"
    loss_options: LossOptions = field(default_factory=LossOptions)
