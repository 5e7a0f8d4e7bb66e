"""Mean Teacher: consistency with a moving average of the student (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from dkel_lightning.functional import at_least_float32, cross_entropy, sample_divergence
from dkel_lightning.methods.base import Method, MethodSettings, Needs, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.declarations import choice, number
from dkel_lightning.settings.rampup import RampUp


@dataclass(frozen=True)
class MeanTeacherSettings(MethodSettings):
    """Settings of Mean Teacher; the scale of the ramp-up is the weight of the consistency."""

    consistency: Annotated[str, choice("Distance of student and teacher.", "mse", "kl")] = "mse"
    confidence: Annotated[
        float, number("Leave out images of which the teacher's largest probability is below this.", 0, 0.999)
    ] = 0.0
    rampup: RampUp = field(default_factory=lambda: RampUp(epochs=None, share=0.125))


@register("mean_teacher", teacher="mean_teacher", peers=1, views="per_peer_and_teacher")
class MeanTeacher(Method):
    """Mean Teacher: the student stays consistent with its moving average, on different views.

    `L = sum_i [ CE(z_i) + r D(softmax z_i, sg softmax t_i) ]`, for each student i and its teacher i.

    D is the squared difference summed over the C classes (`mse`), or KL(t || z). The authors average over the classes
    and weight that by C to C^2, which is r from 1 to C here; 1 is the default. With a confidence c, D of an image
    is 0 where max softmax t_i < c, in a mean over all images, as in FixMatch (Sohn et al. 2020, arXiv 2001.07685, eq.
    4). Detached: t_i. Deployed: a peer of the teacher.
    """

    Settings = MeanTeacherSettings
    needs = Needs(teacher_views=True)
    settings: MeanTeacherSettings
    terms = ("ce", "consistency")  # labels, and consistency with the teacher

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        student, teacher = inputs.student.logits, inputs.teacher_logits
        if self.settings.consistency == "mse":
            distances = squared_differences(student, teacher)
        else:
            distances = sample_divergence(student, teacher, 1.0)
        if self.settings.confidence > 0:
            distances = distances * (at_least_float32(teacher).softmax(-1).amax(-1) >= self.settings.confidence)
        return {
            "ce": cross_entropy(student, inputs.labels).sum(),
            "consistency": self.rampup_weight * distances.mean(-1).sum(),
        }


def squared_differences(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum the squared difference of the softmaxes over the classes of each sample: [..., B, C] twice -> [..., B].

    The released code of Mean Teacher divides by the number of classes, so that its weight must grow with them.
    """
    difference = at_least_float32(student).softmax(-1) - at_least_float32(teacher).softmax(-1)
    return difference.square().sum(-1)
