"""The baseline: the same networks, labels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.base import Method, register
from dkel_lightning.modules.outputs import MethodInputs


@dataclass(frozen=True)
class BaselineSettings:
    """Settings of the baseline: the share of the label that is spread evenly over all classes."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"method.label_smoothing must be at least 0 and below 1, got {self.label_smoothing}.")


@register("baseline")
class Baseline(Method):
    """`L = CE(z_E) + sum_i CE(z_i)`: cross-entropy only, no distillation.

    The teacher follows passively as a moving average and is deployed as elsewhere, so that what averaging alone
    gives is not credited to distillation. A single peer has no ensemble classifier: it would be the peer again.
    """

    Settings: ClassVar[type[Any]] = BaselineSettings
    teacher: ClassVar[str] = "optional"
    minimum_peers: ClassVar[int] = 1

    @property
    def wants_ensemble_classifier(self) -> bool:
        """Whether there is more than one peer to take an ensemble of."""
        return self.peers > 1

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms: labels, and the ensemble's labels."""
        return ("ce", "ce_ensemble") if self.wants_ensemble_classifier else ("ce",)

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the cross-entropies, summed over the peers."""
        smoothing = self.settings.label_smoothing
        terms = {"ce": cross_entropy(inputs.student.logits, inputs.labels, smoothing).sum()}
        if inputs.student.ensemble_logits is not None:
            terms["ce_ensemble"] = cross_entropy(inputs.student.ensemble_logits, inputs.labels, smoothing)
        return terms
