"""Methods that distil logits: the divergence that all of their terms compute is a setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from dkel_lightning.functional import (
    cross_entropy,
    decoupled,
    distillation,
    distillation_from_each,
    normalised,
    peer_mean,
    standardised,
)
from dkel_lightning.methods.base import Method, MethodSettings
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.declarations import Settings, choice, number, switch

Temperature = Annotated[float, number("Temperature T of the softened predictions.", 0.01, 100)]
Weight = Annotated[float, number("Weight of the distillation, from the first step on.", 0, 1e6)]
LabelsWeight = Annotated[float, number("Weight of the labels.", 0, 1e6)]
Detach = Annotated[bool, switch("Keep the gradient out of the peers that teach.")]

Loss = Callable[[Tensor, Tensor, Tensor, "Distils"], Tensor]
"""Called with logits of student and teacher [..., B, C], labels [B] and settings, returns [...]; detaches nothing."""

LOSSES: Mapping[str, Loss] = {
    "kd": lambda student, teacher, _, settings: distillation(student, teacher, settings.temperature),
    "dkd": lambda student, teacher, labels, settings: decoupled(
        student, teacher, labels, settings.temperature, settings.loss_options.alpha, settings.loss_options.beta
    ),
    "nkd": lambda student, teacher, labels, settings: normalised(
        student, teacher, labels, settings.temperature, settings.loss_options.gamma
    ),
    "standardised": lambda student, teacher, _, settings: distillation(
        standardised(student), standardised(teacher), settings.temperature
    ),
}


@dataclass(frozen=True)
class LossOptions(Settings, node="method.loss_options"):
    """Weights of the losses other than `kd`."""

    alpha: Annotated[float, number("dkd: weight of the true class against all others.", 0, 1e6)] = 1.0
    beta: Annotated[float, number("dkd: weight of the other classes among themselves.", 0, 1e6)] = 8.0
    gamma: Annotated[float, number("nkd: weight of the other classes among themselves.", 0, 1e6)] = 1.5


@dataclass(frozen=True)
class Distils(MethodSettings):
    """Settings of a method that distils logits: all its terms compute the same divergence."""

    temperature: Temperature = 3.0
    loss: Annotated[str, choice("Divergence of every distillation term.", *LOSSES)] = "kd"
    loss_options: LossOptions = field(default_factory=LossOptions)


class Distilling(Method):
    """A method with settings derived from `Distils`; `distil` and `distil_from_each` compute its terms."""

    settings: Distils

    @property
    def wants_classes(self) -> bool:
        return super().wants_classes or self.settings.loss in ("dkd", "nkd")

    def distil(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Compute the divergence of `settings.loss`, averaged over the batch: logits [..., B, C] twice -> [...].

        Nothing is detached.
        """
        return LOSSES[self.settings.loss](student, teacher, labels, self.settings)

    def ensemble_terms(self, inputs: MethodInputs, *, detach: bool = True) -> dict[str, Tensor]:
        """Compute what labels teach the peers and their ensemble, and the ensemble its peers, ramped."""
        student, labels = inputs.student, inputs.labels
        assert student.ensemble_logits is not None
        target = student.ensemble_logits.detach() if detach else student.ensemble_logits
        return {
            "ce": cross_entropy(student.logits, labels).sum(),
            "ce_ensemble": cross_entropy(student.ensemble_logits, labels),
            "kd_ensemble": self.rampup_weight * self.distil(student.logits, target, inputs.classes).sum(),
        }

    def distil_from_each(
        self, student: Tensor, teachers: Tensor, labels: Tensor, *, include_self: bool = False
    ) -> Tensor:
        """Average what each peer learns from the teachers of the others: logits [P, B, C] twice -> [P]."""
        if self.settings.loss == "kd":
            return distillation_from_each(student, teachers, self.settings.temperature, include_self=include_self)
        pairs = self.distil(student.unsqueeze(0), teachers.unsqueeze(1), labels)  # [teachers, students]
        return peer_mean(pairs, include_self=include_self).diagonal()
