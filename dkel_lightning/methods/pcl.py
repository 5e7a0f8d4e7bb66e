"""PCL: peer collaborative learning (Wu & Gong, AAAI 2021, arXiv 2006.04147)."""

from __future__ import annotations

from torch import Tensor

from dkel_lightning.methods.base import shipped
from dkel_lightning.methods.distilling import Distilling
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.methods import PCLSettings


@shipped("pcl")
class PCL(Distilling):
    """`L = CE(z_E) + sum_i [ CE(z_i) + r KD(z_i, sg z_E) + r mean_{j != i} KD(z_i, sg t_j) ]`.

    Detached: z_E as a target, and every t_j. Deployed: a peer of the teacher.
    """

    settings: PCLSettings
    # Labels, ensemble's labels, ensemble to peers, individual teachers to peers.
    terms: tuple[str, ...] = ("ce", "ce_ensemble", "kd_ensemble", "kd_individual")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        terms = self.ensemble_terms(inputs)
        terms["kd_individual"] = self.rampup_weight * self.from_individual_teachers(inputs)
        return terms

    def from_individual_teachers(self, inputs: MethodInputs, *, include_self: bool = False) -> Tensor:
        """Sum over the peers what each learns from the other peers' teachers, unweighted."""
        assert inputs.teacher is not None
        teachers = inputs.teacher.logits.detach()
        return self.distil_from_each(inputs.student.logits, teachers, inputs.classes, include_self=include_self).sum()
