"""Mean Teacher: consistency with a moving average of the student (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dkel_lightning.functional import at_least_float32, cross_entropy, distillation
from dkel_lightning.methods.base import Method, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.schedules import one_of
from dkel_lightning.settings.weights import RampUp


@dataclass(frozen=True)
class MeanTeacherSettings:
    """Settings of Mean Teacher.

    Attributes:
        consistency: `mse`, the squared difference of the softmaxes averaged over classes, or `kl`, KL(t || z).
        rampup: of the consistency weight; its scale is c_max.
    """

    consistency: str = "mse"
    rampup: RampUp = field(default_factory=lambda: RampUp(scale=10.0, epochs=5))

    def __post_init__(self) -> None:
        one_of("method.consistency", self.consistency, ("mse", "kl"))


@register(
    "mean_teacher",
    teacher={"draw": "student", "start": "mean_teacher", "init_steps": 0},
    views="per_peer_and_teacher",
    peers=1,
)
class MeanTeacher(Method):
    """`L = sum_i [ CE(z_i) + r D(softmax z_i, sg softmax t_i) ]`: student i is pulled to its own teacher i.

    Student and teacher see views of their own. Detached: t_i. Deployed: a peer of the teacher.
    """

    Settings: ClassVar[type[MeanTeacherSettings]] = MeanTeacherSettings
    settings: MeanTeacherSettings
    uses_ensemble: ClassVar[bool] = False
    minimum_peers: ClassVar[int] = 1
    separate_teacher_views: ClassVar[bool] = True

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms: labels, and consistency with the teacher."""
        return ("ce", "consistency")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        assert inputs.teacher is not None
        student, teacher = inputs.student.logits, inputs.teacher.logits.detach()
        if self.settings.consistency == "mse":
            distance = squared_difference(student, teacher)
        else:
            distance = distillation(student, teacher, 1.0)
        return {
            "ce": cross_entropy(student, inputs.labels).sum(),
            "consistency": self.rampup_weight * distance.sum(),
        }


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Average the squared difference of the softmaxes over classes and batch: logits [..., B, C] twice -> [...].

    Source: Mean Teacher, released code (divided by the number of classes).
    """
    difference = at_least_float32(student).softmax(-1) - at_least_float32(teacher).softmax(-1)
    return difference.square().mean((-2, -1))
