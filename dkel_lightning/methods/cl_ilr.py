"""CL-ILR: collaborative learning with a shared intermediate representation (Song & Chai, NeurIPS 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy, distillation, peer_mean
from dkel_lightning.methods.base import Method, register
from dkel_lightning.methods.pcl import check_temperature
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import BranchedNetwork, PeerNetwork
from dkel_lightning.settings.weights import RampUp


@dataclass(frozen=True)
class CLILRSettings:
    """Settings of CL-ILR.

    Attributes:
        temperature: T.
        beta: weight of the labels, against 1 - beta of the other heads; None weighs both with 1.
        detach: keep the gradient out of the teaching heads.
        rampup: multiplies what the other heads teach; of length 0, that is absent, by default.
    """

    temperature: float = 2.0
    beta: float | None = 0.5
    detach: bool = True
    rampup: RampUp = field(default_factory=lambda: RampUp(epochs=0))

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.beta is not None and not 0 <= self.beta <= 1:
            raise ConfigError(f"method.beta must lie between 0 and 1, or be null, got {self.beta}.")


@register("cl_ilr", views="shared")
class CLILR(Method):
    """`L = sum_i [ beta CE(z_i) + (1 - beta) r KD(z_i, sg mean_{j != i} z_j) ]` on heads over one trunk and one view.

    The gradient is multiplied by 1 / P where it enters the trunk, so that the trunk learns at the pace of one head.
    Detached: the mean as a target (unless `detach` is false). Deployed: the best peer of the student.
    """

    Settings: ClassVar[type[CLILRSettings]] = CLILRSettings
    settings: CLILRSettings
    teacher: ClassVar[str] = "none"
    uses_ensemble: ClassVar[bool] = False
    deployed_network: ClassVar[str] = "student"

    def attach(self, network: PeerNetwork) -> None:
        """Scale the gradient at the split by 1 / P.

        Raises:
            ConfigError: the peers share no trunk.
        """
        if not isinstance(network, BranchedNetwork):
            raise ConfigError(
                "CL-ILR scales the gradient where branches leave their trunk, and these peers share none: "
                "set method.sharing=trunk and give method.peers as a number, or choose method=dml."
            )
        network.gradient_scale = 1.0 / network.num_peers

    @property
    def terms(self) -> tuple[str, ...]:
        """Name the terms: labels, and the other heads."""
        return ("ce", "kd_peers")

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        logits, beta = inputs.student.logits, self.settings.beta
        labels_weight, peers_weight = (1.0, 1.0) if beta is None else (beta, 1.0 - beta)
        target = peer_mean(logits.detach() if self.settings.detach else logits)
        divergence = distillation(logits, target, self.settings.temperature)
        return {
            "ce": labels_weight * cross_entropy(logits, inputs.labels).sum(),
            "kd_peers": peers_weight * self.rampup_weight * divergence.sum(),
        }
