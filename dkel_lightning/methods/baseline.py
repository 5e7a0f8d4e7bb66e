"""The baseline: the same networks, labels only."""

from __future__ import annotations

from torch import Tensor

from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.base import Method, Needs, register
from dkel_lightning.modules.outputs import MethodInputs


@register("baseline", teacher="passive")
class Baseline(Method):
    """Cross-entropy only, with the same networks and a teacher that follows passively.

    `L = CE(z_E) + sum_i CE(z_i)`. The teacher is a moving average and may be deployed, so that the gain from averaging
    alone is not credited to distillation. A single peer has no ensemble classifier.
    """

    needs = Needs(teacher=False, ensemble="classifier")

    @property
    def terms(self) -> tuple[str, ...]:
        return ("ce", "ce_ensemble") if self.wants_ensemble_classifier else ("ce",)

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        terms = {"ce": cross_entropy(inputs.student.logits, inputs.labels).sum()}
        if inputs.student.ensemble_logits is not None:
            terms["ce_ensemble"] = cross_entropy(inputs.student.ensemble_logits, inputs.labels)
        return terms
