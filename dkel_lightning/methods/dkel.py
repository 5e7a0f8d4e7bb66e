"""DKEL: decoupled knowledge with ensemble learning (Shao & Chen, arXiv 2312.11218).

Only the paper's abstract and the authors' code are public. `dkel` is our reading of the abstract, `dkel_released`
the arithmetic of the code; they differ in settings only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dkel_lightning.methods.base import register
from dkel_lightning.methods.pcl import PCL, PCLSettings
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.schedules import TEACHER_WEIGHTS
from dkel_lightning.settings.weights import EnsembleTerm


@dataclass(frozen=True)
class DKELSettings(PCLSettings):
    """Settings of DKEL: those of PCL and the decaying ensemble of teachers."""

    ensemble: EnsembleTerm = field(default_factory=EnsembleTerm)


@register("dkel")
@register(
    "dkel_released",
    meaning="DKEL with the arithmetic of the authors' released code, quirks included.",
    settings={"rampup": {"scale": 0.1, "form": "released"}, "ensemble": {"ramped": True}},
    teacher="copy",
    classifiers="released",
    views_per_pass="one",
)
class DKEL(PCL):
    """DKEL as its abstract describes it (our reading): decaying ensemble of teachers, correct ramp-up.

    PCL whose teachers also teach as a decaying ensemble.

    `L = CE(z_E) + sum_i [ CE(z_i) + r KD(z_i, sg z_E) + G KD(z_i, sg mean_{j != i} t_j)
    + H mean_{j != i} KD(z_i, sg t_j) ]`, with G = g v and H = r (1 - v), g = lambda (or r where `ramped`).

    With P = 2 the mean over the other teachers is a single one, both teacher terms are the same, and v matters
    only through the total weight G + H. Detached and deployed as in PCL.
    """

    Settings = DKELSettings
    settings: DKELSettings
    terms = (*PCL.terms, "kd_assembled")  # and the assembled teachers to peers

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        assert inputs.assembled is not None
        assembled_weight, individual_weight = self.teacher_weights(inputs.ensemble_weight)
        assembled = self.distil(inputs.student.logits, inputs.assembled.detach(), inputs.classes)
        individual = self.from_individual_teachers(inputs, include_self=self.settings.ensemble.include_self)
        terms = self.ensemble_terms(inputs)
        terms["kd_individual"] = individual_weight * individual
        terms["kd_assembled"] = assembled_weight * assembled.sum()
        return terms

    def teacher_weights(self, ensemble_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return (G, H), the current weights of the assembled and the individual teachers."""
        ensemble, scale = self.settings.ensemble, self.settings.rampup.scale
        full = self.rampup_weight if ensemble.ramped else self.rampup_weight * 0 + scale
        pair: tuple[Tensor, Tensor] = TEACHER_WEIGHTS[ensemble.weights](
            ensemble_weight, self.rampup_weight, full, scale
        )
        return pair

    def current_weights(self, ensemble_weight: Tensor) -> dict[str, Tensor]:
        assembled, individual = self.teacher_weights(ensemble_weight)
        return {
            **super().current_weights(ensemble_weight),
            "ensemble_decay": ensemble_weight,
            "teacher_assembled": assembled,
            "teacher_individual": individual,
        }
