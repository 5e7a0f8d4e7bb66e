"""PCL: peer collaborative learning (Wu & Gong, AAAI 2021, arXiv 2006.04147)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dkel_lightning.methods.base import Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.rampup import RampUp


@dataclass(frozen=True)
class PCLSettings(Distils):
    """Settings of PCL."""

    rampup: RampUp = field(default_factory=RampUp)


@register("pcl", teacher="follow")
class PCL(Distilling):
    """Peer collaborative learning: individual teachers only, no assembled knowledge.

    `L = CE(z_E) + sum_i [ CE(z_i) + r KD(z_i, sg z_E) + r mean_{j != i} KD(z_i, sg t_j) ]`.

    Detached: z_E as a target, and every t_j. Deployed: a peer of the teacher.
    """

    Settings = PCLSettings
    needs = Needs(ensemble="classifier", minimum_peers=2)
    settings: PCLSettings
    # Labels, ensemble's labels, ensemble to peers, individual teachers to peers.
    terms: tuple[str, ...] = ("ce", "ce_ensemble", "kd_ensemble", "kd_individual")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        terms = self.ensemble_terms(inputs)
        terms["kd_individual"] = self.rampup_weight * self.from_individual_teachers(inputs)
        return terms

    def from_individual_teachers(self, inputs: MethodInputs, *, include_self: bool = False) -> Tensor:
        """Sum over the peers what each learns from the other peers' teachers, unweighted."""
        teachers = inputs.teacher_logits
        return self.distil_from_each(inputs.student.logits, teachers, inputs.classes, include_self=include_self).sum()
