"""Methods that distil logits: the divergence that all of their terms compute is a setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
from dkel_lightning.methods.base import Method
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.distils import Distils

Loss = Callable[[Tensor, Tensor, Tensor, Distils], Tensor]
"""Called with logits of student and teacher [..., B, C], labels [B] and settings, returns [...]; detaches nothing."""

LOSSES: Mapping[str, Loss] = {
    "kd": lambda student, teacher, _, said: distillation(student, teacher, said.temperature),
    "dkd": lambda student, teacher, labels, said: decoupled(
        student, teacher, labels, said.temperature, said.loss_options.alpha, said.loss_options.beta
    ),
    "nkd": lambda student, teacher, labels, said: normalised(
        student, teacher, labels, said.temperature, said.loss_options.gamma
    ),
    "standardised": lambda student, teacher, _, said: distillation(
        standardised(student), standardised(teacher), said.temperature
    ),
}


class Distilling(Method):
    """A method whose settings derive from `Distils`. Its terms are made by `distil` and `distil_from_each`."""

    settings: Distils

    @property
    def wants_classes(self) -> bool:
        """Whether the divergence, too, sets one true class apart."""
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
