"""DML: deep mutual learning (Zhang et al., CVPR 2018, arXiv 1706.00384)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from dkel_lightning.functional import cross_entropy, peer_mean
from dkel_lightning.methods.base import STUDENT, Needs, register
from dkel_lightning.methods.distilling import Detach, Distilling, Distils, Temperature, Weight
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.declarations import choice


@dataclass(frozen=True)
class DMLSettings(Distils):
    """Settings of DML, which has no ramp-up. `pairwise` is the mean divergence to each other peer."""

    temperature: Temperature = 1.0
    weight: Weight = 1.0
    targets: Annotated[
        str, choice("The other peers as targets: each, or their mean logits.", "pairwise", "mean_logits")
    ] = "pairwise"
    detach: Detach = True


@register("dml", sharing="nothing", views="shared")
class DML(Distilling):
    """Deep mutual learning: separate networks on one view learn from each other's predictions.

    `L = sum_i [ CE(z_i) + w mean_{j != i} KD(z_i, sg z_j) ]`, T = 1.

    Detached: every z_j as a target (unless `detach` is false). Deployed: the best peer of the student.
    """

    Settings = DMLSettings
    needs = Needs(teacher=False, minimum_peers=2, deploy=STUDENT)
    settings: DMLSettings
    terms = ("ce", "kd_peers")  # labels, and the other peers

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        logits = inputs.student.logits
        others = logits.detach() if self.settings.detach else logits
        if self.settings.targets == "pairwise":
            divergence = self.distil_from_each(logits, others, inputs.classes)
        else:
            divergence = self.distil(logits, peer_mean(others), inputs.classes)
        return {"ce": cross_entropy(logits, inputs.labels).sum(), "kd_peers": self.settings.weight * divergence.sum()}
