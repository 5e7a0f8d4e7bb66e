"""PCL: peer collaborative learning (Wu & Gong, AAAI 2021, arXiv 2006.04147)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.base import shipped
from dkel_lightning.methods.distilling import Distilling
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.methods import PRESETS, PCLSettings
from dkel_lightning.settings.needs import Needs


@shipped("pcl")
class PCL(Distilling):
    """`L = CE(z_E) + sum_i [ CE(z_i) + r KD(z_i, sg z_E) + r mean_{j != i} KD(z_i, sg t_j) ]`.

    Detached: z_E as a target, and every t_j. Deployed: a peer of the teacher.
    """

    Settings: ClassVar[type[PCLSettings]] = PCLSettings
    needs: ClassVar[Needs] = PRESETS["pcl"].needs
    settings: PCLSettings

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms: labels, ensemble's labels, ensemble to peers, individual teachers to peers."""
        return ("ce", "ce_ensemble", "kd_ensemble", "kd_individual")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        terms = self.supervised_terms(inputs)
        terms["kd_individual"] = self.rampup_weight * self.from_individual_teachers(inputs)
        return terms

    def supervised_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute what labels and the ensemble of the peers teach."""
        student = inputs.student
        assert student.ensemble_logits is not None
        from_ensemble = self.distil(student.logits, student.ensemble_logits.detach(), inputs.classes)
        return {
            "ce": cross_entropy(student.logits, inputs.labels).sum(),
            "ce_ensemble": cross_entropy(student.ensemble_logits, inputs.labels),
            "kd_ensemble": self.rampup_weight * from_ensemble.sum(),
        }

    def from_individual_teachers(self, inputs: MethodInputs, *, include_self: bool = False) -> Tensor:
        """Sum over the peers what each learns from the other peers' teachers, unweighted."""
        assert inputs.teacher is not None
        teachers = inputs.teacher.logits.detach()
        return self.distil_from_each(inputs.student.logits, teachers, inputs.classes, include_self=include_self).sum()
