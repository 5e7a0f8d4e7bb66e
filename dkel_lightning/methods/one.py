"""ONE: on-the-fly native ensemble (Lan et al., NeurIPS 2018, arXiv 1806.04606)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dkel_lightning.functional import at_least_float32
from dkel_lightning.methods.base import shipped
from dkel_lightning.methods.distilling import Distilling
from dkel_lightning.modules.outputs import MethodInputs, StudentOutput
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.settings.methods import ONESettings


@shipped("one")
class ONE(Distilling):
    """`L = sum_i CE(z_i) + CE(z_E) + r sum_i KD(z_i, sg z_E)`, with `z_E = sum_i g_i z_i` gated by the trunk's output.

    The gate is average pooling, a linear layer to P, BatchNorm, ReLU, softmax; its BatchNorm normalises by the batch of
    its own process under DDP (`trainer.sync_batchnorm` makes it one). Detached: z_E as a target (unless
    `detach` is false), so the gate learns from `CE(z_E)` alone. Deployed: the first peer of the student.
    """

    settings: ONESettings
    terms = ("ce", "ce_ensemble", "kd_ensemble")  # labels, the gated ensemble's labels, the gated ensemble to peers

    gate: nn.Module

    def attach(self, network: PeerNetwork) -> None:
        """Make the gate.

        Raises:
            ConfigError: the trunk takes no image of the size that the network was built for.
        """
        width = pooled(network.probe().trunk[0]).shape[1]
        self.gate = nn.Sequential(
            nn.Linear(width, self.peers), nn.BatchNorm1d(self.peers), nn.ReLU(), nn.Softmax(dim=1)
        )

    def combine(self, student: StudentOutput) -> Tensor:
        """Weigh the peers' logits by the gate, [B, C]."""
        assert student.trunk is not None
        # A shared view passes the trunk once; of several views the gate sees the mean.
        outputs = list({id(output): output for output in student.trunk}.values())
        seen = torch.stack([pooled(output) for output in outputs]).mean(0)
        weights: Tensor = self.gate(at_least_float32(seen))
        return (weights.t().unsqueeze(-1) * student.logits).sum(0)

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        return self.ensemble_terms(inputs, detach=self.settings.detach)


def pooled(output: Tensor) -> Tensor:
    """Average over positions: maps [B, C, H, W], tokens [B, N, C] or vectors [B, C] -> [B, C]."""
    if output.dim() == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.dim() == 3 else output
