"""KD: offline distillation from a frozen teacher (Hinton, Vinyals & Dean, 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.base import Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils, LabelsWeight, Temperature, Weight
from dkel_lightning.modules.outputs import MethodInputs


@dataclass(frozen=True)
class KDSettings(Distils):
    """Settings of KD."""

    ce_weight: LabelsWeight = 0.1
    weight: Weight = 0.9
    temperature: Temperature = 4.0


@register("kd", teacher="frozen", peers=1)
class KD(Distilling):
    """Offline distillation in two stages: a teacher is trained (or loaded), then frozen and distilled from.

    `L = sum_i [ g CE(z_i) + a KD(z_i, sg t; T) ]`.

    The teacher may have another architecture. Detached: t. Deployed: the student.

    Source: g, a, T of RepDistiller's code; OKDDip's code has 1, 1, 3.
    """

    Settings = KDSettings
    needs = Needs(foreign_teacher=True)
    settings: KDSettings
    terms = ("ce", "kd")  # labels, and the teacher to each peer

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        # [1, B, C], or [P, B, C] where the teacher has seen each peer's own view.
        taught = self.distil(inputs.student.logits, inputs.teacher_logits, inputs.classes)
        return {
            "ce": self.settings.ce_weight * cross_entropy(inputs.student.logits, inputs.labels).sum(),
            "kd": self.settings.weight * taught.sum(),
        }
