"""OKDDip: online knowledge distillation with diverse peers (Chen et al., AAAI 2020, arXiv 1912.00350)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import at_least_float32, cross_entropy
from dkel_lightning.methods.base import Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.rampup import RampUp


@dataclass(frozen=True)
class OKDDipSettings(Distils):
    """Settings of OKDDip; the ramp-up is of both distillations."""

    rampup: RampUp = field(default_factory=RampUp)


@register("okddip", peers=4, views="shared")
class OKDDip(Distilling):
    """Diverse peers: auxiliary peers attend to each other and teach a group leader, the last peer.

    `L = sum_a CE(z_a) + CE(z_L) + r [ sum_a KD(z_a, sum_b A_ab z_b) + KD(z_L, mean_b z_b) ]`.

    The last peer is the group leader L, the others are auxiliary peers a, b. For each sample,
    `A_ab = softmax_b(q(f_a) . k(f_b))` over all auxiliary peers, a itself included. Nothing is detached: gradients
    flow through the targets into the peers, and so queries and keys learn. Deployed: the leader.
    """

    Settings = OKDDipSettings
    needs = Needs(teacher=False, minimum_peers=3, deploy=Deploy("student", -1))
    settings: OKDDipSettings
    terms = ("ce", "kd_peers", "kd_leader")  # labels, attended peers to peers, mean of the peers to the leader

    query: nn.Linear
    key: nn.Linear

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        widths = set(student.feature_dims[:-1])
        if len(widths) > 1:
            raise ConfigError(f"okddip compares features, and its auxiliary peers' differ in width: {sorted(widths)}.")
        (width,) = widths
        narrow = max(1, width // 8)
        self.query = nn.Linear(width, narrow, bias=False)
        self.key = nn.Linear(width, narrow, bias=False)

    def attention(self, features: Tensor) -> Tensor:
        """Weigh the auxiliary peers for each other: features [A, B, D] -> [B, A, A], each row a distribution."""
        queries, keys = self.query(features), self.key(features)
        scores = (at_least_float32(queries).unsqueeze(1) * at_least_float32(keys).unsqueeze(0)).sum(-1)
        return scores.permute(2, 0, 1).softmax(-1)

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        logits = at_least_float32(inputs.student.logits)
        auxiliary, leader = logits[:-1], logits[-1]
        weights = self.attention(torch.stack(tuple(inputs.student.features)[:-1])).permute(1, 2, 0).unsqueeze(-1)
        attended = (weights * auxiliary.unsqueeze(0)).sum(1)
        return {
            "ce": cross_entropy(logits, inputs.labels).sum(),
            "kd_peers": self.rampup_weight * self.distil(auxiliary, attended, inputs.classes).sum(),
            "kd_leader": self.rampup_weight * self.distil(leader, auxiliary.mean(0), inputs.classes),
        }
