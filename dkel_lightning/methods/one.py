"""ONE: on-the-fly native ensemble (Lan et al., NeurIPS 2018, arXiv 1806.04606)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dkel_lightning.functional import at_least_float32
from dkel_lightning.methods.base import Needs, register
from dkel_lightning.methods.distilling import Detach, Distilling, Distils
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork, PeerOutputs
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.rampup import RampUp


@dataclass(frozen=True)
class ONESettings(Distils):
    """Settings of ONE; without `detach` the distillation also trains the gate."""

    rampup: RampUp = field(default_factory=RampUp)
    detach: Detach = True


@register("one", views="shared")
class ONE(Distilling):
    """On-the-fly native ensemble: branches learn from their gated ensemble.

    `L = sum_i CE(z_i) + CE(z_E) + r sum_i KD(z_i, sg z_E)`, with `z_E = sum_i g_i z_i` gated by the trunk's output.

    The gate is average pooling, a linear layer to P, BatchNorm, ReLU, softmax; its BatchNorm normalises by the batch of
    its own process under DDP (Lightning's `sync_batchnorm` makes it one). Detached: z_E as a target (unless
    `detach` is false), so only `CE(z_E)` trains the gate. Deployed: the first peer of the student.
    """

    Settings = ONESettings
    needs = Needs(teacher=False, ensemble="own", trunk=True, minimum_peers=2, deploy=Deploy("student", 0))
    settings: ONESettings
    terms = ("ce", "ce_ensemble", "kd_ensemble")  # labels, the gated ensemble's labels, the gated ensemble to peers

    gate: nn.Module

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        width = pooled(student.probe().trunk[0]).shape[1]
        self.gate = nn.Sequential(
            nn.Linear(width, self.peers), nn.BatchNorm1d(self.peers), nn.ReLU(), nn.Softmax(dim=1)
        )

    def combine(self, student: PeerOutputs) -> Tensor:
        assert student.trunk is not None
        # A shared view passes the trunk once; of several views the gate sees the mean.
        outputs = list({id(output): output for output in student.trunk}.values())
        trunk = torch.stack([pooled(output) for output in outputs]).mean(0)
        weights: Tensor = self.gate(at_least_float32(trunk))
        return (weights.t().unsqueeze(-1) * student.logits).sum(0)

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        return self.ensemble_terms(inputs, detach=self.settings.detach)


def pooled(output: Tensor) -> Tensor:
    """Average over positions: maps [B, C, H, W], tokens [B, N, C] or vectors [B, C] -> [B, C]."""
    if output.dim() == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.dim() == 3 else output
