"""Mean Teacher: consistency with a moving average of the student (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from dkel_lightning.functional import at_least_float32, cross_entropy, distillation
from dkel_lightning.methods.base import Method, MethodSettings, Needs, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.declarations import choice
from dkel_lightning.settings.weights import RampUp


@dataclass(frozen=True)
class MeanTeacherSettings(MethodSettings):
    """Settings of Mean Teacher; the scale of the ramp-up is the weight of the consistency."""

    consistency: Annotated[str, choice("Distance of student and teacher.", "mse", "kl")] = "mse"
    rampup: RampUp = field(default_factory=lambda: RampUp(epochs=5))


@register("mean_teacher", teacher="mean_teacher", peers=1, views="per_peer_and_teacher")
class MeanTeacher(Method):
    """Mean Teacher: the student stays consistent with its moving average, each on views of its own.

    `L = sum_i [ CE(z_i) + r D(softmax z_i, sg softmax t_i) ]`: student i is pulled to its own teacher i.

    D is the squared difference summed over the C classes (`mse`), or KL(t || z). The authors average over the classes
    and weight that by C to C^2, which is r from 1 to C here; 1 is the default. Student and teacher see views of their
    own. Detached: t_i. Deployed: a peer of the teacher.
    """

    Settings = MeanTeacherSettings
    needs = Needs(ensemble="none", minimum_peers=1, teacher_views=True)
    settings: MeanTeacherSettings
    terms = ("ce", "consistency")  # labels, and consistency with the teacher

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
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
    """Sum the squared difference of the softmaxes over classes, and average over the batch: [..., B, C] twice -> [...].

    The released code of Mean Teacher divides by the number of classes, so that its weight must grow with them.
    """
    difference = at_least_float32(student).softmax(-1) - at_least_float32(teacher).softmax(-1)
    return difference.square().sum(-1).mean(-1)
