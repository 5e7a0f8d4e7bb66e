"""DML: deep mutual learning (Zhang et al., CVPR 2018, arXiv 1706.00384)."""

from __future__ import annotations

from torch import Tensor

from dkel_lightning.functional import cross_entropy, peer_mean
from dkel_lightning.methods.base import shipped
from dkel_lightning.methods.distilling import Distilling
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.methods import DMLSettings


@shipped("dml")
class DML(Distilling):
    """`L = sum_i [ CE(z_i) + w mean_{j != i} KD(z_i, sg z_j) ]`, T = 1: separate networks on one view.

    Detached: every z_j as a target (unless `detach` is false). Deployed: the best peer of the student.
    """

    settings: DMLSettings
    terms = ("ce", "kd_peers")  # labels, and the other peers

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        logits = inputs.student.logits
        others = logits.detach() if self.settings.detach else logits
        if self.settings.targets == "pairwise":
            divergence = self.distil_from_each(logits, others, inputs.classes)
        else:
            divergence = self.distil(logits, peer_mean(others), inputs.classes)
        return {"ce": cross_entropy(logits, inputs.labels).sum(), "kd_peers": self.settings.weight * divergence.sum()}
