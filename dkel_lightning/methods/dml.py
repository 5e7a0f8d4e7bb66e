"""DML: deep mutual learning (Zhang et al., CVPR 2018, arXiv 1706.00384)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dkel_lightning.functional import cross_entropy, distillation, distillation_from_each, peer_mean
from dkel_lightning.methods.base import Method, shipped
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.methods import PRESETS, DMLSettings
from dkel_lightning.settings.needs import Needs


@shipped("dml")
class DML(Method):
    """`L = sum_i [ CE(z_i) + w mean_{j != i} KD(z_i, sg z_j) ]`, T = 1: separate networks on one view.

    Detached: every z_j as a target (unless `detach` is false). Deployed: the best peer of the student.
    """

    Settings: ClassVar[type[DMLSettings]] = DMLSettings
    needs: ClassVar[Needs] = PRESETS["dml"].needs
    settings: DMLSettings

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
