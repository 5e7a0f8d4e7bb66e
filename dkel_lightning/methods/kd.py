"""KD: offline distillation from a frozen teacher (Hinton, Vinyals & Dean, 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dkel_lightning.functional import cross_entropy, distillation
from dkel_lightning.methods.base import Method, register
from dkel_lightning.methods.pcl import check_temperature
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.schedules import non_negative


@dataclass(frozen=True)
class KDSettings:
    """Settings of KD.

    Attributes:
        ce_weight: weight of the labels.
        weight: weight of the teacher.
        temperature: T.
    """

    ce_weight: float = 0.1
    weight: float = 0.9
    temperature: float = 4.0

    def __post_init__(self) -> None:
        non_negative("method.ce_weight", self.ce_weight)
        non_negative("method.weight", self.weight)
        check_temperature(self.temperature)


@register("kd", teacher={"update": "frozen", "init_steps": 0}, peers=1)
class KD(Method):
    """`L = sum_i [ g CE(z_i) + a KD(z_i, sg t; T) ]`: every peer learns from the one teacher t.

    The teacher is a network of its own, possibly of another architecture. Detached: t. Deployed: the student.

    Source: g, a, T of RepDistiller's code; OKDDip's code has 1, 1, 3.
    """

    Settings: ClassVar[type[KDSettings]] = KDSettings
    settings: KDSettings
    uses_ensemble: ClassVar[bool] = False
    minimum_peers: ClassVar[int] = 1
    foreign_teacher: ClassVar[bool] = True
    deployed_network: ClassVar[str] = "student"

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms: labels, and the teacher to each peer."""
        return ("ce", "kd")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        assert inputs.teacher is not None
        # [1, B, C], or [P, B, C] where the teacher has seen each peer's own view.
        taught = distillation(inputs.student.logits, inputs.teacher.logits.detach(), self.settings.temperature)
        return {
            "ce": self.settings.ce_weight * cross_entropy(inputs.student.logits, inputs.labels).sum(),
            "kd": self.settings.weight * taught.sum(),
        }
