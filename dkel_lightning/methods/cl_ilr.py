"""CL-ILR: collaborative learning with a shared intermediate representation (Song & Chai, NeurIPS 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from dkel_lightning.functional import cross_entropy, peer_mean
from dkel_lightning.methods.base import STUDENT, Needs, register
from dkel_lightning.methods.distilling import Detach, Distilling, Distils, Temperature
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork, SharedTrunk
from dkel_lightning.settings.declarations import number
from dkel_lightning.settings.rampup import RampUp


@dataclass(frozen=True)
class CLILRSettings(Distils):
    """Settings of CL-ILR; by default without a ramp-up (length 0)."""

    temperature: Temperature = 2.0
    beta: Annotated[
        float | None, number("Weight of the labels, against 1 - beta of the other heads; null: both 1.", 0, 1)
    ] = 0.5
    detach: Detach = True
    rampup: RampUp = field(default_factory=lambda: RampUp(epochs=0))


@register("cl_ilr", views="shared")
class CLILR(Distilling):
    """Collaborative learning with intermediate-level sharing: heads on one trunk, gradient scaled at the split.

    `L = sum_i [ beta CE(z_i) + (1 - beta) r KD(z_i, sg mean_{j != i} z_j) ]`.

    The heads share a trunk and a view. The gradient is multiplied by 1 / P where it enters the trunk.
    Detached: the mean as a target (unless `detach` is false). Deployed: the best peer of the student.
    """

    Settings = CLILRSettings
    needs = Needs(teacher=False, trunk=True, minimum_peers=2, deploy=STUDENT)
    settings: CLILRSettings
    terms = ("ce", "kd_peers")  # labels, and the other heads

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        assert isinstance(student, SharedTrunk)
        student.gradient_scale = 1.0 / student.num_peers

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        logits, beta = inputs.student.logits, self.settings.beta
        labels_weight, peers_weight = (1.0, 1.0) if beta is None else (beta, 1.0 - beta)
        target = peer_mean(logits.detach() if self.settings.detach else logits)
        divergence = self.distil(logits, target, inputs.classes)
        return {
            "ce": labels_weight * cross_entropy(logits, inputs.labels).sum(),
            "kd_peers": peers_weight * self.rampup_weight * divergence.sum(),
        }
