"""DML: deep mutual learning (Zhang et al., CVPR 2018, arXiv 1706.00384)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dkel_lightning.functional import cross_entropy, distillation, distillation_from_each, peer_mean
from dkel_lightning.methods.base import Method, register
from dkel_lightning.methods.pcl import check_temperature
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.schedules import non_negative, one_of


@dataclass(frozen=True)
class DMLSettings:
    """Settings of DML.

    Attributes:
        temperature: T.
        weight: of what the other peers teach, from the first step on: DML has no ramp-up.
        targets: `pairwise`, the mean divergence to each other peer, or `mean_logits`, one to their mean logits.
        detach: keep the gradient out of the teaching peers.
    """

    temperature: float = 1.0
    weight: float = 1.0
    targets: str = "pairwise"
    detach: bool = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        non_negative("method.weight", self.weight)
        one_of("method.targets", self.targets, ("pairwise", "mean_logits"))


@register("dml", sharing="nothing", views="shared")
class DML(Method):
    """`L = sum_i [ CE(z_i) + w mean_{j != i} KD(z_i, sg z_j) ]`, T = 1: separate networks on one view.

    Detached: every z_j as a target (unless `detach` is false). Deployed: the best peer of the student.
    """

    Settings: ClassVar[type[DMLSettings]] = DMLSettings
    settings: DMLSettings
    teacher: ClassVar[str] = "none"
    uses_ensemble: ClassVar[bool] = False
    deployed_network: ClassVar[str] = "student"

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms: labels, and the other peers."""
        return ("ce", "kd_peers")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        logits, temperature = inputs.student.logits, self.settings.temperature
        others = logits.detach() if self.settings.detach else logits
        if self.settings.targets == "pairwise":
            divergence = distillation_from_each(logits, others, temperature)
        else:
            divergence = distillation(logits, peer_mean(others), temperature)
        return {"ce": cross_entropy(logits, inputs.labels).sum(), "kd_peers": self.settings.weight * divergence.sum()}
