"""FFL: feature fusion for online mutual knowledge distillation (Kim et al., arXiv 1904.09058)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.methods.base import STUDENT, Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork, PeerOutputs
from dkel_lightning.settings.rampup import RampUp


@dataclass(frozen=True)
class FFLSettings(Distils):
    """Settings of FFL; the ramp-up is of all that is distilled."""

    rampup: RampUp = field(default_factory=RampUp)


@register("ffl", peers=2, views="shared")
class FFL(Distilling):
    """Feature fusion: peers and a classifier of their fused feature maps teach each other.

    `L = sum_i CE(z_i) + CE(z_F) + r [ sum_i KD(z_i, sg z_F) + KD(z_F, sg mean_i z_i) ]`.

    z_F are the logits of a fusion module on the peers' concatenated last feature maps: depthwise 3x3, BatchNorm, ReLU,
    1x1 to the width of one peer, BatchNorm, ReLU, average pooling, linear. Detached: both targets. Deployed: the best
    peer of the student; the fused classifier with `deploy.network=ensemble`.
    """

    Settings = FFLSettings
    needs = Needs(teacher=False, ensemble="own", minimum_peers=2, deploy=STUDENT)
    settings: FFLSettings
    # Labels, the fusion's labels, fusion to peers, peers to fusion.
    terms = ("ce", "ce_ensemble", "kd_ensemble", "kd_fusion")

    fusion: nn.Sequential

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        maps = student.probe().maps
        if maps is None:
            raise ConfigError("ffl fuses feature maps, which this network does not provide: use a registered backbone.")
        sizes = sorted({tuple(of_peer.shape[2:]) for of_peer in maps})
        if len(sizes) > 1:
            raise ConfigError(f"ffl fuses feature maps, and those of the peers differ in size: {sizes}.")
        widths = [of_peer.shape[1] for of_peer in maps]
        wide, narrow = sum(widths), widths[0]
        self.fusion = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(narrow, student.num_classes),
        )
        for module in self.fusion:
            if isinstance(module, nn.Conv2d):  # N(0, sqrt(2 / (k^2 out)))
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def combine(self, student: PeerOutputs) -> Tensor:
        assert student.maps is not None
        fused: Tensor = self.fusion(torch.cat(student.maps, dim=1))
        return fused

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        logits, fused = inputs.student.logits, inputs.student.ensemble_logits
        terms = self.ensemble_terms(inputs)
        assert fused is not None
        terms["kd_fusion"] = self.rampup_weight * self.distil(fused, logits.detach().mean(0), inputs.classes)
        return terms
